//! The order of events: records are published as any producer would, and while pushcast handles them the
//! providers get faults.
//!
//! Each step waits for the results of earlier ones that it needs. The caller limits the time of all.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    time::Duration,
};

use ProviderId::{Expo, Fcm};
use consumer::Publish;
use futures::{TryStreamExt as _, stream};
use jiff::Timestamp;
use pushcast::{
    domain::{Counts, ProviderId, Report},
    store::Registry,
    topology::STAGES,
};
use sandbox::{Answer, Outage};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    expected::{Expected, Name},
    measure::{FaultPeriod, Measured, format_duration, lead},
    scenario::{self, ScenarioStep},
    screen::Screen,
    verify::{Found, verify},
    watch::Watch,
    world::World,
};

const POLL_EVERY: Duration = Duration::from_millis(50);
/// Records that Kafka has not acknowledged yet.
const IN_FLIGHT: usize = 1_000;
/// The duration of each fault.
const FAULT_FOR: Duration = Duration::from_secs(4);
/// Messages per second that FCM accepts during its fault.
const CUT_RATE: u32 = 500;
/// The interval of the reminders during a broadcast.
const REMIND_EVERY: Duration = Duration::from_millis(200);
/// Time from the publication of the regimens to the earliest minute at which their doses are due.
const DUE_NOT_BEFORE: Duration = Duration::from_secs(2);
/// The wait at the end, in which a duplicate would arrive.
const QUIET: Duration = Duration::from_secs(1);

/// Runs the script.
pub struct Runner<'a> {
    world: &'a World,
    watch: &'a Watch<'a>,
    screen: &'a Screen,
    /// Everything that was published, in order.
    steps: RefCell<Vec<ScenarioStep>>,
    measured: RefCell<Measured>,
    waiting_for: Cell<&'static str>,
}

/// A broadcast that is being sent.
struct Broadcast {
    name: Name,
    started: Instant,
    /// What the metrics had counted before it, by provider.
    before: [u64; 2],
    /// Its messages, by provider.
    messages: [u64; 2],
}

impl<'a> Runner<'a> {
    /// A runner that has published nothing yet.
    pub fn new(world: &'a World, watch: &'a Watch<'a>, screen: &'a Screen) -> Self {
        Self {
            world,
            watch,
            screen,
            steps: RefCell::default(),
            measured: RefCell::default(),
            waiting_for: Cell::new("nothing"),
        }
    }

    /// Runs all steps. Returns when everything agrees with what was published.
    pub async fn run(&self) -> anyhow::Result<()> {
        self.ready().await;
        self.tokens().await?;
        self.regimens().await?;
        self.first_broadcast().await?;
        self.second_broadcast().await?;
        self.named_users().await?;
        self.doses().await;
        self.wait_for_agreement().await
    }

