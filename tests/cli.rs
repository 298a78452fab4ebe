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
fn an_invalid_configuration_ends_every_command_with_two_and_all_its_mistakes() {
    for command in [&["check"][..], &["run"], &["tick"], &["inspect", "user", "ada"]] {
        let ended =
            pushcast(command, &[("PUSHCAST__POSTS__SLICES", "48"), ("PUSHCAST__PUSH__ENABLED", "maybe")]);
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{command:?}: {said}");
        assert!(
            said.contains("PUSHCAST__POSTS__SLICES") && said.contains("PUSHCAST__PUSH__ENABLED"),
            "{command:?}: {said}"
        );
    }
}

#[test]
fn an_unknown_command_or_stage_ends_with_two() {
    for line in [&["sned"][..], &["run", "--stages", "tokens,mail"]] {
        assert_eq!(pushcast(line, &[]).status.code(), Some(2), "{line:?}");
    }
}

#[test]
fn the_help_tells_the_exit_codes() {
    let help = pushcast(&["--help"], &[]);
    assert!(text(&help.stdout).contains("Exit codes: 0 done, 1 failed, 2 invalid"), "{}", text(&help.stdout));
}

#[test]
fn a_valid_configuration_is_said_to_be_fine() {
    let ended = pushcast(
        &["check"],
        &[("PUSHCAST__EXPO__RATE_PER_SECOND", "300"), ("PUSHCAST__EXPO__ACCESS_TOKEN", "S3CRET")],
    );
    let said = text(&ended.stdout);
    assert!(said.contains("expo.rate_per_second = 300 (PUSHCAST__EXPO__RATE_PER_SECOND)"), "{said}");
    assert!(!said.contains("S3CRET") && !text(&ended.stderr).contains("S3CRET"), "{said}");
}

#[test]
fn produce_writes_what_stands_before_a_bad_line_and_nothing_behind_it() {
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
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("2 records were written to t, but not all") && said.contains("line 4: no \":\" in it"),
        "{said}"
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
    // Not for its own sake: `check` waits ten seconds for a Kafka that is away.
    let broker = topology::embedded_broker(16).unwrap();
    let check = async || {
        let (account, servers) = (account.to_str().unwrap().to_owned(), broker.bootstrap_servers());
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
    let said = check().await;
    assert!(said.contains("fcm            fine: its credentials got an OAuth token"), "{said}");

    sandbox.faults().change(|faults| faults.oauth.refused = true);
    let said = check().await;
    assert!(said.contains("fcm            Google refuses the service account: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_prints_what_the_instance_answers_and_fails_when_it_refuses() {
    let token = async |Path(token): Path<String>| (StatusCode::OK, Json(json!({ "asked": token })));
    let user = async |Path(_): Path<String>| {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "the store is away" })))
    };
    let routes =
        Router::new().route("/inspect/token/{token}", get(token)).route("/inspect/user/{user}", get(user));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asking = tokio::task::spawn_blocking(move || {
        let variables = [("PUSHCAST__HTTP__ADMIN_LISTEN", address.as_str())];
        (
            pushcast(&["inspect", "token", "ExponentPushToken[a/b]"], &variables),
            pushcast(&["inspect", "user", "ada"], &variables),
        )
    });
    let (answered, refused) = tokio::select! {
        ended = asking => ended.unwrap(),
        _ = axum::serve(listener, routes).into_future() => unreachable!("it serves for ever"),
    };
    assert_eq!(
        serde_json::from_slice::<Value>(&answered.stdout).unwrap(),
        json!({"asked": "ExponentPushToken[a/b]"})
    );
    assert_eq!((refused.status.code(), text(&refused.stderr)), (Some(1), "error: the store is away\n"));
}

#[test]
fn inspect_shows_no_token_when_nobody_answers() {
    // Port 1 of this machine: nobody listens there.
    let ended = pushcast(&["inspect", "--admin", "127.0.0.1:1", "token", "ExponentPushToken[ada]"], &[]);
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("no instance answers on 127.0.0.1:1") && !said.contains("ada"), "{said}");
}
