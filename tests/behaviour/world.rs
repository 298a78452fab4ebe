//! A world to tell a story in: Kafka, the push services and pushcast itself, all in one process, all of its
//! own.
//!
//! pushcast runs as in production, from [`Config::load`] to the drain; faked are only the wires that it talks
//! over. The story races against it: when pushcast ends unasked, the story fails at once with pushcast's own
//! words. When the story is told, everything must have been settled, nothing may have rung twice, and no
//! record may lie in `dead-letters` that the story has not spoken of.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use consumer::mock::Broker;
use futures::FutureExt as _;
use pushcast::{
    app::{App, Stages},
    config::{Config, Environment},
    domain::{Counts, ProviderId, Report, Timestamp, Token},
    events,
    http::Health,
    metrics::Metrics,
    store::{Doses as _, Registry as _, RouteRow, Routes as _, embedded::EmbeddedStore},
    topology,
};
use sandbox::{Faults, Options, Sandbox, TakenMessage};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::neighbour::{Neighbour, Received};

/// No story waits longer than that for anything. Far beyond what anything takes, because the machine may be
/// busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A story before it is told: the settings of its world.
pub struct Story {
    environment: Environment,
    with_fcm: bool,
}

/// Everything there is in a story.
pub struct World {
    service: Service,
    pub neighbour: Neighbour,
    pub store: EmbeddedStore,
    pub sandbox: Sandbox,
    // After everybody who speaks to it: what is dropped goes in this order.
    pub broker: Broker,
    environment: Environment,
    failed: watch::Sender<Option<String>>,
    dead_letters_told: usize,
    _credentials: NamedTempFile,
}

/// A running pushcast.
struct Service {
    stop: CancellationToken,
    task: JoinSet<()>,
    metrics: Arc<Metrics>,
    health: Health,
}

/// A phone, or rather its token. The sandbox reads the token: one that contains `dead` is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phone(pub String);

/// A post on its way.
pub struct Post<'a> {
    world: &'a World,
    event: Value,
}

/// A world with everything on, no rate, and Expo alone.
pub fn story() -> Story {
    let mut story = Story { environment: Environment::new(), with_fcm: false };
    for (key, value) in [
        ("store.url", "embedded:memory"),
        ("http.admin_listen", ""),
        ("kafka.commit_every", "100ms"),
        ("expo.rate_per_second", "0"),
        ("expo.receipt_delay", "50ms"),
        ("fcm.rate_per_second", "0"),
        ("fcm.ramp_up", "0s"),
        ("medication.tick_every", "0s"),
    ] {
        story = story.set(key, value);
    }
    story
}

/// Looks again and again until there is something to be seen; fails with what was waited for when that takes
/// too long.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The name of a setting in the environment.
pub fn variable(key: &str) -> String {
    format!("PUSHCAST__{}", key.replace('.', "__").to_uppercase())
}

// === impl Story ===

impl Story {
    /// Sets a setting, by its path in config/default.toml.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.environment.insert(variable(key), value.to_string());
        self
    }

    /// FCM is configured too.
    pub fn with_fcm(mut self) -> Self {
        self.with_fcm = true;
        self
    }

    /// Tells it.
    pub async fn tell(self, story: impl AsyncFnOnce(&mut World)) {
        // RUST_LOG=pushcast=debug shows what pushcast says in a story that fails.
        if let Ok(log) = tracing_subscriber::EnvFilter::try_from_default_env() {
            let _set_before = tracing_subscriber::fmt().with_env_filter(log).with_test_writer().try_init();
        }
        let mut world = World::of(self).await;
        let mut failed = world.failed.subscribe();
        let whole = async {
            world.is_ready().await;
            story(&mut world).await;
            world.ends().await;
        };
        tokio::select! {
            () = whole => {}
            why = failed.wait_for(Option::is_some) => panic!("{}", why.unwrap().as_deref().unwrap_or_default()),
        }
    }
}

// === impl World ===

impl World {
    async fn of(story: Story) -> Self {
        let sandbox = Sandbox::start(Options::remembering()).await.unwrap();
        let broker = topology::embedded_broker(16).unwrap();
        let store = EmbeddedStore::memory().unwrap();
        store.init_marks(Timestamp::now()).await.unwrap();
        let credentials = NamedTempFile::new().unwrap();
        let mut environment = story.environment;
        let mut set = |key: &str, value: String| {
            environment.entry(variable(key)).or_insert(value);
        };
        set("kafka.bootstrap_servers", broker.bootstrap_servers());
        set("kafka.properties", json!(Broker::properties()).to_string());
        set("expo.url", sandbox.expo_url());
        set("fcm.url", sandbox.fcm_url());
        if story.with_fcm {
            std::fs::write(credentials.path(), sandbox.service_account()).unwrap();
            set("fcm.credentials_file", credentials.path().display().to_string());
        }
        let failed = watch::Sender::new(None);
        let service = Service::start(&environment, &store, &failed);
        let neighbour = Neighbour::at(&broker.bootstrap_servers());
        Self {
            sandbox,
            broker,
            store,
            neighbour,
            environment,
            service,
            failed,
            dead_letters_told: 0,
            _credentials: credentials,
        }
    }

