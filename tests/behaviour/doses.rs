//! Doses: at their time, on every device, once, and never when they are not due.

use std::collections::BTreeMap;

use jiff::{ToSpan as _, tz::TimeZone};
use pushcast::domain::{DoseOutcome, ProviderId, Report, Timestamp};
use serde_json::{Value, json};

use crate::world::{Phone, World, dose_id, dose_tick, story, until};

/// Outcome and number of messages sent, by provider.
fn outcomes(w: &World, id: &str) -> BTreeMap<Option<&'static str>, (DoseOutcome, u64)> {
    let reports = w.outcomes_of(id).into_iter();
    let of_dose = reports.filter_map(|report| match report {
        Report::Dose { provider, outcome, counts, .. } => {
            Some((provider.map(ProviderId::label), (outcome, counts.sent)))
        }
        Report::Broadcast { .. } => None,
    });
    of_dose.collect()
}

/// A regimen of one dose a day at the minute of `at` in UTC, written ten minutes before: it was due then.
async fn regimen_was_written(w: &World, user: &str, at: Timestamp, more: Value) {
    let time = at.to_zoned(TimeZone::UTC).strftime("%H:%M").to_string();
    let mut regimen = json!({
        "regimenId": format!("{user}s-regimen"), "profileId": "pr1", "userId": user, "medicineName": "Metformin", "dosage": "500 mg",
        "timezone": "UTC", "times": [time], "startDate": "2020-01-01",
    });
    regimen.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let before = (at - 10.minutes()).as_millisecond();
    w.neighbour.writes("medication-regimens", None, Some(regimen.to_string().as_bytes()), Some(before)).await;
}

/// The second that has just begun: what a schedule speaks of.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

/// The last full minute but five.
fn five_minutes_ago() -> Timestamp {
    Timestamp::from_second((Timestamp::now().as_second() / 60 - 5) * 60).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dose_rings_once_on_all_phones_though_its_tick_came_twice() {
    story()
        .with_fcm()
        .tell(async |w| {
            let phones = [Phone::expo("pats-phone"), Phone::expo("pats-tablet"), Phone::fcm("pats-watch")];
            for phone in &phones {
                w.registers("pat", phone).await;
            }
            let at = now();
            w.neighbour
                .writes_all("medication-ticks", (0..2).map(|_| dose_tick("pat", at).to_string()))
                .await;
            for phone in &phones {
                w.rings(phone).await;
            }
            w.dose_is_due("pat", at).await;
            w.settles().await;

            assert_eq!(phones.each_ref().map(|phone| w.rung(phone).len()), [1, 1, 1]);
            assert_eq!(w.heard(&phones[0])[0].title.as_deref(), Some("Time for Metformin"));
            let sent = |n| (DoseOutcome::Sent, n);
            assert_eq!(
                outcomes(w, &dose_id("pat", at)),
                BTreeMap::from([(Some("expo"), sent(2)), (Some("fcm"), sent(1))])
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dose_that_upstream_announces_rings_at_its_time() {
    story()
        .set("medication.tick_every", "1s")
        .tell(async |w| {
            let phone = Phone::expo("pats");
            w.registers("pat", &phone).await;
            let at = now() + 3.seconds();
            w.dose_is_due("pat", at).await;
            w.rings(&phone).await;
            assert!(w.heard(&phone)[0].received_at >= at, "not before its time");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regimens_dose_rings_and_one_past_its_end_date_does_not() {
    story()
        .set("medication.tick_every", "1s")
        .tell(async |w| {
            let (pats, quints) = (Phone::expo("pats"), Phone::expo("quints"));
            w.registers("pat", &pats).await;
            w.registers("quint", &quints).await;
            let at = five_minutes_ago();
            let day_before = at.to_zoned(TimeZone::UTC).date().yesterday().unwrap();
            regimen_was_written(w, "quint", at, json!({ "endDate": day_before.to_string() })).await;
            regimen_was_written(w, "pat", at, json!({ "endDate": null })).await;

            w.rings(&pats).await;
            w.settles().await;
            assert_eq!((w.rung(&pats).len(), w.rung(&quints).len()), (1, 0));
            assert_eq!(w.heard(&pats)[0].data, json!({"screen": "medication", "regimen_id": "pats-regimen"}));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_regimen_and_one_switched_off_do_not_ring() {
    story()
        .tell(async |w| {
            let phones = [Phone::expo("removed"), Phone::expo("off"), Phone::expo("on")];
            for (user, phone) in ["rob", "olga", "pat"].iter().zip(&phones) {
                w.registers(user, phone).await;
            }
            let at = five_minutes_ago();
            // The removal is the later word, although it comes first.
            w.says("medication-regimens", &json!({"event": "removed", "regimenId": "robs-regimen"})).await;
            w.settles().await;
            regimen_was_written(w, "rob", at, json!({})).await;
            regimen_was_written(w, "olga", at, json!({"enabled": false})).await;
            regimen_was_written(w, "pat", at, json!({})).await;

            w.rings(&phones[2]).await;
            w.settles().await;
            assert_eq!(phones.each_ref().map(|phone| w.rung(phone).len()), [0, 0, 1]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_dose_is_missed_and_a_user_without_tokens_has_none() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("pats");
            w.registers("pat", &phone).await;
            let (late, now) = (now() - 2.hours(), now());
            w.dose_is_due("pat", late).await;
            w.dose_is_due("nobody", now).await;

            w.report_of(&dose_id("pat", late)).await;
            w.report_of(&dose_id("nobody", now)).await;
            assert_eq!(
                outcomes(w, &dose_id("pat", late)),
                BTreeMap::from([(None, (DoseOutcome::Missed, 0))])
            );
            assert_eq!(
                outcomes(w, &dose_id("nobody", now)),
                BTreeMap::from([(None, (DoseOutcome::NoTokens, 0))])
            );
            assert_eq!(w.rung(&phone), [""; 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dose_while_the_provider_is_away_rings_once_it_is_back() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("pats");
            w.registers("pat", &phone).await;
            let down = sandbox::Outage { requests: Some(2), ..Default::default() };
            w.faults(|faults| faults.expo.down = Some(down));
            let at = now();
            w.dose_is_due("pat", at).await;
            until("the dose to be refused", async || {
                w.sandbox.statistics().expo.statuses.contains_key(&503).then_some(())
            })
            .await;
            w.dose_is_due("pat", at).await;
            w.rings(&phone).await;
            w.settles().await;
            assert_eq!(w.rung(&phone).len(), 1);
        })
        .await;
}
