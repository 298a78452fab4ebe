//! The stage over a store and a producer in memory.

mod fakes;
mod schedules;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use self::fakes::FakeBackend;
use super::*;
use crate::{
    domain::{
        Counts, DoseJob, DoseKey, DoseOutcome, Job, Lane, Notification, NotificationId, ProfileId, RegimenId,
        Report, UpstreamDose, UserId, Work,
    },
    stages::fakes::{handle, key_of, replayed},
};

/// The stage, with its store, its producer and its clock.
struct World {
    backend: FakeBackend,
    stage: Medication<FakeBackend, FakeBackend>,
    metrics: Arc<Metrics>,
    now_ms: Arc<AtomicI64>,
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        tick_every: Duration::from_secs(15),
        max_lateness: Duration::from_secs(60 * 60),
        title: "Time for {medicine_name}".to_owned(),
        body: "{dosage}, {local_time}".to_owned(),
        screen: "medication".to_owned(),
        sound: "default".to_owned(),
        channel: "default".to_owned(),
    }
}

fn clock_of(now_ms: &Arc<AtomicI64>) -> Clock {
    let now_ms = Arc::clone(now_ms);
    Arc::new(move || Timestamp::from_millisecond(now_ms.load(Ordering::SeqCst)).unwrap())
}

fn record(topic: &str, timestamp: Timestamp, value: impl Into<Vec<u8>>) -> Record {
    Record {
        topic: topic.into(),
        partition: 0,
        offset: 0,
        timestamp,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

/// A regimen of `pr1`, as a console producer would type it.
fn regimen_json(id: &str, zone: &str, times: &[&str], enabled: bool) -> String {
    serde_json::json!({
        "regimenId": id, "profileId": "pr1", "userId": "u1", "medicineName": "Metformin", "dosage": "500 mg",
        "timezone": zone, "times": times, "startDate": "2026-01-01", "endDate": null, "enabled": enabled,
    })
    .to_string()
}

fn dose_id(regimen: &str, time: &str) -> NotificationId {
    DoseKey::notification(&ProfileId::new("pr1"), &RegimenId::new(regimen), at(time))
}

impl World {
    /// At that time; the watermarks are written, and `u1` has an Expo and an FCM token.
    async fn at(now: &str) -> Self {
        let backend = FakeBackend::default();
        let now_ms = Arc::new(AtomicI64::new(at(now).as_millisecond()));
        let metrics = Arc::new(Metrics::new());
        let urgent_life = Duration::from_secs(60);
        let providers = ProviderId::ALL.to_vec();
        let stage = Medication::new(
            backend.clone(),
            backend.clone(),
            settings(),
            providers,
            urgent_life,
            Arc::clone(&metrics),
            clock_of(&now_ms),
        );
        backend.init_marks(at(now)).await.unwrap();
        backend.register("u1", "ExponentPushToken[AAA]");
        backend.register("u1", &format!("cIBxWSjHTQCvp4QfBUPZ1a:APA91b{}", "x".repeat(134)));
        Self { backend, stage, metrics, now_ms }
    }

    fn set_time(&self, now: &str) {
        self.now_ms.store(at(now).as_millisecond(), Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        self.stage.now()
    }

    async fn handle(&self, record: &Record) -> Fate {
        handle(&self.stage, record, &CancellationToken::default()).await.unwrap()
    }

    async fn regimen(&self, zone: &str, times: &[&str]) {
        let record = record(topics::MEDICATION_REGIMENS, self.now(), regimen_json("r1", zone, times, true));
        assert_eq!(self.handle(&record).await, Fate::Done);
    }

    /// A shard's tick for `r1`, as if that were the time.
    async fn tick_at(&self, time: Timestamp) -> Fate {
        let Shard(shard) = Shard::of(&RegimenId::new("r1"));
        let tick = events::medication_ticks::write(&Tick::Shard { shard, at: time });
        self.handle(&record(topics::MEDICATION_TICKS, self.now(), tick)).await
    }

    async fn tick(&self) {
        assert_eq!(self.tick_at(self.now()).await, Fate::Done);
    }

    async fn upstream(&self, regimen: &str, time: &str, timezone: Option<&str>) {
        let tick = events::medication_ticks::write(&Tick::Dose(upstream_dose(regimen, time, timezone)));
        assert_eq!(self.handle(&record(topics::MEDICATION_TICKS, self.now(), tick)).await, Fate::Done);
    }

    fn due(&self) -> Vec<String> {
        self.backend.due(&RegimenId::new("r1")).iter().map(|row| format!("{:.0}", row.due_at)).collect()
    }
}

fn upstream_dose(regimen: &str, time: &str, timezone: Option<&str>) -> UpstreamDose {
    UpstreamDose {
        regimen: RegimenId::new(regimen),
        profile: ProfileId::new("pr1"),
        user: UserId::new("u1"),
        schedule_time: at(time),
        medicine_name: "Metformin".to_owned(),
        dosage: "500 mg".to_owned(),
        timezone: timezone.map(str::to_owned),
    }
}

fn job(provider: ProviderId, time: &str, local_time: &str) -> Message {
    let notification = Notification {
        id: dose_id("r1", time),
        title: "Time for Metformin".to_owned(),
        body: format!("500 mg, {local_time}"),
        data: [("screen", "medication"), ("regimen_id", "r1")]
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into(),
        sound: Some("default".to_owned()),
        channel: "default".to_owned(),
        expires_at: at(time) + Duration::from_secs(60 * 60),
    };
    let dose = DoseJob {
        profile: ProfileId::new("pr1"),
        regimen: RegimenId::new("r1"),
        user: UserId::new("u1"),
        schedule_time: at(time),
    };
    let value = events::jobs::write(&Job { provider, notification, work: Work::Dose(dose) });
    Message::new(events::jobs::topic(provider, Lane::Urgent), dose_id("r1", time).to_string(), value)
}

fn jobs(time: &str, local_time: &str) -> Vec<Message> {
    ProviderId::ALL.map(|provider| job(provider, time, local_time)).to_vec()
}

fn not_sent(outcome: DoseOutcome, time: &str, at: Timestamp) -> Vec<Message> {
    let notification = dose_id("r1", time);
    let key = notification.as_str().to_owned();
    let report = Report::Dose { notification, provider: None, outcome, counts: Counts::default(), at };
    vec![Message::new(topics::PUSH_OUTCOMES, key, events::push_outcomes::write(&report))]
}

#[tokio::test]
async fn a_clock_tick_becomes_one_record_per_shard() {
    let world = World::at("2026-11-20T08:00:00Z").await;
    let clock = clock_tick(at("2026-11-20T07:59:59Z"));
    assert_eq!(world.handle(&record(&clock.topic, world.now(), clock.value.unwrap())).await, Fate::Done);

    let published = world.backend.published();
    assert_eq!(published.len(), usize::from(SHARDS));
    for (shard, message) in (0..SHARDS).zip(published) {
        let tick = events::medication_ticks::write(&Tick::Shard { shard, at: at("2026-11-20T07:59:59Z") });
        assert_eq!(message, Message::new(topics::MEDICATION_TICKS, shard.to_string(), tick));
    }
    assert_eq!(world.metrics.last_tick_timestamp_seconds.get(), world.now().as_second());
}

#[tokio::test]
async fn a_clock_tick_counts_from_its_own_time_or_the_records_and_never_beyond_the_clock() {
    let world = World::at("2026-11-20T08:00:00Z").await;
    for (tick, written, expected) in [
        ("{}", "2026-11-20T07:00:00Z", "2026-11-20T07:00:00Z"),
        ("{}", "2026-11-20T09:00:00Z", "2026-11-20T08:00:00Z"),
        (r#"{"at":"2026-11-20T06:00:00Z"}"#, "2026-11-20T07:00:00Z", "2026-11-20T06:00:00Z"),
        (r#"{"at":"2026-11-20T10:00:00Z"}"#, "2026-11-20T07:00:00Z", "2026-11-20T08:00:00Z"),
    ] {
        world.handle(&record(topics::MEDICATION_TICKS, at(written), tick)).await;
        let shard = world.backend.published().remove(0);
        assert_eq!(
            shard.value.unwrap(),
            events::medication_ticks::write(&Tick::Shard { shard: 0, at: at(expected) }),
            "{tick} at {written}"
        );
    }
}

#[tokio::test]
async fn a_dose_is_dispatched_once_however_many_ticks_there_are() {
    let world = World::at("2026-11-19T23:00:00Z").await;
    world.regimen("Asia/Bangkok", &["08:00", "20:00"]).await;
    assert_eq!(world.due(), ["2026-11-20T01:00:00Z"]);

    world.set_time("2026-11-20T01:00:05Z");
    world.tick().await;
    world.tick().await;
    world.set_time("2026-11-20T01:00:20Z");
    world.tick().await;

    assert_eq!(world.backend.published(), jobs("2026-11-20T01:00:00Z", "08:00"));
    assert_eq!(world.due(), ["2026-11-20T01:00:00Z", "2026-11-20T13:00:00Z"]);
}

#[tokio::test]
async fn no_dose_is_dispatched_before_its_time_although_a_tick_is_ahead_of_the_clock() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.regimen("UTC", &["08:00"]).await;
    world.set_time("2026-11-20T07:59:59Z");

    assert_eq!(world.tick_at(at("2026-11-20T09:00:00Z")).await, Fate::Done);
    assert_eq!(world.backend.published(), []);
    assert_eq!(world.backend.marks(Shard::of(&RegimenId::new("r1"))).await.unwrap().read, world.now());

    world.set_time("2026-11-20T08:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T08:00:00Z", "08:00"));
}

#[tokio::test]
async fn an_edited_regimen_is_dispatched_at_its_new_time_only() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.regimen("UTC", &["08:00"]).await;
    world.set_time("2026-11-20T07:30:00Z");
    world.regimen("UTC", &["09:00"]).await;

    world.set_time("2026-11-20T08:30:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), []);

    world.set_time("2026-11-20T09:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T09:00:00Z", "09:00"));
}

#[tokio::test]
async fn an_older_definition_that_arrives_late_changes_nothing() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    let older = record(
        topics::MEDICATION_REGIMENS,
        at("2026-11-20T06:00:00Z"),
        regimen_json("r1", "UTC", &["08:00"], true),
    );
    world.regimen("UTC", &["09:00"]).await;
    assert_eq!(world.handle(&older).await, Fate::Done);

    world.set_time("2026-11-20T09:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T09:00:00Z", "09:00"));
}

