//! Logs: tracing to stderr, as text or as JSON.
//!
//! **Invariant:** the OAuth library never logs below info, with any filter: at debug it writes access tokens.

use std::io;

use serde::Deserialize;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterFn, ParseError, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// For log lines that an outage would repeat for every record. The type lives in the runtime's crate, because
/// the runtime needs it too.
pub use consumer::LogThrottle;

/// `[log]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub filter: String,
    pub format: Format,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line of text for each event.
    Text,
    /// One JSON object a line.
    Json,
}

/// Targets that log secrets below info.
const NEVER_BELOW_INFO: [&str; 1] = ["yup_oauth2"];

/// Targets with too many events below info: only logged if the filter names them.
const NOISY: [&str; 8] = ["hyper", "hyper_util", "h2", "reqwest", "rustls", "tower", "rdkafka", "librdkafka"];

/// The filter of these settings.
///
/// # Errors
/// It can't be parsed.
pub fn filter(settings: &Settings) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(&settings.filter)
}

/// Installs the global subscriber, which writes to stderr.
///
/// # Errors
/// The filter can't be parsed, or a subscriber is installed already.
pub fn init(settings: &Settings) -> anyhow::Result<()> {
    Ok(subscriber(settings, io::stderr)?.try_init()?)
}

fn subscriber<W>(
    settings: &Settings,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match settings.format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok(tracing_subscriber::registry().with(filter(settings)?).with(cap(&settings.filter)).with(lines))
}

/// Suppresses events below info of [`NOISY`] targets that the filter does not name, and of
/// [`NEVER_BELOW_INFO`].
fn cap(filter: &str) -> FilterFn<impl Fn(&Metadata<'_>) -> bool + 'static> {
    let capped: Vec<&str> =
        NOISY.into_iter().filter(|name| !names(filter, name)).chain(NEVER_BELOW_INFO).collect();
    filter_fn(move |event| {
        *event.level() <= Level::INFO || !capped.iter().any(|name| belongs_to(event.target(), name))
    })
}

/// Whether a filter has a directive for this target.
fn names(filter: &str, target: &str) -> bool {
    filter
        .split(',')
        .any(|directive| belongs_to(directive.trim().split(['=', '[']).next().unwrap_or_default(), target))
}

fn belongs_to(target: &str, name: &str) -> bool {
    target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The output of a subscriber with these settings for these `events`.
    fn written(filter: &str, format: Format, events: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Memory(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Memory {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let memory = Memory::default();
        let settings = Settings { filter: filter.to_owned(), format };
        let writer = memory.clone();
        tracing::subscriber::with_default(subscriber(&settings, move || writer.clone()).unwrap(), events);
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    fn everything_at_debug() {
        tracing::debug!(target: "yup_oauth2::authenticator", "access token ya29");
        tracing::debug!(target: "h2::proto", "a frame");
        tracing::debug!(target: "pushcast::dispatch", "a page");
    }

    #[test]
    fn an_access_token_is_not_logged_even_when_the_filter_asks_for_it() {
        for filter in ["trace", "yup_oauth2=trace", "yup_oauth2::authenticator=trace,debug"] {
            assert!(!written(filter, Format::Text, everything_at_debug).contains("ya29"), "{filter}");
        }
    }

    #[test]
    fn noisy_targets_are_logged_below_info_only_if_the_filter_names_them() {
        let general = written("debug", Format::Text, everything_at_debug);
        assert!(general.contains("a page") && !general.contains("a frame"), "{general}");
        let named = written("debug,h2=debug", Format::Text, everything_at_debug);
        assert!(named.contains("a frame"), "{named}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let line = written("info", Format::Json, || tracing::info!(answer = 42, "hello"));
        let object: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!((&object["message"], &object["answer"]), (&"hello".into(), &42.into()));
    }

    #[test]
    fn a_filter_with_an_unknown_level_is_refused() {
        assert!(filter(&Settings { filter: "pushcast=loud".to_owned(), format: Format::Text }).is_err());
    }
}
