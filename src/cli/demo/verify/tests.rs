use pushcast::domain::{Counts, DeadToken, DoseOutcome, NotificationId, Token};

use super::*;
use crate::cli::demo::scenario::{Phone, ScenarioStep, dose_twice, post_for_all};

const AT: &str = "2026-11-20T01:00:00Z";

/// Four phones, one of them dead and one dead on receipt; a post; a dose that is published twice; a record
/// that is not JSON.
fn published() -> Expected {
    let registered = |number: u32, owner: &str| ScenarioStep::Registered {
        phone: Phone { provider: ProviderId::Expo, number },
        owner: Some(owner.to_owned()),
        previous: None,
    };
    let mut steps = vec![
        registered(0, "ann"),
        registered(13, "bob"),
        registered(29, "cat"),
        registered(3_000, "user-3000"),
    ];
    steps.push(post_for_all("walk", 9));
    steps.extend(dose_twice(AT.parse().unwrap()));
    steps.push(ScenarioStep::Unreadable);
    Expected::of(&steps)
}

/// What is found without any mismatch, written by hand.
fn found() -> Found {
    let push = |number: u32, name: &str| Push {
        provider: ProviderId::Expo,
        token: Phone { provider: ProviderId::Expo, number }.token(),
        name: name.to_owned(),
        at: AT.parse().unwrap(),
        text: String::new(),
    };
    let dead = |number: u32| DeadToken {
        token: Token::parse(&Phone { provider: ProviderId::Expo, number }.token()).unwrap(),
        provider: Some(ProviderId::Expo),
        reason: "DeviceNotRegistered".to_owned(),
        source: None,
        registration: None,
        detected_at: None,
    };
    let counts = |sent, dead| Counts { sent, dead, ..Counts::default() };
    let outcomes = vec![
        Report::Broadcast {
            notification: NotificationId::new("post:walk"),
            counts: counts(3, 1),
            at: AT.parse().unwrap(),
        },
        Report::Dose {
            notification: NotificationId::new(format!("dose:of-user-3000:twice:{AT}")),
            provider: Some(ProviderId::Expo),
            outcome: DoseOutcome::Sent,
            counts: counts(1, 0),
            at: AT.parse().unwrap(),
        },
    ];
    let expo = ProviderStatistics {
        taken: 4,
        distinct_tokens: 3,
        answers: [(Answer::Ok, 4), (Answer::Dead, 1)].into(),
        ..ProviderStatistics::default()
    };
    Found {
        pushes: vec![
            push(0, "post:walk"),
            push(29, "post:walk"),
            push(3_000, "post:walk"),
            push(3_000, "dose:twice"),
        ],
        statistics: Statistics { expo, ..Statistics::default() },
        collected: Collected { outcomes, invalid: vec![dead(13), dead(29)], dead_letters: 1 },
        census: vec![
            Census { provider: ProviderId::Expo, active: 2, inactive: 2 },
            Census { provider: ProviderId::Fcm, active: 0, inactive: 0 },
        ],
        lead: BTreeMap::new(),
    }
}

/// The mismatches after one change of what is found.
fn mismatches_with(change: impl FnOnce(&mut Found)) -> Vec<String> {
    let mut found = found();
    change(&mut found);
    verify(&published(), &found).iter().map(Mismatch::to_string).collect()
}

#[test]
fn what_is_as_expected_has_no_mismatch() {
    assert_eq!(mismatches_with(|_| {}), [""; 0]);
}

#[test]
fn an_outcome_published_twice_with_the_same_content_is_no_mismatch() {
    assert_eq!(
        mismatches_with(|found| found.collected.outcomes.extend(found.collected.outcomes.clone())),
        [""; 0]
    );
}

#[test]
fn a_message_that_is_missing_repeated_or_to_another_token_is_found() {
    let of_post = |missing, others, repeated| {
        [format!(
            "post:walk: expected 3 phones notified once, found {missing} of them not notified, \
             {others} others notified, {repeated} notified more than once"
        )]
    };
    assert_eq!(mismatches_with(|found| drop(found.pushes.remove(0))), of_post(1, 0, 0));
    assert_eq!(mismatches_with(|found| found.pushes.push(found.pushes[0].clone())), of_post(0, 0, 1));
    assert_eq!(
        mismatches_with(|found| found.pushes[0].token = "ExponentPushToken[else]".to_owned()),
        of_post(1, 1, 0)
    );
}

