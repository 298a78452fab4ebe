//! `pushcast produce TOPIC`: writes records where kcat is not installed.

use std::{future::ready, pin::pin};

use anyhow::Context;
use consumer::{Message, Producer, Publish};
use futures::{StreamExt, TryStreamExt, stream};
use pushcast::config::Config;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio_util::sync::CancellationToken;

/// Records that Kafka has not acknowledged yet.
const IN_FLIGHT: usize = 1_000;

/// Where to write.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic
    pub topic: String,

    /// The text between key and value of a line; without it records have no key. A key with an empty value
    /// makes a tombstone
    #[arg(long, value_name = "TEXT")]
    pub key_separator: Option<String>,
}

/// Writes each line of standard input as a record, and returns when Kafka has acknowledged the last one.
/// Empty lines are skipped. At an invalid line it stops: the lines before it are written, none behind it is.
/// When Kafka refuses a record, some behind it are in flight already: these are waited for and counted too.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    let producer = Producer::new(&config.kafka)?;
    let lines = BufReader::new(stdin()).lines();
    let lines = stream::try_unfold((lines, 1), |(mut lines, number)| async move {
        let line = lines.next_line().await.with_context(|| format!("line {number} can't be read"))?;
        anyhow::Ok(line.map(|line| ((number, line), (lines, number + 1))))
    });
    let stop = CancellationToken::new();
    let written = lines
        .try_filter(|(_, line)| ready(!line.is_empty()))
        .and_then(|(number, line)| {
            ready(
                message(&args, &line)
                    .map(|message| (number, message))
                    .with_context(|| format!("line {number}")),
            )
        })
        .take_until(stop.cancelled())
        .inspect_err(|_| stop.cancel())
        .map(|line| {
            let producer = producer.clone();
            async move {
                let (number, message) = line?;
                producer.publish(message).await.with_context(|| format!("line {number}"))
            }
        })
        .buffered(IN_FLIGHT);
    let mut written = pin!(written);
    let mut count = 0_usize;
    let mut failed = None;
    while let Some(result) = written.next().await {
        match result {
            Ok(()) => count += 1,
            Err(error) => {
                stop.cancel();
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        Some(error) => {
            Err(error.context(format!("{count} records were written to {}, but not all", args.topic)))
        }
        None => {
            eprintln!("{count} records written to {}", args.topic);
            Ok(())
        }
    }
}

fn message(args: &Args, line: &str) -> anyhow::Result<Message> {
    let Some(separator) = &args.key_separator else {
        return Ok(Message::new(args.topic.as_str(), None, line.into()));
    };
    let (key, value) =
        line.split_once(separator.as_str()).with_context(|| format!("no {separator:?} in it"))?;
    let value = Some(value.as_bytes().to_vec()).filter(|value| !value.is_empty());
    Ok(Message { value, ..Message::new(args.topic.as_str(), Some(key.to_owned()), Vec::new()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(separator: Option<&str>) -> Args {
        Args { topic: "t".into(), key_separator: separator.map(Into::into) }
    }

    #[test]
    fn a_line_is_a_value_and_with_a_separator_a_key_too() {
        assert_eq!(message(&args(None), "a:b").unwrap(), Message::new("t", None, b"a:b".to_vec()));
        assert_eq!(
            message(&args(Some(":")), "a:b").unwrap(),
            Message::new("t", Some("a".to_owned()), b"b".to_vec())
        );
        assert_eq!(message(&args(Some(":")), "a:").unwrap().value, None, "a tombstone");
        assert_eq!(
            message(&args(Some("|")), "a:b").unwrap_err().to_string(),
            r#"no "|" in it"#,
            "without the line, which may contain a token"
        );
    }
}
