//! Reminders of doses: at their time, to every device, once, and never when none is due.

use std::collections::BTreeMap;

use jiff::{ToSpan as _, tz::TimeZone};
use pushcast::domain::{DoseOutcome, ProviderId, Report, Timestamp};
use serde_json::{Value, json};

use crate::world::{Phone, World, dose_id, dose_tick, until, world};

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

/// A regimen of one dose a day at the minute of `at` in UTC, written ten minutes before that.
async fn write_regimen(w: &World, user: &str, at: Timestamp, more: Value) {
    let time = at.to_zoned(TimeZone::UTC).strftime("%H:%M").to_string();
    let mut regimen = json!({
        "regimenId": format!("{user}s-regimen"),
        "profileId": "pr1",
        "userId": user,
        "medicineName": "Metformin",
        "dosage": "500 mg",
        "timezone": "UTC",
        "times": [time],
        "startDate": "2020-01-01",
    });
    regimen.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let before = (at - 10.minutes()).as_millisecond();
    w.kafka.produce("medication-regimens", None, Some(regimen.to_string().as_bytes()), Some(before)).await;
}

/// The current second, without its fraction, as schedules have it.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

/// The start of a minute, five minutes ago.
fn five_minutes_ago() -> Timestamp {
    Timestamp::from_second((Timestamp::now().as_second() / 60 - 5) * 60).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reminder_is_sent_once_to_every_device_though_its_tick_came_twice() {
    world()
        .with_fcm()
        .run(async |w| {
            let phones = [Phone::expo("pats-phone"), Phone::expo("pats-tablet"), Phone::fcm("pats-watch")];
            for phone in &phones {
                w.register("pat", phone).await;
            }
            let at = now();
            w.kafka.produce_all("medication-ticks", (0..2).map(|_| dose_tick("pat", at).to_string())).await;
            for phone in &phones {
                w.wait_until_sent_to(phone).await;
            }
            w.dose_is_due("pat", at).await;
            w.wait_until_settled().await;

            assert_eq!(phones.each_ref().map(|phone| w.sent_to(phone).len()), [1, 1, 1]);
            assert_eq!(w.messages_to(&phones[0])[0].title.as_deref(), Some("Time for Metformin"));
            let sent = |n| (DoseOutcome::Sent, n);
            assert_eq!(
                outcomes(w, &dose_id("pat", at)),
                BTreeMap::from([(Some("expo"), sent(2)), (Some("fcm"), sent(1))])
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dose_that_upstream_announces_is_reminded_of_at_its_time() {
    world()
        .set("medication.tick_every", "1s")
        .run(async |w| {
            let phone = Phone::expo("pats");
            w.register("pat", &phone).await;
            let at = now() + 3.seconds();
            w.dose_is_due("pat", at).await;
            w.wait_until_sent_to(&phone).await;
            assert!(w.messages_to(&phone)[0].received_at >= at, "not before its time");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regimens_dose_is_reminded_of_and_one_past_its_end_date_is_not() {
    world()
        .set("medication.tick_every", "1s")
        .run(async |w| {
            let pats = Phone::expo("pats");
            let quints = Phone::expo("quints");
            w.register("pat", &pats).await;
            w.register("quint", &quints).await;
            let at = five_minutes_ago();
            let day_before = at.to_zoned(TimeZone::UTC).date().yesterday().unwrap();
            write_regimen(w, "quint", at, json!({ "endDate": day_before.to_string() })).await;
            write_regimen(w, "pat", at, json!({ "endDate": null })).await;

            w.wait_until_sent_to(&pats).await;
            w.wait_until_settled().await;
            assert_eq!((w.sent_to(&pats).len(), w.sent_to(&quints).len()), (1, 0));
            assert_eq!(
                w.messages_to(&pats)[0].data,
                json!({"screen": "medication", "regimen_id": "pats-regimen"})
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_regimen_and_a_disabled_one_send_no_reminder() {
    world()
        .run(async |w| {
            let phones = [Phone::expo("removed"), Phone::expo("off"), Phone::expo("on")];
            for (user, phone) in ["rob", "olga", "pat"].iter().zip(&phones) {
                w.register(user, phone).await;
            }
            let at = five_minutes_ago();
            // The removal has the later timestamp, although it is written first.
            w.produce("medication-regimens", &json!({"event": "removed", "regimenId": "robs-regimen"})).await;
            w.wait_until_settled().await;
            write_regimen(w, "rob", at, json!({})).await;
            write_regimen(w, "olga", at, json!({"enabled": false})).await;
            write_regimen(w, "pat", at, json!({})).await;

            w.wait_until_sent_to(&phones[2]).await;
            w.wait_until_settled().await;
            assert_eq!(phones.each_ref().map(|phone| w.sent_to(phone).len()), [0, 0, 1]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_dose_is_missed_and_a_user_without_tokens_is_sent_none() {
    world()
        .run(async |w| {
            let phone = Phone::expo("pats");
            w.register("pat", &phone).await;
            let late = now() - 2.hours();
            let now = now();
            w.dose_is_due("pat", late).await;
            w.dose_is_due("dan", now).await;

            w.report_of(&dose_id("pat", late)).await;
            w.report_of(&dose_id("dan", now)).await;
            assert_eq!(
                outcomes(w, &dose_id("pat", late)),
                BTreeMap::from([(None, (DoseOutcome::Missed, 0))])
            );
            assert_eq!(
                outcomes(w, &dose_id("dan", now)),
                BTreeMap::from([(None, (DoseOutcome::NoTokens, 0))])
            );
            assert_eq!(w.sent_to(&phone), [""; 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reminder_during_an_outage_of_the_provider_is_sent_once_after_it() {
    world()
        .run(async |w| {
            let phone = Phone::expo("pats");
            w.register("pat", &phone).await;
            let down = sandbox::Outage { requests: Some(2), ..Default::default() };
            w.faults(|faults| faults.expo.down = Some(down));
            let at = now();
            w.dose_is_due("pat", at).await;
            until("the reminder to be refused", async || {
                w.sandbox.statistics().expo.statuses.contains_key(&503).then_some(())
            })
            .await;
            w.dose_is_due("pat", at).await;
            w.wait_until_sent_to(&phone).await;
            w.wait_until_settled().await;
            assert_eq!(w.sent_to(&phone).len(), 1);
        })
        .await;
}