#[test]
fn a_notification_that_must_not_be_sent_is_found() {
    let mismatches = mismatches_with(|found| {
        found.pushes.push(Push { name: "dose:ended".to_owned(), ..found.pushes[0].clone() })
    });
    assert_eq!(
        mismatches,
        ["dose:ended: expected 0 phones notified once, found 0 of them not notified, \
             1 others notified, 0 notified more than once"]
    );
}

#[test]
fn a_different_count_of_the_sandbox_is_found() {
    assert_eq!(
        mismatches_with(|found| found.statistics.expo.taken = 5),
        ["messages that expo took: expected 4, found 5"]
    );
    assert_eq!(
        mismatches_with(|found| found.statistics.fcm.taken = 1),
        ["messages that fcm took: expected 0, found 1"]
    );
    assert_eq!(
        mismatches_with(|found| found.statistics.expo.distinct_tokens = 2),
        ["tokens that expo took messages for: expected 3, found 2"]
    );
    assert_eq!(
        mismatches_with(|found| found.statistics.expo.duplicates = 1),
        ["duplicates that expo saw: expected 0, found 1"]
    );
    assert_eq!(
        mismatches_with(|found| found.statistics.expo.answers.clear()),
        ["messages to dead tokens at expo: expected 1, found 0"]
    );
}

#[test]
fn a_rate_limit_that_is_exceeded_is_found_and_half_a_second_is_left_to_a_busy_machine() {
    let lead =
        |ms| mismatches_with(|found| found.lead.extend([(ProviderId::Expo, Duration::from_millis(ms))]));
    assert_eq!(lead(501), ["the rate at expo: expected kept, found messages came 501 ms too early"]);
    assert_eq!(lead(500), [""; 0]);
}

#[test]
fn a_store_with_other_tokens_is_found() {
    let active = |active| mismatches_with(|found| found.census[0].active = active);
    assert_eq!(active(3), ["tokens of expo in the store: expected 2 active, 2 not, found 3 active, 2 not"]);
    assert_eq!(
        mismatches_with(|found| found.census.truncate(1)),
        ["tokens of fcm in the store: expected 0 active, 0 not, found nothing"]
    );
}

#[test]
fn an_outcome_that_is_missing_wrong_or_unexpected_is_found() {
    let missing = mismatches_with(|found| drop(found.collected.outcomes.remove(0)));
    assert!(
        missing.len() == 1
            && missing[0].starts_with("the outcome of post:walk: ")
            && missing[0].ends_with("found none"),
        "{missing:?}"
    );
    let wrong = mismatches_with(|found| {
        let Report::Broadcast { counts, .. } = &mut found.collected.outcomes[0] else { panic!() };
        counts.expired = 1;
    });
    assert!(wrong.len() == 1 && wrong[0].contains("expired: 1"), "{wrong:?}");
    let unexpected = mismatches_with(|found| {
        let Report::Dose { provider, .. } = &mut found.collected.outcomes[1] else { panic!() };
        *provider = Some(ProviderId::Fcm);
    });
    assert_eq!(unexpected.len(), 2, "one is missing and one unexpected: {unexpected:?}");
}

#[test]
fn a_dead_token_that_is_not_published_and_a_live_one_that_is_are_found() {
    let missing = mismatches_with(|found| drop(found.collected.invalid.pop()));
    assert_eq!(
        missing,
        ["tokens in invalid-tokens: expected the 2 dead ones, found 1 of them missing, 0 others"]
    );
    let other = mismatches_with(|found| {
        let alive = Token::parse(&found.pushes[0].token).unwrap();
        found.collected.invalid.push(DeadToken { token: alive, ..found.collected.invalid[0].clone() });
    });
    assert_eq!(
        other,
        ["tokens in invalid-tokens: expected the 2 dead ones, found 0 of them missing, 1 others"]
    );
}

#[test]
fn an_unexpected_dead_letter_is_found() {
    assert_eq!(
        mismatches_with(|found| found.collected.dead_letters = 2),
        ["records in dead-letters: expected 1, found 2"]
    );
}