#[tokio::test]
async fn a_removed_or_disabled_regimen_dispatches_nothing() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.regimen("UTC", &["08:00"]).await;
    world.set_time("2026-11-20T07:10:00Z");
    let mut erased = record(topics::MEDICATION_REGIMENS, world.now(), "");
    erased.key = Some(b"r1".to_vec());
    erased.value = None;
    assert_eq!(world.handle(&erased).await, Fate::Done);
    world.set_time("2026-11-20T08:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), []);

    let disabled =
        record(topics::MEDICATION_REGIMENS, world.now(), regimen_json("r1", "UTC", &["09:00"], false));
    assert_eq!(world.handle(&disabled).await, Fate::Done);
    world.set_time("2026-11-20T09:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), []);
}

#[tokio::test]
async fn a_definition_applied_after_the_tick_has_passed_dispatches_its_dose_itself() {
    let world = World::at("2026-11-20T08:00:00Z").await;
    world.tick().await;
    let late = record(
        topics::MEDICATION_REGIMENS,
        at("2026-11-20T07:50:00Z"),
        regimen_json("r1", "UTC", &["07:40", "07:55", "12:00"], true),
    );
    assert_eq!(world.handle(&late).await, Fate::Done);

    // 07:40 was before the definition's own time.
    assert_eq!(world.backend.published(), jobs("2026-11-20T07:55:00Z", "07:55"));
    assert_eq!(world.due(), ["2026-11-20T07:55:00Z", "2026-11-20T12:00:00Z"]);
}

#[tokio::test]
async fn a_dose_found_too_late_is_missed_and_the_next_one_is_dispatched() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.regimen("UTC", &["08:00", "10:00"]).await;
    world.set_time("2026-11-20T09:00:01Z");
    world.tick().await;
    assert_eq!(
        world.backend.published(),
        not_sent(DoseOutcome::Missed, "2026-11-20T08:00:00Z", at("2026-11-20T09:00:00Z"))
    );

    world.set_time("2026-11-20T11:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T10:00:00Z", "10:00"));
}