    // What there is.

    pub fn metrics(&self) -> &Metrics {
        &self.service.metrics
    }

    pub fn health(&self) -> &Health {
        &self.service.health
    }

    /// Changes what the push services do wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.sandbox.faults().change(change);
    }

    // What happens.

    /// Writes a line as a console producer would.
    pub async fn says(&self, topic: &str, value: &Value) {
        self.neighbour.writes(topic, None, Some(value.to_string().as_bytes()), None).await;
    }

    /// The user logs in on the phone, and pushcast knows.
    pub async fn registers(&self, user: &str, phone: &Phone) {
        self.says("device-tokens", &json!({"token": phone.0, "userId": user})).await;
        until(&format!("{phone:?} to be {user}'s"), async || {
            (self.owner(phone).await.as_deref() == Some(user)).then_some(())
        })
        .await;
    }

    /// Everybody logs in, at once.
    pub async fn all_register(&self, phones: &[Phone]) {
        let logins = phones
            .iter()
            .map(|phone| json!({"token": phone.0, "userId": format!("owner of {}", phone.0)}).to_string());
        self.neighbour.writes_all("device-tokens", logins).await;
        self.settles().await;
    }

    /// A post that nobody has written yet: `.by(author)` writes it.
    pub fn posts(&self, post: &str) -> Post<'_> {
        Post { world: self, event: json!({"postId": post, "authorName": "Ann", "title": post}) }
    }

    /// Upstream finds that a dose of the user's is due.
    pub async fn dose_is_due(&self, user: &str, at: Timestamp) {
        self.says("medication-ticks", &dose_tick(user, at)).await;
    }

    // What can be seen.

    /// Whose phone it is; `None` = nobody's, or not a live one.
    pub async fn owner(&self, phone: &Phone) -> Option<String> {
        self.registration(phone).await.and_then(|registration| registration.user).map(|user| user.to_string())
    }

    /// Waits until the phone's token is no longer live.
    pub async fn forgets(&self, phone: &Phone) {
        until(&format!("{phone:?} to be forgotten"), async || {
            self.registration(phone).await.is_none().then_some(())
        })
        .await;
    }

    pub async fn registration(&self, phone: &Phone) -> Option<pushcast::domain::Registration> {
        self.store.inspect(&phone.token()).await.unwrap().and_then(|row| row.registration)
    }

    /// What the phone has shown so far: the body of each message that the provider took, in their order.
    pub fn rung(&self, phone: &Phone) -> Vec<String> {
        self.heard(phone).into_iter().filter_map(|message| message.body).collect()
    }

    /// The same, whole.
    pub fn heard(&self, phone: &Phone) -> Vec<TakenMessage> {
        self.sandbox.messages().into_iter().filter(|message| message.token == phone.0).collect()
    }

    /// Waits until the phone has shown something.
    pub async fn rings(&self, phone: &Phone) {
        until(&format!("{phone:?} to ring"), async || (!self.rung(phone).is_empty()).then_some(())).await;
    }

    /// The outcomes of a notification that were published so far.
    pub fn outcomes_of(&self, id: &str) -> Vec<Report> {
        let reports = self.neighbour.received("push-outcomes").into_iter();
        let reports =
            reports.map(|received| events::push_outcomes::read(None, received.value.as_deref()).unwrap());
        reports
            .filter(|(Report::Broadcast { notification, .. } | Report::Dose { notification, .. })| {
                notification.as_str() == id
            })
            .collect()
    }

    /// Waits for the outcome of a notification.
    pub async fn report_of(&self, id: &str) -> Report {
        until(&format!("the outcome of {id}"), async || self.outcomes_of(id).pop()).await
    }

    /// Waits for the outcome of a notification: what became of its messages.
    pub async fn outcome_of(&self, id: &str) -> Counts {
        let (Report::Broadcast { counts, .. } | Report::Dose { counts, .. }) = self.report_of(id).await;
        counts
    }

    /// Waits until that many records lie in `dead-letters`. It is then the story's affair that they do.
    pub async fn dead_letters(&mut self, count: usize) -> Vec<Received> {
        self.dead_letters_told = count;
        until(&format!("{count} dead letters"), async || {
            let letters = self.neighbour.received("dead-letters");
            (letters.len() >= count).then_some(letters)
        })
        .await
    }

    pub async fn route(&self, provider: ProviderId) -> RouteRow {
        self.store.route(provider).await.unwrap()
    }

    /// Waits until everything that was ever written is settled: what has not rung by then never will.
    pub async fn settles(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let unsettled = self.neighbour.unsettled().await;
            if unsettled.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "after {PATIENCE:?} there is still work:\n{}",
                unsettled.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    // pushcast's own life.

    /// Waits until pushcast is ready.
    pub async fn is_ready(&self) {
        until("pushcast to be ready", async || self.health().report().is_ready().then_some(())).await;
    }

    /// Stops pushcast in good order.
    pub async fn stops(&mut self) {
        self.service.stop.cancel();
        let stopped = tokio::time::timeout(PATIENCE, self.service.task.join_next()).await;
        assert!(stopped.is_ok(), "pushcast does not stop within {PATIENCE:?}");
        assert_eq!(*self.failed.borrow(), None, "pushcast did not stop in good order");
    }

    /// Starts pushcast again over the same store, with a setting changed.
    pub async fn starts_again_with(&mut self, key: &str, value: &str) {
        self.environment.insert(variable(key), value.to_owned());
        self.service = Service::start(&self.environment, &self.store, &self.failed);
        self.is_ready().await;
    }

    /// The end of every story.
    async fn ends(&mut self) {
        self.settles().await;
        self.stops().await;
        let buried = self.neighbour.records_in("dead-letters").await;
        if buried != self.dead_letters_told {
            let letters = self.dead_letters(buried).await;
            panic!("records lie in dead-letters that the story says nothing of: {letters:#?}");
        }
        let seen = self.sandbox.statistics();
        assert_eq!(seen.expo.doubles + seen.fcm.doubles, 0, "something rang twice: {seen:#?}");
    }
}

