//! What happens, act by act: records are published as any producer would, and while pushcast works on them
//! its promises are attacked.
//!
//! Each act waits for what it needs from the one before. How long all of it may take is for the caller to
//! say.

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
    measure::{Attack, Measured, ahead, shown},
    scenario::{self, ScenarioStep},
    screen::Screen,
    verify::{Found, verify},
    watch::Watch,
    world::World,
};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Records on their way to Kafka at once.
const IN_FLIGHT: usize = 1_000;
/// How long a provider is attacked.
const ATTACK: Duration = Duration::from_secs(4);
/// Messages per second that FCM takes while it is attacked.
const CUT_RATE: u32 = 500;
/// How often somebody is reminded of something while a broadcast runs.
const REMIND_EVERY: Duration = Duration::from_millis(200);
/// A minute that is closer than that is left to others: regimens have to be known before it.
const DUE_NOT_BEFORE: Duration = Duration::from_secs(2);
/// How long nothing more may come before it is over: a double would come in that time.
const QUIET: Duration = Duration::from_secs(1);

/// The demonstration as it goes.
pub struct Runner<'a> {
    world: &'a World,
    watch: &'a Watch<'a>,
    screen: &'a Screen,
    /// Everything that was published, in order.
    steps: RefCell<Vec<ScenarioStep>>,
    measured: RefCell<Measured>,
    doing: Cell<&'static str>,
}

/// A broadcast that runs: where the counters stood before, and how far they have to go.
struct Broadcast {
    name: Name,
    began: Instant,
    before: [u64; 2],
    messages: [u64; 2],
}

impl<'a> Runner<'a> {
    /// Nothing has happened yet.
    pub fn new(world: &'a World, watch: &'a Watch<'a>, screen: &'a Screen) -> Self {
        Self {
            world,
            watch,
            screen,
            steps: RefCell::default(),
            measured: RefCell::default(),
            doing: Cell::new("nothing"),
        }
    }

    /// All acts. Ends when everything that was published has come to what it must come to.
    pub async fn all(&self) -> anyhow::Result<()> {
        self.ready().await;
        self.tokens().await?;
        self.regimens().await?;
        self.first_broadcast().await?;
        self.second_broadcast().await?;
        self.named_users().await?;
        self.doses().await;
        self.until_all_agrees().await
    }