    /// The condition that it waits for.
    pub fn waiting_for(&self) -> &'static str {
        self.waiting_for.get()
    }

    /// The result that follows from everything published so far.
    pub fn expected(&self) -> Expected {
        Expected::of(&self.steps.borrow())
    }

    /// Everything that is found now.
    pub async fn found(&self) -> anyhow::Result<Found> {
        let census = self.world.store.census().await?;
        self.watch.poll();
        let seen = self.watch.seen();
        Ok(Found {
            pushes: seen.pushes.clone(),
            statistics: self.world.sandbox.statistics(),
            collected: self.world.collector.collected().clone(),
            census,
            lead: ProviderId::ALL
                .map(|provider| (provider, lead(&seen.samples, provider, self.world.rate(provider))))
                .into(),
        })
    }

    /// When the script did what.
    pub fn measured(&self) -> Measured {
        self.measured.borrow().clone()
    }

    // === The steps ===

    async fn ready(&self) {
        self.wait_for("the stages to have their partitions assigned", || {
            let report = self.world.health.report();
            report.stages.len() == STAGES.len() && report.is_ready()
        })
        .await;
        let [expo, fcm] = ProviderId::ALL.map(|provider| self.world.rate(provider));
        self.screen.print(format!(
            "pushcast runs with all {} stages; its Kafka listens on {}",
            STAGES.len(),
            self.world.broker.bootstrap_servers()
        ));
        self.screen.print(format!(
            "the sandbox fakes Expo ({expo} messages/s allowed) and FCM ({fcm}/s); it answers after 40 ms"
        ));
    }

    async fn tokens(&self) -> anyhow::Result<()> {
        let registrations = scenario::registrations();
        let changes = scenario::changes();
        let phones = registrations.len() as u64;
        let valid = changes.iter().filter(|step| **step != ScenarioStep::Unreadable).count() as u64;
        let bar = self.screen.bar("device-tokens", phones + valid);
        let applied = |at_least: u64| {
            let applied = ["registered", "unregistered", "user_deleted"]
                .map(|change| self.world.token_changes(change))
                .iter()
                .sum();
            bar.set(applied);
            applied >= at_least
        };
        self.publish(registrations).await?;
        self.wait_for("the tokens to be registered", || applied(phones)).await;
        let description = scenario::describe(&changes);
        self.publish(changes).await?;
        self.wait_for("the changes of the tokens", || applied(phones + valid)).await;
        self.wait_for_store("the store to hold the tokens").await?;
        self.screen.print(format!("{phones} phones are registered, {valid} changes applied:"));
        self.screen.print(description);
        Ok(())
    }

    async fn regimens(&self) -> anyhow::Result<()> {
        let due = next_minute(Timestamp::now() + DUE_NOT_BEFORE);
        let steps = scenario::regimens(due);
        self.screen.print(format!(
            "{} records of regimens, most of them due at {due:.0}, each in a time zone of its own",
            steps.len()
        ));
        self.measured.borrow_mut().due = Some(due);
        self.publish(steps).await?;
        self.screen.print("one dose is published twice: its reminder must be sent once");
        self.publish(scenario::dose_twice(this_second())).await
    }

    async fn first_broadcast(&self) -> anyhow::Result<()> {
        let broadcast = self.start_broadcast("walk", vec![scenario::post_for_all("walk", 4)]).await?;
        let fault = async {
            self.wait_for("the middle of the broadcast", || self.progress(&broadcast, Expo) > 0.2).await;
            self.time_reminder("a reminder in the middle of the broadcast").await?;
            self.wait_for("the middle of the broadcast", || self.progress(&broadcast, Expo) > 0.4).await;
            self.screen.print(format!("FAULT: Expo answers 503 for {}", format_duration(FAULT_FOR)));
            self.record_fault(Expo);
            let over = Instant::now() + FAULT_FOR;
            self.world.sandbox.faults().change(|faults| {
                faults.expo.down =
                    Some(Outage { status: 503, lasting: Some(FAULT_FOR), ..Outage::default() });
            });
            sleep(FAULT_FOR / 4).await;
            self.time_reminder("a reminder while Expo is down").await?;
            sleep_until(over).await;
            let refused = self.world.sandbox.statistics().expo.answered(Answer::Down);
            self.screen.print(format!(
                "Expo is available again: {refused} messages were answered with 503 and are tried again"
            ));
            Ok(())
        };
        tokio::try_join!(self.follow(&broadcast), fault, self.remind_during(&broadcast))?;
        self.measured.borrow_mut().busy.insert(Fcm, (broadcast.started, Instant::now()));
        // Tokens dead on receipt are found three seconds later.
        self.wait_for_store("the receipts, and all dead tokens to be revoked").await?;
        let dead = self.expected().invalid.len();
        self.screen.print(format!(
            "{dead} dead tokens are published and revoked; the next broadcast must skip them"
        ));
        Ok(())
    }

    async fn second_broadcast(&self) -> anyhow::Result<()> {
        self.screen.print("the next post is published twice: it must be one broadcast");
        let broadcast = self.start_broadcast("sea", vec![scenario::post_for_all("sea", 6); 2]).await?;
        let fault = async {
            self.wait_for("the middle of the broadcast", || self.progress(&broadcast, Fcm) > 0.2).await;
            self.screen.print(format!(
                "FAULT: FCM accepts {CUT_RATE} messages/s and answers the others with 429, for {}",
                format_duration(FAULT_FOR)
            ));
            self.record_fault(Fcm);
            self.world.sandbox.faults().change(|faults| faults.fcm.rate_limit = Some(CUT_RATE));
            sleep(FAULT_FOR).await;
            self.world.sandbox.faults().change(|faults| faults.fcm.rate_limit = None);
            let refused = self.world.sandbox.statistics().fcm.answered(Answer::Throttled);
            self.screen.print(format!(
                "FCM accepts everything again: {refused} messages were answered with 429 and are tried again"
            ));
            Ok(())
        };
        tokio::try_join!(self.follow(&broadcast), fault, self.remind_during(&broadcast))?;
        self.measured.borrow_mut().busy.insert(Expo, (broadcast.started, Instant::now()));
        Ok(())
    }

    async fn named_users(&self) -> anyhow::Result<()> {
        self.screen
            .print("a post for named users: on a phone that has moved, only its new user must be notified");
        let broadcast = self.start_broadcast("friends", vec![scenario::post_for_some("friends", 2)]).await?;
        self.follow(&broadcast).await
    }

    async fn doses(&self) {
        let expected = self.expected();
        let doses: BTreeSet<_> =
            expected.outcomes.keys().filter(|(name, _)| name.starts_with("dose:")).cloned().collect();
        if let Some(due) = self.measured.borrow().due.filter(|due| *due > Timestamp::now()) {
            self.screen.print(format!("waiting for {due:.0}, when the regimens' doses are due"));
        }
        self.wait_for("the outcomes of all doses", || {
            let collected = self.world.collector.collected();
            let published: BTreeSet<_> = collected
                .outcomes
                .iter()
                .filter_map(|report| match report {
                    Report::Dose { notification, provider, .. } => {
                        Some((notification.to_string(), *provider))
                    }
                    Report::Broadcast { .. } => None,
                })
                .collect();
            doses.is_subset(&published)
        })
        .await;
        self.screen.print(format!("all {} outcomes of doses are published", doses.len()));
    }

    async fn wait_for_agreement(&self) -> anyhow::Result<()> {
        self.waiting_for.set("everything to agree");
        let expected = self.expected();
        while !verify(&expected, &self.found().await?).is_empty() {
            sleep(POLL_EVERY).await;
        }
        self.waiting_for.set("a second without duplicates");
        sleep(QUIET).await;
        Ok(())
    }

    // === What the steps are made of ===

    /// Publishes as any producer would: with keys, in order, and waits for the acknowledgements.
    async fn publish(&self, steps: Vec<ScenarioStep>) -> anyhow::Result<()> {
        let messages: Vec<_> = steps.iter().map(ScenarioStep::message).collect();
        // Counted as published before the acknowledgement: a record may be written without one.
        self.steps.borrow_mut().extend(steps);
        let publish = |message| Ok(self.world.producer.publish(message));
        stream::iter(messages.into_iter().map(publish)).try_buffered(IN_FLIGHT).try_collect::<()>().await?;
        Ok(())
    }

    async fn start_broadcast(&self, post: &str, steps: Vec<ScenarioStep>) -> anyhow::Result<Broadcast> {
        let name = format!("post:{post}");
        let before = ProviderId::ALL.map(|provider| self.world.bulk_messages(provider));
        let started = Instant::now();
        self.measured.borrow_mut().posts.insert(name.clone(), Timestamp::now());
        self.publish(steps).await?;
        let expected = self.expected();
        let messages = ProviderId::ALL.map(|provider| expected.messages_of(&name, provider));
        self.screen
            .print(format!("{name} is published: {} messages by Expo, {} by FCM", messages[0], messages[1]));
        Ok(Broadcast { name, started, before, messages })
    }

    /// Messages of the broadcast that have an outcome.
    fn done(&self, broadcast: &Broadcast, provider: ProviderId) -> u64 {
        self.world.bulk_messages(provider).saturating_sub(broadcast.before[index_of(provider)])
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
    fn progress(&self, broadcast: &Broadcast, provider: ProviderId) -> f64 {
        self.done(broadcast, provider) as f64 / broadcast.messages[index_of(provider)].max(1) as f64
    }

    /// Shows a progress bar for each provider until the broadcast has its outcome.
    async fn follow(&self, broadcast: &Broadcast) -> anyhow::Result<()> {
        let bars = ProviderId::ALL.map(|provider| {
            let bar = self
                .screen
                .bar(format!("{} {provider}", broadcast.name), broadcast.messages[index_of(provider)]);
            (provider, bar)
        });
        self.wait_for("the broadcast's outcome", || {
            for (provider, bar) in &bars {
                bar.set(self.done(broadcast, *provider));
            }
            self.is_over(broadcast)
        })
        .await;
        drop(bars);
        if let Some(Counts { sent, dead, .. }) = self.outcome(broadcast) {
            self.screen.print(format!(
                "{}: {sent} sent, {dead} to dead tokens, in {}",
                broadcast.name,
                format_duration(broadcast.started.elapsed())
            ));
        }
        Ok(())
    }

    fn is_over(&self, broadcast: &Broadcast) -> bool {
        self.outcome(broadcast).is_some()
    }

    fn outcome(&self, broadcast: &Broadcast) -> Option<Counts> {
        self.world.collector.collected().outcomes.iter().find_map(|report| match report {
            Report::Broadcast { notification, counts, .. } if notification.as_str() == broadcast.name => {
                Some(*counts)
            }
            Report::Broadcast { .. } | Report::Dose { .. } => None,
        })
    }

    /// Records that a provider has a fault from now on.
    fn record_fault(&self, provider: ProviderId) {
        let from = Timestamp::now();
        self.measured.borrow_mut().faults.push(FaultPeriod { provider, from, until: from + FAULT_FOR });
    }

    /// Publishes a reminder: a dose that upstream found due itself.
    async fn remind(&self) -> anyhow::Result<(Name, Timestamp)> {
        let number = u32::try_from(self.measured.borrow().reminders.len())?;
        let name = format!("dose:reminder-{number}");
        let step = scenario::reminder(number, this_second());
        let at = Timestamp::now();
        self.measured.borrow_mut().reminders.insert(name.clone(), at);
        self.publish(vec![step]).await?;
        Ok((name, at))
    }

    /// Publishes a reminder, and prints its latencies.
    async fn time_reminder(&self, what: &str) -> anyhow::Result<()> {
        let (name, at) = self.remind().await?;
        let latency = |provider| {
            let arrived = self.watch.arrival(&name, provider)?;
            Some(format_duration(Duration::try_from(arrived.duration_since(at)).unwrap_or_default()))
        };
        self.wait_for("a reminder", || latency(Expo).is_some() && latency(Fcm).is_some()).await;
        if let (Some(expo), Some(fcm)) = (latency(Expo), latency(Fcm)) {
            self.screen.print(format!("{what}: record → Expo {expo}, record → FCM {fcm}"));
        }
        Ok(())
    }

    /// Publishes a reminder every [`REMIND_EVERY`] until the broadcast has its outcome.
    async fn remind_during(&self, broadcast: &Broadcast) -> anyhow::Result<()> {
        while !self.is_over(broadcast) {
            self.remind().await?;
            sleep(REMIND_EVERY).await;
        }
        Ok(())
    }

    async fn wait_for(&self, condition: &'static str, mut is_met: impl FnMut() -> bool) {
        self.waiting_for.set(condition);
        while !is_met() {
            sleep(POLL_EVERY).await;
        }
    }

    /// Waits until the store holds the tokens that follow from everything published so far.
    async fn wait_for_store(&self, condition: &'static str) -> anyhow::Result<()> {
        self.waiting_for.set(condition);
        let expected = self.expected().census;
        while self.world.store.census().await? != expected {
            sleep(POLL_EVERY).await;
        }
        Ok(())
    }
}

fn index_of(provider: ProviderId) -> usize {
    usize::from(provider == Fcm)
}

fn next_minute(at: Timestamp) -> Timestamp {
    Timestamp::from_second((at.as_second().div_euclid(60) + 1) * 60).unwrap_or(Timestamp::MAX)
}

/// The time of a dose that is due now: rounded down, so that it is not in the future.
fn this_second() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::MIN)
}