/// One dose that upstream found due: 500 mg of Metformin for the user.
pub fn dose_tick(user: &str, at: Timestamp) -> Value {
    let dose = json!({
        "regimenId": format!("{user}s-regimen"), "profileId": "pr1", "userId": user, "scheduleTime": at.to_string(),
        "medicineName": "Metformin", "dosage": "500 mg",
    });
    json!({ "dose": dose })
}

/// The id of that dose's notification.
pub fn dose_id(user: &str, at: Timestamp) -> String {
    format!("dose:pr1:{user}s-regimen:{at}")
}

// === impl Service ===

impl Service {
    fn start(
        environment: &Environment,
        store: &EmbeddedStore,
        failed: &watch::Sender<Option<String>>,
    ) -> Self {
        let config = Config::load(None, environment).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let app = App::new(config, store.clone(), Stages::all());
        let (metrics, health, stop) = (app.metrics(), app.health(), CancellationToken::new());
        let (stopping, failed) = (stop.clone(), failed.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let ended = AssertUnwindSafe(app.run(stopping.clone())).catch_unwind().await;
            let why = match ended {
                Ok(Ok(())) if stopping.is_cancelled() => return,
                Ok(Ok(())) => "pushcast ended, although nobody asked it to".to_owned(),
                Ok(Err(err)) => format!("pushcast failed: {err:#}"),
                Err(_) => "pushcast panicked".to_owned(),
            };
            failed.send_replace(Some(why));
        });
        Self { stop, task, metrics, health }
    }
}

// === impl Phone ===

impl Phone {
    /// One that Expo reaches.
    pub fn expo(name: &str) -> Self {
        Self(format!("ExponentPushToken[{name}]"))
    }

    /// One that FCM reaches.
    pub fn fcm(name: &str) -> Self {
        Self(format!("{name}:{}", "x".repeat(80)))
    }

    /// Many that Expo reaches.
    pub fn many(count: usize) -> Vec<Self> {
        (0..count).map(|number| Self::expo(&format!("phone-{number}"))).collect()
    }

    pub fn token(&self) -> Token {
        Token::parse(&self.0).unwrap()
    }
}

// === impl Post ===

impl Post<'_> {
    /// Only for these.
    pub fn to(mut self, users: &[&str]) -> Self {
        self.event["audience"] = json!({ "users": users });
        self
    }

    /// Writes it.
    pub async fn by(mut self, author: &str) {
        self.event["authorId"] = author.into();
        self.world.says("posts-created", &self.event).await;
    }
}
