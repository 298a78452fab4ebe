//! Regimens, the due queue, its watermarks, and claims.

use futures::future::join_all;
use jiff::{
    civil::{Weekday, date, time},
    tz::TimeZone,
};
use pushcast::{
    domain::{
        Counts, DoseKey, DoseOutcome, DueRow, EveryDay, ProfileId, ProviderId, Regimen, RegimenId, Rule,
        Timestamp,
    },
    store::{Claim, Claimed, DoseMark, Doses, Lease, Marked, Shard, Store, Watermark, Watermarks},
};

use super::{at, user, v};

fn regimen(dosage: &str) -> Regimen {
    Regimen {
        profile: ProfileId::new("pr1"),
        user: user("ann"),
        medicine_name: "Metformin".to_owned(),
        dosage: dosage.to_owned(),
        timezone: TimeZone::get("Asia/Bangkok").unwrap(),
        rule: Rule::Times { times: vec![time(8, 0, 0, 0), time(20, 30, 0, 0)], days: EveryDay::Nth(1) },
        start_date: date(2026, 11, 1),
        end_date: None,
        enabled: true,
    }
}

fn id(name: &str) -> RegimenId {
    RegimenId::new(name)
}

pub async fn a_regimen_is_read_as_it_was_written(store: &impl Store) {
    let rules = [
        Rule::Times { times: vec![time(0, 0, 0, 0)], days: EveryDay::Nth(14) },
        Rule::Times {
            times: vec![time(7, 5, 0, 0), time(23, 59, 0, 0)],
            days: EveryDay::Weekdays(vec![Weekday::Monday, Weekday::Sunday]),
        },
        Rule::Rrule { text: "FREQ=MONTHLY;BYDAY=1MO,-1FR".to_owned(), times: vec![time(9, 0, 0, 0)] },
        Rule::Rrule { text: "FREQ=DAILY;INTERVAL=2;BYHOUR=8;BYMINUTE=30".to_owned(), times: vec![] },
    ];
    for (n, rule) in (0..).zip(rules) {
        let written = Regimen {
            rule,
            end_date: Some(date(2027, 2, 28)),
            enabled: n % 2 == 0,
            ..regimen("½ tablet; \"chewed\"")
        };
        store.put_regimen(&id("r1"), Some(&written), v(n)).await.unwrap();
        assert_eq!(store.regimen(&id("r1")).await.unwrap(), Some(written));
    }
    let elsewhere = Regimen { timezone: TimeZone::UTC, ..regimen("1") };
    store.put_regimen(&id("r2"), Some(&elsewhere), v(1)).await.unwrap();
    assert_eq!(store.regimen(&id("r2")).await.unwrap(), Some(elsewhere));
    assert_eq!(store.regimen(&id("r3")).await.unwrap(), None);
}

pub async fn an_older_definition_changes_nothing(store: &impl Store) {
    store.put_regimen(&id("r1"), Some(&regimen("new")), v(5)).await.unwrap();
    store.put_regimen(&id("r1"), Some(&regimen("old")), v(4)).await.unwrap();
    store.put_regimen(&id("r1"), None, v(3)).await.unwrap();
    assert_eq!(store.regimen(&id("r1")).await.unwrap(), Some(regimen("new")));
    // Of equal versions the same one wins, whichever came first.
    for (name, first, second) in [("r2", "a", "b"), ("r3", "b", "a")] {
        store.put_regimen(&id(name), Some(&regimen(first)), v(1)).await.unwrap();
        store.put_regimen(&id(name), Some(&regimen(second)), v(1)).await.unwrap();
    }
    assert_eq!(store.regimen(&id("r2")).await.unwrap(), store.regimen(&id("r3")).await.unwrap());
}

pub async fn an_older_definition_does_not_restore_a_removed_regimen(store: &impl Store) {
    store.put_regimen(&id("r1"), None, v(5)).await.unwrap();
    store.put_regimen(&id("r1"), Some(&regimen("old")), v(4)).await.unwrap();
    assert_eq!(store.regimen(&id("r1")).await.unwrap(), None);
    store.put_regimen(&id("r1"), Some(&regimen("new")), v(6)).await.unwrap();
    assert_eq!(store.regimen(&id("r1")).await.unwrap(), Some(regimen("new")));
}

pub async fn the_pages_of_regimens_contain_each_of_them_once(store: &impl Store) {
    for n in 0..25 {
        store.put_regimen(&id(&format!("r{n:02}")), Some(&regimen(&n.to_string())), v(1)).await.unwrap();
    }
    store.put_regimen(&id("r07"), None, v(2)).await.unwrap();
    store.put_regimen(&id("r08"), Some(&Regimen { enabled: false, ..regimen("8") }), v(2)).await.unwrap();
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = store.regimens(after.as_ref(), 4).await.unwrap();
        assert!(page.len() <= 4);
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        found.extend(page);
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected: Vec<RegimenId> = (0..25).filter(|n| *n != 7).map(|n| id(&format!("r{n:02}"))).collect();
    assert_eq!(found.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), expected);
    assert!(found.iter().all(|(id, regimen)| id.as_str() == format!("r{:0>2}", regimen.dosage)));
}