    /// What is being waited for.
    pub fn doing(&self) -> &'static str {
        self.doing.get()
    }

    /// What must have come of everything published so far.
    pub fn expected(&self) -> Expected {
        Expected::of(&self.steps.borrow())
    }

    /// What there is.
    pub async fn found(&self) -> anyhow::Result<Found> {
        let census = self.world.store.census().await?;
        self.watch.look();
        let seen = self.watch.seen();
        Ok(Found {
            pushes: seen.pushes.clone(),
            statistics: self.world.sandbox.statistics(),
            noted: self.world.notes.noted().clone(),
            census,
            ahead: ProviderId::ALL
                .map(|provider| (provider, ahead(&seen.samples, provider, self.world.rate(provider))))
                .into(),
        })
    }

    /// The times of what was published.
    pub fn measured(&self) -> Measured {
        self.measured.borrow().clone()
    }

    // === The acts ===

    async fn ready(&self) {
        self.until("the stages to have their partitions", || {
            let report = self.world.health.report();
            report.stages.len() == STAGES.len() && report.is_ready()
        })
        .await;
        let [expo, fcm] = ProviderId::ALL.map(|provider| self.world.rate(provider));
        self.screen.say(format!(
            "pushcast runs, all {} stages; its Kafka listens on {}",
            STAGES.len(),
            self.world.broker.bootstrap_servers()
        ));
        self.screen.say(format!(
            "the sandbox plays Expo ({expo} messages/s allowed) and FCM ({fcm}/s); it answers after 40 ms"
        ));
    }

    async fn tokens(&self) -> anyhow::Result<()> {
        let (first, then) = (scenario::registrations(), scenario::changes());
        let (phones, changes) = (
            first.len() as u64,
            then.iter().filter(|step| **step != ScenarioStep::Unreadable).count() as u64,
        );
        let bar = self.screen.bar("device-tokens", phones + changes);
        let applied = |at_least: u64| {
            let applied = ["registered", "unregistered", "user_deleted"]
                .map(|change| self.world.token_changes(change))
                .iter()
                .sum();
            bar.at(applied);
            applied >= at_least
        };
        self.publish(first).await?;
        self.until("the tokens to be registered", || applied(phones)).await;
        let told = scenario::told(&then);
        self.publish(then).await?;
        self.until("the changes of the tokens", || applied(phones + changes)).await;
        self.until_store_agrees("the store to hold the tokens").await?;
        self.screen.say(format!("{phones} phones are registered, {changes} changes applied:"));
        self.screen.say(told);
        Ok(())
    }

    async fn regimens(&self) -> anyhow::Result<()> {
        let due = next_minute(Timestamp::now() + DUE_NOT_BEFORE);
        let steps = scenario::regimens(due);
        self.screen.say(format!(
            "{} records of regimens, most of them due at {due:.0}, each in a time zone of its own",
            steps.len()
        ));
        self.measured.borrow_mut().due = Some(due);
        self.publish(steps).await?;
        self.screen.say("one dose is published twice: it must ring once");
        self.publish(scenario::dose_twice(this_second())).await
    }

    async fn first_broadcast(&self) -> anyhow::Result<()> {
        let broadcast = self.begin("walk", vec![scenario::post_for_everybody("walk", 4)]).await?;
        let attack = async {
            self.until("the middle of the broadcast", || self.part(&broadcast, Expo) > 0.2).await;
            self.remind_and_tell("a reminder in the middle of the broadcast").await?;
            self.until("the middle of the broadcast", || self.part(&broadcast, Expo) > 0.4).await;
            self.screen.say(format!("ATTACK: Expo answers 503 for {}", shown(ATTACK)));
            self.attack(Expo);
            let over = Instant::now() + ATTACK;
            self.world.sandbox.faults().change(|faults| {
                faults.expo.down = Some(Outage { status: 503, lasting: Some(ATTACK), ..Outage::default() });
            });
            sleep(ATTACK / 4).await;
            self.remind_and_tell("a reminder while Expo is down").await?;
            sleep_until(over).await;
            let refused = self.world.sandbox.statistics().expo.answered(Answer::Down);
            self.screen.say(format!("Expo is back: {refused} messages met a 503 and are tried again"));
            Ok(())
        };
        tokio::try_join!(self.follow(&broadcast), attack, self.remind_during(&broadcast))?;
        self.measured.borrow_mut().busy.insert(Fcm, (broadcast.began, Instant::now()));
        // Ghosts are found by their receipts, three seconds later.
        self.until_store_agrees("receipts to tell the ghosts, and all dead tokens to be revoked").await?;
        let dead = self.expected().invalid.len();
        self.screen
            .say(format!("{dead} dead tokens are published and revoked; the next broadcast must spare them"));
        Ok(())
    }

    async fn second_broadcast(&self) -> anyhow::Result<()> {
        self.screen.say("the next post is published twice: it must be one broadcast");
        let broadcast = self.begin("sea", vec![scenario::post_for_everybody("sea", 6); 2]).await?;
        let attack = async {
            self.until("the middle of the broadcast", || self.part(&broadcast, Fcm) > 0.2).await;
            self.screen.say(format!(
                "ATTACK: FCM takes {CUT_RATE} messages/s and answers the others with 429, for {}",
                shown(ATTACK)
            ));
            self.attack(Fcm);
            self.world.sandbox.faults().change(|faults| faults.fcm.rate_limit = Some(CUT_RATE));
            sleep(ATTACK).await;
            self.world.sandbox.faults().change(|faults| faults.fcm.rate_limit = None);
            let refused = self.world.sandbox.statistics().fcm.answered(Answer::Throttled);
            self.screen
                .say(format!("FCM takes everything again: {refused} messages met a 429 and are tried again"));
            Ok(())
        };
        tokio::try_join!(self.follow(&broadcast), attack, self.remind_during(&broadcast))?;
        self.measured.borrow_mut().busy.insert(Expo, (broadcast.began, Instant::now()));
        Ok(())
    }

    async fn named_users(&self) -> anyhow::Result<()> {
        self.screen
            .say("a post for named users: who has lost the phone must not be told, who has it now must");
        let broadcast = self.begin("friends", vec![scenario::post_for_some("friends", 2)]).await?;
        self.follow(&broadcast).await
    }

    async fn doses(&self) {
        let expected = self.expected();
        let doses: BTreeSet<_> =
            expected.outcomes.keys().filter(|(name, _)| name.starts_with("dose:")).cloned().collect();
        if let Some(due) = self.measured.borrow().due.filter(|due| *due > Timestamp::now()) {
            self.screen.say(format!("waiting for {due:.0}, when the regimens' doses are due"));
        }
        self.until("the doses' minute", || {
            let noted = self.world.notes.noted();
            let told: BTreeSet<_> = noted
                .outcomes
                .iter()
                .filter_map(|report| match report {
                    Report::Dose { notification, provider, .. } => {
                        Some((notification.to_string(), *provider))
                    }
                    Report::Broadcast { .. } => None,
                })
                .collect();
            doses.is_subset(&told)
        })
        .await;
        self.screen.say(format!("all {} outcomes of doses and reminders are told", doses.len()));
    }

    async fn until_all_agrees(&self) -> anyhow::Result<()> {
        self.doing.set("everything to agree");
        let expected = self.expected();
        while !verify(&expected, &self.found().await?).is_empty() {
            sleep(LOOK_EVERY).await;
        }
        self.doing.set("a second of silence");
        sleep(QUIET).await;
        Ok(())
    }

    // === What acts are made of ===

    /// Publishes as any producer would: keyed by what it is about, acknowledged, in order.
    async fn publish(&self, steps: Vec<ScenarioStep>) -> anyhow::Result<()> {
        let messages: Vec<_> = steps.iter().map(ScenarioStep::message).collect();
        // It counts as published from now on: what Kafka does not acknowledge may be written all the same.
        self.steps.borrow_mut().extend(steps);
        let publish = |message| Ok(self.world.producer.publish(message));
        stream::iter(messages.into_iter().map(publish)).try_buffered(IN_FLIGHT).try_collect::<()>().await?;
        Ok(())
    }

    async fn begin(&self, post: &str, steps: Vec<ScenarioStep>) -> anyhow::Result<Broadcast> {
        let name = format!("post:{post}");
        let before = ProviderId::ALL.map(|provider| self.world.bulk_messages(provider));
        let began = Instant::now();
        self.measured.borrow_mut().posts.insert(name.clone(), Timestamp::now());
        self.publish(steps).await?;
        let expected = self.expected();
        let messages = ProviderId::ALL.map(|provider| expected.messages_of(&name, provider));
        self.screen
            .say(format!("{name} is published: {} messages by Expo, {} by FCM", messages[0], messages[1]));
        Ok(Broadcast { name, began, before, messages })
    }

    /// Messages of the broadcast that have their outcome.
    fn done(&self, broadcast: &Broadcast, provider: ProviderId) -> u64 {
        self.world.bulk_messages(provider).saturating_sub(broadcast.before[side(provider)])
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
    fn part(&self, broadcast: &Broadcast, provider: ProviderId) -> f64 {
        self.done(broadcast, provider) as f64 / broadcast.messages[side(provider)].max(1) as f64
    }

    /// Shows a bar for each provider until the broadcast has its outcome.
    async fn follow(&self, broadcast: &Broadcast) -> anyhow::Result<()> {
        let bars = ProviderId::ALL.map(|provider| {
            let bar =
                self.screen.bar(format!("{} {provider}", broadcast.name), broadcast.messages[side(provider)]);
            (provider, bar)
        });
        self.until("the broadcast's outcome", || {
            for (provider, bar) in &bars {
                bar.at(self.done(broadcast, *provider));
            }
            self.is_over(broadcast)
        })
        .await;
        drop(bars);
        if let Some(Counts { sent, dead, .. }) = self.outcome(broadcast) {
            self.screen.say(format!(
                "{}: {sent} sent, {dead} to dead tokens, in {}",
                broadcast.name,
                shown(broadcast.began.elapsed())
            ));
        }
        Ok(())
    }

    fn is_over(&self, broadcast: &Broadcast) -> bool {
        self.outcome(broadcast).is_some()
    }

    fn outcome(&self, broadcast: &Broadcast) -> Option<Counts> {
        self.world.notes.noted().outcomes.iter().find_map(|report| match report {
            Report::Broadcast { notification, counts, .. } if notification.as_str() == broadcast.name => {
                Some(*counts)
            }
            Report::Broadcast { .. } | Report::Dose { .. } => None,
        })
    }

    /// Collector that a provider is attacked from now on.
    fn attack(&self, provider: ProviderId) {
        let from = Timestamp::now();
        self.measured.borrow_mut().attacks.push(Attack { provider, from, until: from + ATTACK });
    }

    /// Publishes a reminder: a dose that upstream found due itself.
    async fn remind(&self) -> anyhow::Result<(Name, Timestamp)> {
        let number = u32::try_from(self.measured.borrow().reminders.len())?;
        let name = format!("dose:reminder-{number}");
        let (step, at) = (scenario::reminder(number, this_second()), Timestamp::now());
        self.measured.borrow_mut().reminders.insert(name.clone(), at);
        self.publish(vec![step]).await?;
        Ok((name, at))
    }

    async fn remind_and_tell(&self, what: &str) -> anyhow::Result<()> {
        let (name, at) = self.remind().await?;
        let taken = |provider| {
            let arrived = self.watch.arrival(&name, provider)?;
            Some(shown(Duration::try_from(arrived.duration_since(at)).unwrap_or_default()))
        };
        self.until("a reminder", || taken(Expo).is_some() && taken(Fcm).is_some()).await;
        if let (Some(expo), Some(fcm)) = (taken(Expo), taken(Fcm)) {
            self.screen.say(format!("{what}: record → Expo {expo}, record → FCM {fcm}"));
        }
        Ok(())
    }

    /// Reminds somebody again and again while the broadcast runs.
    async fn remind_during(&self, broadcast: &Broadcast) -> anyhow::Result<()> {
        while !self.is_over(broadcast) {
            self.remind().await?;
            sleep(REMIND_EVERY).await;
        }
        Ok(())
    }

    async fn until(&self, doing: &'static str, mut is_so: impl FnMut() -> bool) {
        self.doing.set(doing);
        while !is_so() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the store holds what follows from everything published so far.
    async fn until_store_agrees(&self, doing: &'static str) -> anyhow::Result<()> {
        self.doing.set(doing);
        let expected = self.expected().census;
        while self.world.store.census().await? != expected {
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

fn side(provider: ProviderId) -> usize {
    usize::from(provider == Fcm)
}

fn next_minute(at: Timestamp) -> Timestamp {
    Timestamp::from_second((at.as_second().div_euclid(60) + 1) * 60).unwrap_or(Timestamp::MAX)
}

/// The time of a dose that is due now: never ahead of the clock.
fn this_second() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::MIN)
}