#[tokio::test]
async fn after_a_long_outage_every_dose_is_dispatched_or_missed_once() {
    let world = World::at("2026-11-01T00:00:00Z").await;
    let times: Vec<String> = (0..24).map(|hour| format!("{hour:02}:30")).collect();
    world.regimen("UTC", &times.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.set_time("2026-12-01T00:00:00Z");
    world.tick().await;
    let published = world.backend.published();
    assert_eq!(published.len(), 30 * 24 + 1, "29 days and 23 hours missed, the last dose for two providers");
}

#[tokio::test]
async fn a_user_without_a_device_is_not_sent_to_and_the_outcome_is_published() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.backend.remove_tokens_of("u1");
    world.regimen("UTC", &["08:00"]).await;
    world.set_time("2026-11-20T08:00:10Z");
    world.tick().await;
    assert_eq!(
        world.backend.published(),
        not_sent(DoseOutcome::NoTokens, "2026-11-20T08:00:00Z", at("2026-11-20T08:00:00Z"))
    );
}

#[tokio::test]
async fn nothing_is_dispatched_to_a_provider_that_is_not_configured() {
    let mut world = World::at("2026-11-20T07:00:00Z").await;
    world.stage.providers = vec![ProviderId::Fcm];
    world.regimen("UTC", &["08:00"]).await;
    world.set_time("2026-11-20T08:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), [job(ProviderId::Fcm, "2026-11-20T08:00:00Z", "08:00")]);
}

#[tokio::test]
async fn a_dose_in_a_skipped_hour_is_dispatched_when_the_clock_jumps_and_shows_that_time() {
    let world = World::at("2026-03-28T22:00:00Z").await;
    world.regimen("Europe/Berlin", &["02:30"]).await;
    world.set_time("2026-03-29T01:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-03-29T01:00:00Z", "03:00"));
    assert_eq!(world.due().last().unwrap(), "2026-03-30T00:30:00Z");
}

