use pushcast::domain::{Counts, DeadToken, DoseOutcome, NotificationId, Token};

use super::*;
use crate::cli::demo::scenario::{Phone, ScenarioStep, dose_twice, post_for_everybody};

const AT: &str = "2026-11-20T01:00:00Z";

/// Four phones, one of them dead and one a ghost; a post; a dose that comes twice; a line that makes no
/// sense.
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
    steps.push(post_for_everybody("walk", 9));
    steps.extend(dose_twice(AT.parse().unwrap()));
    steps.push(ScenarioStep::Unreadable);
    Expected::of(&steps)
}

/// What is found when all goes well, written down by hand.
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
        noted: Noted { outcomes, invalid: vec![dead(13), dead(29)], dead_letters: 1 },
        census: vec![
            Census { provider: ProviderId::Expo, active: 2, inactive: 2 },
            Census { provider: ProviderId::Fcm, active: 0, inactive: 0 },
        ],
        ahead: BTreeMap::new(),
    }
}

/// What is said when one thing is spoiled.
fn said(spoil: impl FnOnce(&mut Found)) -> Vec<String> {
    let mut found = found();
    spoil(&mut found);
    verify(&published(), &found).iter().map(Disagreement::to_string).collect()
}

#[test]
fn what_is_as_it_must_be_agrees() {
    assert_eq!(said(|_| {}), [""; 0]);
}

#[test]
fn an_outcome_told_twice_with_the_same_content_agrees() {
    assert_eq!(said(|found| found.noted.outcomes.extend(found.noted.outcomes.clone())), [""; 0]);
}

#[test]
fn a_message_too_few_too_many_or_to_somebody_else_is_found() {
    let rung = |missing, others, again| {
        [format!(
            "post:walk: expected 3 phones rung once, found {missing} of them not rung, {others} others rung, {again} rung more than once"
        )]
    };
    assert_eq!(said(|found| drop(found.pushes.remove(0))), rung(1, 0, 0));
    assert_eq!(said(|found| found.pushes.push(found.pushes[0].clone())), rung(0, 0, 1));
    assert_eq!(said(|found| found.pushes[0].token = "ExponentPushToken[else]".to_owned()), rung(1, 1, 0));
}

#[test]
fn a_notification_that_must_not_ring_is_found() {
    let said =
        said(|found| found.pushes.push(Push { name: "dose:ended".to_owned(), ..found.pushes[0].clone() }));
    assert_eq!(
        said,
        [
            "dose:ended: expected 0 phones rung once, found 0 of them not rung, 1 others rung, 0 rung more than once"
        ]
    );
}

#[test]
fn what_the_sandbox_counted_otherwise_is_found() {
    assert_eq!(
        said(|found| found.statistics.expo.taken = 5),
        ["messages that expo took: expected 4, found 5"]
    );
    assert_eq!(said(|found| found.statistics.fcm.taken = 1), ["messages that fcm took: expected 0, found 1"]);
    assert_eq!(
        said(|found| found.statistics.expo.distinct_tokens = 2),
        ["tokens that expo took messages for: expected 3, found 2"]
    );
    assert_eq!(
        said(|found| found.statistics.expo.duplicates = 1),
        ["doubles that expo saw: expected 0, found 1"]
    );
    assert_eq!(
        said(|found| found.statistics.expo.answers.clear()),
        ["messages to dead tokens at expo: expected 1, found 0"]
    );
}

#[test]
fn a_rate_that_is_not_kept_is_found_and_a_machine_that_stumbles_is_not_blamed() {
    let ahead = |ms| said(|found| found.ahead.extend([(ProviderId::Expo, Duration::from_millis(ms))]));
    assert_eq!(ahead(501), ["the rate at expo: expected kept, found messages came 501 ms too early"]);
    assert_eq!(ahead(500), [""; 0]);
}

#[test]
fn a_store_that_holds_something_else_is_found() {
    let active = |active| said(|found| found.census[0].active = active);
    assert_eq!(active(3), ["tokens of expo in the store: expected 2 active, 2 not, found 3 active, 2 not"]);
    assert_eq!(
        said(|found| found.census.truncate(1)),
        ["tokens of fcm in the store: expected 0 active, 0 not, found nothing"]
    );
}

#[test]
fn an_outcome_that_is_missing_wrong_or_of_nothing_is_found() {
    let missing = said(|found| drop(found.noted.outcomes.remove(0)));
    assert!(
        missing.len() == 1
            && missing[0].starts_with("the outcome of post:walk: ")
            && missing[0].ends_with("found none"),
        "{missing:?}"
    );
    let wrong = said(|found| {
        let Report::Broadcast { counts, .. } = &mut found.noted.outcomes[0] else { panic!() };
        counts.expired = 1;
    });
    assert!(wrong.len() == 1 && wrong[0].contains("expired: 1"), "{wrong:?}");
    let of_nothing = said(|found| {
        let Report::Dose { provider, .. } = &mut found.noted.outcomes[1] else { panic!() };
        *provider = Some(ProviderId::Fcm);
    });
    assert_eq!(of_nothing.len(), 2, "the one that is missing and the one too many: {of_nothing:?}");
}

#[test]
fn a_dead_token_that_is_untold_and_one_that_lives_and_is_told_are_found() {
    let untold = said(|found| drop(found.noted.invalid.pop()));
    assert_eq!(
        untold,
        ["tokens in invalid-tokens: expected the 2 dead ones, found 1 of them untold, 0 others told"]
    );
    let slandered = said(|found| {
        let alive = Token::parse(&found.pushes[0].token).unwrap();
        found.noted.invalid.push(DeadToken { token: alive, ..found.noted.invalid[0].clone() });
    });
    assert_eq!(
        slandered,
        ["tokens in invalid-tokens: expected the 2 dead ones, found 0 of them untold, 1 others told"]
    );
}

#[test]
fn a_dead_letter_too_many_is_found() {
    assert_eq!(said(|found| found.noted.dead_letters = 2), ["records in dead-letters: expected 1, found 2"]);
}
