//! The command as a shell sees it: output and exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of this file is tests")]

use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

use axum::{Json, Router, extract::Path, http::StatusCode, routing::get};
use consumer::mock::Broker;
use pushcast::topology;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use sandbox::{self, Sandbox};
use serde_json::{Value, json};

/// In a folder of its own, because the store is by default a file in the current one.
fn pushcast(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushcast"));
    command
        .current_dir(&folder)
        .env_clear()
        .envs(environment.iter().copied())
        .args(arguments)
        .stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn an_invalid_configuration_ends_every_command_with_code_two_and_all_errors() {
    for command in [&["check"][..], &["run"], &["tick"], &["inspect", "user", "ada"]] {
        let ended =
            pushcast(command, &[("PUSHCAST__POSTS__SLICES", "48"), ("PUSHCAST__PUSH__ENABLED", "maybe")]);
        let stderr = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{command:?}: {stderr}");
        assert!(
            stderr.contains("PUSHCAST__POSTS__SLICES") && stderr.contains("PUSHCAST__PUSH__ENABLED"),
            "{command:?}: {stderr}"
        );
    }
}

#[test]
fn an_unknown_command_or_stage_ends_with_code_two() {
    for line in [&["sned"][..], &["run", "--stages", "tokens,mail"]] {
        assert_eq!(pushcast(line, &[]).status.code(), Some(2), "{line:?}");
    }
}

#[test]
fn the_help_lists_the_exit_codes() {
    let help = pushcast(&["--help"], &[]);
    assert!(text(&help.stdout).contains("Exit codes: 0 done, 1 failed, 2 invalid"), "{}", text(&help.stdout));
}

#[test]
fn check_prints_each_setting_with_its_source_and_no_secret() {
    let ended = pushcast(
        &["check"],
        &[("PUSHCAST__EXPO__RATE_PER_SECOND", "300"), ("PUSHCAST__EXPO__ACCESS_TOKEN", "S3CRET")],
    );
    let stdout = text(&ended.stdout);
    assert!(stdout.contains("expo.rate_per_second = 300 (PUSHCAST__EXPO__RATE_PER_SECOND)"), "{stdout}");
    assert!(!stdout.contains("S3CRET") && !text(&ended.stderr).contains("S3CRET"), "{stdout}");
}

#[test]
fn produce_writes_the_lines_before_an_invalid_one_and_none_behind_it() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines");
    std::fs::write(&lines, "a:1\n\nb:2\nc\nd:4\n").unwrap();
    let mut produce = Command::new(env!("CARGO_BIN_EXE_pushcast"));
    produce.args(["produce", "t", "--key-separator", ":"]).stdin(std::fs::File::open(&lines).unwrap());
    let ended = produce
        .env_clear()
        .env("PUSHCAST__KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers())
        .output()
        .unwrap();
    let stderr = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("2 records were written to t, but not all")
            && stderr.contains("line 4: no \":\" in it"),
        "{stderr}"
    );
    let reader: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", broker.bootstrap_servers()).create().unwrap();
    assert_eq!(reader.fetch_watermarks("t", 0, Duration::from_secs(10)).unwrap(), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tries_the_credentials_of_fcm() {
    let sandbox = Sandbox::start(sandbox::Options::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let account = folder.path().join("fcm.json");
    std::fs::write(&account, sandbox.service_account()).unwrap();
    // Only because `check` waits ten seconds for a Kafka that is unreachable.
    let broker = topology::embedded_broker(16).unwrap();
    let check = async || {
        let account = account.to_str().unwrap().to_owned();
        let servers = broker.bootstrap_servers();
        let checking = move || {
            let environment = [
                ("PUSHCAST__FCM__CREDENTIALS_FILE", account.as_str()),
                ("PUSHCAST__STORE__URL", "embedded:memory"),
                ("PUSHCAST__KAFKA__BOOTSTRAP_SERVERS", servers.as_str()),
            ];
            text(&pushcast(&["check"], &environment).stdout).to_owned()
        };
        tokio::task::spawn_blocking(checking).await.unwrap()
    };
    let stdout = check().await;
    assert!(
        stdout.contains("fcm            ok: Google issued an access token for its credentials"),
        "{stdout}"
    );

    sandbox.faults().change(|faults| faults.oauth.refused = true);
    let stdout = check().await;
    assert!(stdout.contains("fcm            Google refuses the account: "), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_prints_the_answer_of_the_instance_and_fails_with_its_error() {
    let token = async |Path(token): Path<String>| (StatusCode::OK, Json(json!({ "asked": token })));
    let user = async |Path(_): Path<String>| {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "the store is unavailable" })))
    };
    let routes =
        Router::new().route("/inspect/token/{token}", get(token)).route("/inspect/user/{user}", get(user));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let commands = tokio::task::spawn_blocking(move || {
        let variables = [("PUSHCAST__HTTP__ADMIN_LISTEN", address.as_str())];
        (
            pushcast(&["inspect", "token", "ExponentPushToken[a/b]"], &variables),
            pushcast(&["inspect", "user", "ada"], &variables),
        )
    });
    let (answered, refused) = tokio::select! {
        ended = commands => ended.unwrap(),
        _ = axum::serve(listener, routes).into_future() => unreachable!("it serves for ever"),
    };
    assert_eq!(
        serde_json::from_slice::<Value>(&answered.stdout).unwrap(),
        json!({"asked": "ExponentPushToken[a/b]"})
    );
    assert_eq!(
        (refused.status.code(), text(&refused.stderr)),
        (Some(1), "error: the store is unavailable\n")
    );
}

#[test]
fn inspect_shows_no_token_when_no_instance_answers() {
    // Nothing listens on port 1 of this machine.
    let ended = pushcast(&["inspect", "--admin", "127.0.0.1:1", "token", "ExponentPushToken[ada]"], &[]);
    let stderr = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no instance answers on 127.0.0.1:1") && !stderr.contains("ada"), "{stderr}");
}
