//! `pushcast sandbox`: fakes of Expo and FCM, and with `--kafka` an embedded broker.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use pushcast::topology;
use sandbox::{Options, Sandbox};
use tokio_util::sync::CancellationToken;

/// What to fake, and where.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The address that the fake services listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8085")]
    pub listen: SocketAddr,

    /// The origin at which clients reach it, if that is not the address that it listens on, like
    /// http://sandbox:8085
    #[arg(long, value_name = "URL", value_parser = origin)]
    pub url: Option<String>,

    /// Run an embedded Kafka broker too, with all topics; it keeps its records in memory only
    #[arg(long)]
    pub kafka: bool,

    /// How many of the latest messages GET /sandbox/messages shows
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    pub remember: usize,

    /// Write the service account of the fake FCM to this file
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
}

/// Serves until `stop`.
pub async fn run(args: Args, partitions: i32, stop: CancellationToken) -> anyhow::Result<()> {
    let options =
        Options { listen: args.listen, url: args.url, remember: args.remember, ..Options::default() };
    let sandbox = Sandbox::start(options)
        .await
        .with_context(|| format!("--listen: can't listen on {}", args.listen))?;
    let broker = if args.kafka { Some(topology::embedded_broker(partitions)?) } else { None };
    println!("PUSHCAST__EXPO__URL={}", sandbox.expo_url());
    println!("PUSHCAST__FCM__URL={}", sandbox.fcm_url());
    if let Some(path) = &args.credentials {
        std::fs::write(path, sandbox.service_account())
            .with_context(|| format!("--credentials: can't write {}", path.display()))?;
        println!("PUSHCAST__FCM__CREDENTIALS_FILE={}", path.display());
    }
    if let Some(broker) = &broker {
        println!("PUSHCAST__KAFKA__BOOTSTRAP_SERVERS={}", broker.bootstrap_servers());
    }
    eprintln!(
        "serving; statistics at {}/sandbox/statistics, faults at {}/sandbox/faults",
        sandbox.url(),
        sandbox.url()
    );
    stop.cancelled().await;
    sandbox.stop().await;
    Ok(())
}

/// An origin without a trailing slash: the paths that are appended begin with one.
fn origin(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).map_err(|err| err.to_string())?;
    let is_origin = matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none();
    if is_origin {
        Ok(url.origin().ascii_serialization())
    } else {
        Err("expected http:// or https://, a host, an optional port, and no path".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_path_and_no_trailing_slash() {
        assert_eq!(origin("http://sandbox:8085/"), Ok("http://sandbox:8085".to_owned()));
        assert_eq!(origin("https://sandbox"), Ok("https://sandbox".to_owned()));
        for wrong in ["sandbox:8085", "http://sandbox/path", "http://sandbox/?a=b", "ftp://sandbox", ""] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }
}