#[tokio::test]
async fn an_upstream_dose_is_dispatched_now_or_when_its_time_comes() {
    let world = World::at("2026-11-20T08:00:10Z").await;
    world.upstream("r1", "2026-11-20T08:00:00Z", None).await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T08:00:00Z", "08:00"));

    world.upstream("r1", "2026-11-20T09:00:00Z", Some("Asia/Bangkok")).await;
    assert_eq!(world.backend.published(), []);
    world.set_time("2026-11-20T09:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T09:00:00Z", "16:00"));
    assert_eq!(world.due(), ["2026-11-20T09:00:00Z"]);
}

#[tokio::test]
async fn the_chain_continues_where_an_upstream_dose_has_replaced_the_regimens_row() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.upstream("r1", "2026-11-20T08:00:00Z", None).await;
    world.regimen("UTC", &["08:00", "20:00"]).await;
    assert_eq!(world.due(), ["2026-11-20T08:00:00Z"]);
    world.set_time("2026-11-20T08:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T08:00:00Z", "08:00"));
    assert_eq!(world.due(), ["2026-11-20T08:00:00Z", "2026-11-20T20:00:00Z"]);
}

#[tokio::test]
async fn an_unreadable_or_invalid_record_is_a_dead_letter() {
    let world = World::at("2026-11-20T08:00:00Z").await;
    let dead = async |topic: &str, timestamp: &str, value: &str| match world
        .handle(&record(topic, at(timestamp), value))
        .await
    {
        Fate::DeadLetter(cause) => cause.label(),
        fate => panic!("{fate:?}"),
    };
    let now = "2026-11-20T08:00:00Z";
    assert_eq!(
        dead(topics::MEDICATION_TICKS, now, r#"{"shard":64,"at":"2026-11-20T08:00:00Z"}"#).await,
        "invalid"
    );
    assert_eq!(dead(topics::MEDICATION_TICKS, now, "tick").await, "unreadable");
    assert_eq!(dead(topics::MEDICATION_REGIMENS, now, "{").await, "unreadable");
    // A record from the future would beat every edit of the days to come.
    let valid = regimen_json("r1", "UTC", &["08:00"], true);
    assert_eq!(dead(topics::MEDICATION_REGIMENS, "2026-11-20T08:05:01Z", &valid).await, "invalid");
    assert_eq!(
        world.handle(&record(topics::MEDICATION_REGIMENS, at("2026-11-20T08:05:00Z"), valid)).await,
        Fate::Done
    );
}

#[tokio::test]
async fn a_replayed_regimen_has_the_version_of_its_original() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    let written = |written_at: &str, times: &[&str]| {
        record(topics::MEDICATION_REGIMENS, at(written_at), regimen_json("r1", "UTC", times, true))
    };
    let edit = written("2026-11-20T06:30:00Z", &["08:00"]);
    assert_eq!(world.handle(&edit).await, Fate::Done);

    // A definition from before the edit that is replayed after it changes nothing.
    let replay = |ms: i64| replayed(written("2026-11-20T07:00:00Z", &["09:00"]), &ms.to_string(), "3");
    assert_eq!(world.handle(&replay(at("2026-11-20T06:00:00Z").as_millisecond())).await, Fate::Done);
    world.set_time("2026-11-20T09:00:00Z");
    world.tick().await;
    assert_eq!(world.backend.published(), jobs("2026-11-20T08:00:00Z", "08:00"));

    // One from after the edit wins.
    let replay = replay(at("2026-11-20T06:45:00Z").as_millisecond());
    assert_eq!(world.handle(&replay).await, Fate::Done);
    assert_eq!(world.backend.published(), jobs("2026-11-20T09:00:00Z", "09:00"));

    let Fate::DeadLetter(cause) = world.handle(&replayed(edit, "yesterday", "3")).await else { panic!() };
    assert_eq!(cause.label(), "invalid");
}