fn due(n: i64, regimen: &str) -> DueRow {
    DueRow { due_at: at(n), regimen: id(regimen), payload: None }
}

const SHARD: Shard = Shard(7);

pub async fn due_rows_are_ordered_by_time_and_regimen(store: &impl Store) {
    for row in [due(3, "b"), due(2, "z"), due(3, "a"), due(1, "a"), due(4, "a")] {
        store.insert_due(SHARD, &row).await.unwrap();
    }
    let rows = store.due_rows(SHARD, at(1), at(3), None, 10).await.unwrap();
    assert_eq!(
        rows,
        [due(2, "z"), due(3, "a"), due(3, "b")],
        "after the first time, up to and with the second"
    );
    assert_eq!(store.due_rows(SHARD, at(4), at(9), None, 10).await.unwrap(), []);
}

pub async fn pages_of_due_rows_miss_none_and_repeat_none(store: &impl Store) {
    // Over several hours, so that a store with hourly buckets reads several of them.
    let all: Vec<DueRow> = (0..60).map(|n| due(n / 5 * 200_000, &format!("r{n:02}"))).collect();
    join_all(all.iter().map(|row| async { store.insert_due(SHARD, row).await.unwrap() })).await;
    for limit in [1, 3, 7, 100] {
        let mut found: Vec<DueRow> = Vec::new();
        loop {
            let page = store.due_rows(SHARD, at(-1), at(3_000_000), found.last(), limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        assert_eq!(found, all, "by {limit}");
    }
}

pub async fn the_same_due_row_twice_is_one(store: &impl Store) {
    for _ in 0..2 {
        store.insert_due(SHARD, &due(2, "a")).await.unwrap();
    }
    assert_eq!(store.due_rows(SHARD, at(0), at(9), None, 10).await.unwrap(), [due(2, "a")]);
}

pub async fn due_rows_stay_in_their_shard(store: &impl Store) {
    store.insert_due(Shard(8), &due(2, "a")).await.unwrap();
    assert_eq!(store.due_rows(SHARD, at(0), at(9), None, 10).await.unwrap(), []);
}

pub async fn a_due_row_keeps_its_payload(store: &impl Store) {
    let upstream = DueRow { payload: Some(r#"{"dose":{"dosage":"1 ml"}}"#.to_owned()), ..due(2, "a") };
    store.insert_due(SHARD, &upstream).await.unwrap();
    assert_eq!(store.due_rows(SHARD, at(0), at(9), None, 10).await.unwrap(), [upstream]);
}

pub async fn the_error_of_missing_watermarks_names_the_command_that_writes_them(store: &impl Store) {
    let missing = store.marks(SHARD).await.unwrap_err();
    assert!(missing.to_string().contains("pushcast init"), "{missing}");
}

pub async fn watermarks_only_rise(store: &impl Store) {
    store.init_marks(at(10)).await.unwrap();
    for shard in Shard::all() {
        assert_eq!(store.marks(shard).await.unwrap(), Watermarks { read: at(10), dispatched: at(10) });
    }
    store.raise(SHARD, Watermark::Read, at(30)).await.unwrap();
    store.raise(SHARD, Watermark::Read, at(20)).await.unwrap();
    store.raise(SHARD, Watermark::Dispatched, at(15)).await.unwrap();
    store.raise(SHARD, Watermark::Dispatched, at(5)).await.unwrap();
    assert_eq!(store.marks(SHARD).await.unwrap(), Watermarks { read: at(30), dispatched: at(15) });
    assert_eq!(store.marks(Shard(8)).await.unwrap(), Watermarks { read: at(10), dispatched: at(10) });
}

pub async fn a_watermark_that_many_raise_at_once_ends_at_the_highest(store: &impl Store) {
    store.init_marks(at(0)).await.unwrap();
    join_all(
        (0..50_i64)
            .map(|n| async move { store.raise(SHARD, Watermark::Read, at(n * 17 % 50)).await.unwrap() }),
    )
    .await;
    assert_eq!(store.marks(SHARD).await.unwrap().read, at(49));
}

pub async fn writing_the_first_watermarks_again_changes_nothing(store: &impl Store) {
    store.init_marks(at(10)).await.unwrap();
    store.raise(SHARD, Watermark::Dispatched, at(12)).await.unwrap();
    store.init_marks(at(99)).await.unwrap();
    assert_eq!(store.marks(SHARD).await.unwrap(), Watermarks { read: at(10), dispatched: at(12) });
    assert_eq!(store.marks(Shard(8)).await.unwrap(), Watermarks { read: at(10), dispatched: at(10) });
}

fn dose(provider: ProviderId) -> DoseKey {
    DoseKey { profile: ProfileId::new("pr1"), regimen: id("r1"), schedule_time: at(0), provider }
}

async fn claim(store: &impl Doses, owner: &str, now: i64, until: i64) -> Claim {
    store.claim(&dose(ProviderId::Expo), owner, at(now), at(until)).await.unwrap()
}

fn mine(owner: &str, attempt: i32, until: i64) -> Claim {
    Claim::Mine(Lease { owner: owner.to_owned(), attempt, until: at(until) })
}

fn lease(claim: Claim) -> Lease {
    match claim {
        Claim::Mine(lease) => lease,
        other => panic!("not ours: {other:?}"),
    }
}

fn sent(at: Timestamp) -> DoseMark {
    DoseMark { outcome: DoseOutcome::Sent, counts: Counts { sent: 2, dead: 1, ..Counts::default() }, at }
}

async fn mark(store: &impl Doses, lease: &Lease, at: Timestamp) -> Marked {
    store.mark(&dose(ProviderId::Expo), lease, &sent(at)).await.unwrap()
}

pub async fn the_first_claim_wins_until_its_lease_ends(store: &impl Store) {
    assert_eq!(claim(store, "a", 0, 10).await, mine("a", 1, 10));
    assert_eq!(claim(store, "b", 5, 15).await, Claim::Held(at(10)));
    assert_eq!(
        claim(store, "b", 10, 20).await,
        Claim::Held(at(10)),
        "the last moment still belongs to the lease"
    );
    assert_eq!(claim(store, "b", 11, 21).await, mine("b", 2, 21));
    assert_eq!(claim(store, "a", 12, 22).await, Claim::Held(at(21)));
}

pub async fn an_owner_renews_its_claim(store: &impl Store) {
    claim(store, "a", 0, 10).await;
    assert_eq!(claim(store, "a", 5, 15).await, mine("a", 2, 15));
    assert_eq!(claim(store, "b", 12, 22).await, Claim::Held(at(15)));
}

pub async fn a_marked_dose_cannot_be_claimed(store: &impl Store) {
    let own = lease(claim(store, "a", 0, 10).await);
    assert_eq!(mark(store, &own, at(3)).await, Marked::Kept);
    for owner in ["a", "b"] {
        assert_eq!(claim(store, owner, 50, 60).await, Claim::Marked(sent(at(3))));
    }
}

pub async fn a_claim_that_was_taken_over_cannot_mark(store: &impl Store) {
    let stale = lease(claim(store, "a", 0, 10).await);
    let renewed = lease(claim(store, "b", 11, 21).await);
    assert_eq!(mark(store, &stale, at(12)).await, Marked::Lost);
    assert_eq!(mark(store, &renewed, at(13)).await, Marked::Kept);
    let older = Lease { attempt: 1, ..renewed };
    let other = dose(ProviderId::Fcm);
    assert_eq!(store.mark(&other, &older, &sent(at(14))).await.unwrap(), Marked::Lost, "never claimed");
}

pub async fn a_repeated_mark_is_kept(store: &impl Store) {
    let own = lease(claim(store, "a", 0, 10).await);
    for n in [3, 4] {
        assert_eq!(mark(store, &own, at(n)).await, Marked::Kept);
    }
}

pub async fn each_provider_has_a_claim_of_its_own(store: &impl Store) {
    claim(store, "a", 0, 10).await;
    let native = store.claim(&dose(ProviderId::Fcm), "b", at(1), at(11)).await.unwrap();
    assert_eq!(native, mine("b", 1, 11));
    let next = DoseKey { schedule_time: at(1), ..dose(ProviderId::Expo) };
    assert_eq!(store.claim(&next, "b", at(1), at(11)).await.unwrap(), mine("b", 1, 11));
}

pub async fn one_of_many_claimers_wins(store: &impl Store) {
    for round in 0..4 {
        // Each round begins after the leases of the one before.
        let now = round * 100;
        let owners: Vec<String> = (0..32).map(|n| format!("round {round} owner {n}")).collect();
        let claims = join_all(owners.iter().map(|owner| claim(store, owner, now, now + 50))).await;
        let won = claims.iter().filter(|claim| matches!(claim, Claim::Mine(_))).count();
        let held = claims.iter().filter(|claim| **claim == Claim::Held(at(now + 50))).count();
        assert_eq!((won, held), (1, 31), "round {round}");
    }
}

pub async fn a_claim_can_be_read_without_claiming_the_dose(store: &impl Store) {
    let key = DoseKey {
        profile: ProfileId::new("pr1"),
        regimen: id("r1"),
        schedule_time: at(100),
        provider: ProviderId::Fcm,
    };
    assert_eq!(store.claimed(&key).await.unwrap(), None);
    let Claim::Mine(lease) = store.claim(&key, "me", at(100), at(160)).await.unwrap() else {
        panic!("it is not claimed yet")
    };
    let claimed = Claimed { lease: lease.clone(), mark: None };
    assert_eq!(store.claimed(&key).await.unwrap(), Some(claimed.clone()));
    assert_eq!(store.claimed(&DoseKey { provider: ProviderId::Expo, ..key.clone() }).await.unwrap(), None);
    // Reading has taken nothing over, not even after the lease has ended.
    let mark =
        DoseMark { outcome: DoseOutcome::Sent, counts: Counts { sent: 2, ..Counts::default() }, at: at(101) };
    assert_eq!(store.mark(&key, &lease, &mark).await.unwrap(), Marked::Kept);
    assert_eq!(store.claimed(&key).await.unwrap(), Some(Claimed { mark: Some(mark), ..claimed }));
}
