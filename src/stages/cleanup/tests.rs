use std::sync::Mutex;

use consumer::Cause;

use super::*;
use crate::{
    domain::{Registration, Token, TokenChange, TokenHash, UserId, Version},
    stages::fakes::{handle, record, replayed},
    store::{Census, StoreError, TokenRow},
};

/// Records what is to be revoked, and revokes only `AAA`.
#[derive(Clone, Default)]
struct FakeRegistry(Arc<Mutex<Vec<(Judged, String)>>>);

impl Registry for FakeRegistry {
    async fn apply(&self, _: &TokenChange, _: Version) -> Result<(), StoreError> {
        unreachable!("this stage only revokes")
    }

    async fn tokens_of(&self, _: &UserId) -> Result<Vec<Registration>, StoreError> {
        unreachable!("this stage only revokes")
    }

    async fn revoke(&self, token: &Token, judged: Judged, reason: &str) -> Result<bool, StoreError> {
        self.0.lock().unwrap().push((judged, reason.to_owned()));
        Ok(token.as_str() == "ExponentPushToken[AAA]")
    }

    async fn inspect(&self, _: &Token) -> Result<Option<TokenRow>, StoreError> {
        unreachable!("this stage only revokes")
    }

    async fn inspect_hash(&self, _: TokenHash) -> Result<Option<TokenRow>, StoreError> {
        unreachable!("this stage only revokes")
    }

    async fn census(&self) -> Result<Vec<Census>, StoreError> {
        unreachable!("this stage only revokes")
    }
}

async fn judged_by(record: &Record) -> Judged {
    let registry = FakeRegistry::default();
    let stage = Cleanup::new(registry.clone(), Arc::new(Metrics::new()));
    assert_eq!(handle(&stage, record, &CancellationToken::default()).await.unwrap(), Fate::Done);
    let judged: Vec<_> = registry.0.lock().unwrap().iter().map(|(judged, _)| *judged).collect();
    judged[0]
}

#[tokio::test]
async fn a_verdict_is_about_the_registration_that_it_names() {
    let line = concat!(
        r#"{"token":"ExponentPushToken[AAA]","reason":"DeviceNotRegistered","registration":42,"#,
        r#""detectedAt":"2026-11-20T00:00:00Z"}"#
    );
    assert_eq!(judged_by(&record(line)).await, Judged::Registration(Version::from_i64(42)));
}

#[tokio::test]
async fn a_verdict_of_another_system_is_about_the_earlier_of_its_two_times() {
    let at = |text: &str| Judged::AsOf(text.parse().unwrap());
    let line = |detected_at| {
        record(&format!(r#"{{"token":"ExponentPushToken[AAA]","reason":"gone"{detected_at}}}"#))
    };
    assert_eq!(judged_by(&line("")).await, at("2026-11-20T01:00:00Z"));
    assert_eq!(judged_by(&line(r#","detectedAt":"2026-11-20T00:00:00Z""#)).await, at("2026-11-20T00:00:00Z"));
    assert_eq!(judged_by(&line(r#","detectedAt":"2030-01-01T00:00:00Z""#)).await, at("2026-11-20T01:00:00Z"));
    // A replay is as old as its original, or it would revoke tokens that were registered again since.
    assert_eq!(judged_by(&replayed(line(""), "1700000000000", "3")).await, at("2023-11-14T22:13:20Z"));
}

#[tokio::test]
async fn the_revoked_and_the_spared_are_counted() {
    let metrics = Arc::new(Metrics::new());
    let stage = Cleanup::new(FakeRegistry::default(), metrics.clone());
    for token in ["AAA", "BBB", "CCC"] {
        let line = format!(r#"{{"token":"ExponentPushToken[{token}]","reason":"gone"}}"#);
        assert_eq!(handle(&stage, &record(&line), &CancellationToken::default()).await.unwrap(), Fate::Done);
    }
    let count = |change| metrics.token_changes_total.with_label_values(&[change]).get();
    assert_eq!((count("revoked"), count("spared")), (1, 2));
}

#[tokio::test]
async fn a_verdict_without_a_reason_is_a_dead_letter() {
    let stage = Cleanup::new(FakeRegistry::default(), Arc::new(Metrics::new()));
    let record = record(r#"{"token":"ExponentPushToken[AAA]"}"#);
    let fate = handle(&stage, &record, &CancellationToken::default()).await.unwrap();
    assert_eq!(fate, Fate::DeadLetter(Cause::unreadable("missing field `reason`")));
}