#[tokio::test]
async fn ticks_of_one_shard_and_records_of_one_regimen_keep_their_order_and_others_run_concurrently() {
    let world = World::at("2026-11-20T08:00:00Z").await;
    let key = |topic: &str, value: Vec<u8>| key_of(&world.stage, &record(topic, world.now(), value));
    let tick = |tick: Tick| key(topics::MEDICATION_TICKS, events::medication_ticks::write(&tick));
    let shard = |shard: u16| tick(Tick::Shard { shard, at: world.now() });
    let dose = |regimen: &str| tick(Tick::Dose(upstream_dose(regimen, "2026-11-20T08:00:00Z", None)));
    let regimen =
        |id: &str| key(topics::MEDICATION_REGIMENS, regimen_json(id, "UTC", &["08:00"], true).into_bytes());

    assert_eq!(tick(Tick::Clock { at: None }), None);
    assert_eq!(key(topics::MEDICATION_TICKS, b"tick".to_vec()), None);
    assert_eq!((shard(1), dose("1"), regimen("1")), (shard(1), dose("1"), regimen("1")));
    let keys: std::collections::HashSet<_> =
        [shard(1), shard(2), dose("1"), dose("2"), regimen("1"), regimen("2")].into();
    assert_eq!(keys.len(), 6);
}

#[tokio::test]
async fn a_tick_that_is_stopped_ends_after_a_whole_page() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.regimen("UTC", &["08:00", "09:00"]).await;
    world.set_time("2026-11-20T08:30:00Z");
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    let Shard(shard) = Shard::of(&RegimenId::new("r1"));
    let tick = record(
        topics::MEDICATION_TICKS,
        world.now(),
        events::medication_ticks::write(&Tick::Shard { shard, at: world.now() }),
    );

    assert_eq!(handle(&world.stage, &tick, &stop).await.unwrap(), Fate::Unfinished);
    assert_eq!(world.backend.published(), jobs("2026-11-20T08:00:00Z", "08:00"));
    let dispatched = world.backend.marks(Shard(shard)).await.unwrap().dispatched;
    assert_eq!(dispatched, at("2026-11-20T07:59:59.999Z"));
}

#[tokio::test]
async fn a_sweep_restores_missing_due_rows_and_dispatches_nothing() {
    let world = World::at("2026-11-20T07:00:00Z").await;
    world.regimen("UTC", &["08:00", "20:00"]).await;
    world.backend.remove_due_rows();
    world.set_time("2026-11-20T08:30:00Z");
    world.tick().await;

    assert_eq!(world.stage.sweep().await.unwrap(), 1);
    assert_eq!(world.backend.published(), []);
    assert_eq!(world.due(), ["2026-11-20T20:00:00Z"]);
}

#[test]
fn a_dose_expires_no_earlier_than_it_may_be_late() {
    let stage = |life: u64| {
        let backend = FakeBackend::default();
        let metrics = Arc::new(Metrics::new());
        let clock = clock_of(&Arc::default());
        Medication::new(
            backend.clone(),
            backend,
            settings(),
            Vec::new(),
            Duration::from_secs(life),
            metrics,
            clock,
        )
        .life
    };
    assert_eq!(stage(60), Duration::from_secs(3600));
    assert_eq!(stage(7200), Duration::from_secs(7200));
}
