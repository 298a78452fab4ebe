//! The world of a test: Kafka, the push services and pushcast itself, all in one process, shared with no
//! other test.
//!
//! pushcast runs as in production, from [`Config::load`] to the drain; faked are only the wires that it talks
//! over. The test races against it: when pushcast ends unasked, the test fails at once with pushcast's error.
//! At the end everything must be settled, no message may have been sent twice, and `dead-letters` may hold
//! only the records that the test has asked for.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use consumer::mock::Broker;
use futures::FutureExt as _;
use pushcast::{
    app::{App, Stages},
    config::{Config, Environment},
    domain::{Counts, ProviderId, Registration, Report, Timestamp, Token},
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

use crate::kafka::{KafkaClient, Received};

/// How long a test waits for anything. Far beyond what anything takes, because the machine may be busy.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The settings of a world that does not run yet.
pub struct Setup {
    environment: Environment,
    with_fcm: bool,
}

/// What a test talks to.
pub struct World {
    service: Service,
    pub kafka: KafkaClient,
    pub store: EmbeddedStore,
    pub sandbox: Sandbox,
    // Fields are dropped in this order: the broker after its clients.
    pub broker: Broker,
    environment: Environment,
    failed: watch::Sender<Option<String>>,
    dead_letters_expected: usize,
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

/// A post that is not written yet.
pub struct Post<'a> {
    world: &'a World,
    event: Value,
}

/// A world with every stage, no rate limits, and Expo alone.
pub fn world() -> Setup {
    let mut setup = Setup { environment: Environment::new(), with_fcm: false };
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
        setup = setup.set(key, value);
    }
    setup
}

/// Polls until there is a value; fails with `what` if that takes too long.
pub async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(value) = poll().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {WAIT_MAX:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The name of a setting in the environment.
pub fn variable(key: &str) -> String {
    format!("PUSHCAST__{}", key.replace('.', "__").to_uppercase())
}

// === impl Setup ===

impl Setup {
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

    /// Runs a test in this world.
    pub async fn run(self, test: impl AsyncFnOnce(&mut World)) {
        // RUST_LOG=pushcast=debug shows what pushcast logs in a test that fails.
        if let Ok(log) = tracing_subscriber::EnvFilter::try_from_default_env() {
            let _set_before = tracing_subscriber::fmt().with_env_filter(log).with_test_writer().try_init();
        }
        let mut world = World::start(self).await;
        let mut failed = world.failed.subscribe();
        let whole = async {
            world.wait_until_ready().await;
            test(&mut world).await;
            world.finish().await;
        };
        tokio::select! {
            () = whole => {}
            why = failed.wait_for(Option::is_some) => {
                panic!("{}", why.unwrap().as_deref().unwrap_or_default());
            }
        }
    }
}

// === impl World ===

impl World {
    async fn start(setup: Setup) -> Self {
        let sandbox = Sandbox::start(Options::remembering()).await.unwrap();
        let broker = topology::embedded_broker(16).unwrap();
        let store = EmbeddedStore::memory().unwrap();
        store.init_marks(Timestamp::now()).await.unwrap();
        let credentials = NamedTempFile::new().unwrap();
        let mut environment = setup.environment;
        let mut set = |key: &str, value: String| {
            environment.entry(variable(key)).or_insert(value);
        };
        set("kafka.bootstrap_servers", broker.bootstrap_servers());
        set("kafka.properties", json!(Broker::properties()).to_string());
        set("expo.url", sandbox.expo_url());
        set("fcm.url", sandbox.fcm_url());
        if setup.with_fcm {
            std::fs::write(credentials.path(), sandbox.service_account()).unwrap();
            set("fcm.credentials_file", credentials.path().display().to_string());
        }
        let failed = watch::Sender::new(None);
        let service = Service::start(&environment, &store, &failed);
        let kafka = KafkaClient::connect(&broker.bootstrap_servers());
        Self {
            sandbox,
            broker,
            store,
            kafka,
            environment,
            service,
            failed,
            dead_letters_expected: 0,
            _credentials: credentials,
        }
    }

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

    // What upstream does.

    /// Writes a record without a key, as a console producer would.
    pub async fn produce(&self, topic: &str, value: &Value) {
        self.kafka.produce(topic, None, Some(value.to_string().as_bytes()), None).await;
    }

    /// The user logs in on the phone; returns when pushcast has registered it.
    pub async fn register(&self, user: &str, phone: &Phone) {
        self.produce("device-tokens", &json!({"token": phone.0, "userId": user})).await;
        until(&format!("{phone:?} to be {user}'s"), async || {
            (self.owner(phone).await.as_deref() == Some(user)).then_some(())
        })
        .await;
    }

    /// Registers all phones at once, each with a user of its own, `owner of …`.
    pub async fn register_all(&self, phones: &[Phone]) {
        let logins = phones
            .iter()
            .map(|phone| json!({"token": phone.0, "userId": format!("owner of {}", phone.0)}).to_string());
        self.kafka.produce_all("device-tokens", logins).await;
        self.wait_until_settled().await;
    }

    /// A post; [`Post::by`] writes it.
    pub fn post(&self, post: &str) -> Post<'_> {
        Post { world: self, event: json!({"postId": post, "authorName": "Ann", "title": post}) }
    }

    /// Upstream finds that a dose of the user's is due.
    pub async fn dose_is_due(&self, user: &str, at: Timestamp) {
        self.produce("medication-ticks", &dose_tick(user, at)).await;
    }

    // What can be seen.

    /// The user of the phone's token; `None` if it has none or is not live.
    pub async fn owner(&self, phone: &Phone) -> Option<String> {
        self.registration(phone).await.and_then(|registration| registration.user).map(|user| user.to_string())
    }

    /// Waits until the phone's token is no longer live.
    pub async fn wait_until_removed(&self, phone: &Phone) {
        until(&format!("{phone:?} to be removed"), async || {
            self.registration(phone).await.is_none().then_some(())
        })
        .await;
    }

    pub async fn registration(&self, phone: &Phone) -> Option<Registration> {
        self.store.inspect(&phone.token()).await.unwrap().and_then(|row| row.registration)
    }

    /// The body of each message to the phone that the provider has taken, in their order.
    pub fn sent_to(&self, phone: &Phone) -> Vec<String> {
        self.messages_to(phone).into_iter().filter_map(|message| message.body).collect()
    }

    /// The same, with all fields.
    pub fn messages_to(&self, phone: &Phone) -> Vec<TakenMessage> {
        self.sandbox.messages().into_iter().filter(|message| message.token == phone.0).collect()
    }

    /// Waits until the provider has taken a message to the phone.
    pub async fn wait_until_sent_to(&self, phone: &Phone) {
        until(&format!("a message to {phone:?}"), async || (!self.sent_to(phone).is_empty()).then_some(()))
            .await;
    }

    /// The outcomes of a notification that were published so far.
    pub fn outcomes_of(&self, id: &str) -> Vec<Report> {
        let reports = self.kafka.received("push-outcomes").into_iter();
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

    /// Waits for the outcome of a notification: its messages by outcome.
    pub async fn outcome_of(&self, id: &str) -> Counts {
        let (Report::Broadcast { counts, .. } | Report::Dose { counts, .. }) = self.report_of(id).await;
        counts
    }

    /// Waits until there are so many records in `dead-letters`. More of them fail the test at its end.
    pub async fn dead_letters(&mut self, count: usize) -> Vec<Received> {
        self.dead_letters_expected = count;
        until(&format!("{count} dead letters"), async || {
            let letters = self.kafka.received("dead-letters");
            (letters.len() >= count).then_some(letters)
        })
        .await
    }

    pub async fn route(&self, provider: ProviderId) -> RouteRow {
        self.store.route(provider).await.unwrap()
    }

    /// Waits until every record written so far is settled: what has not been sent by then never will be.
    pub async fn wait_until_settled(&self) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let unsettled = self.kafka.unsettled().await;
            if unsettled.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "after {WAIT_MAX:?} there is still work:\n{}",
                unsettled.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    // The life of the process.

    pub async fn wait_until_ready(&self) {
        until("pushcast to be ready", async || self.health().report().is_ready().then_some(())).await;
    }

    /// Stops pushcast gracefully.
    pub async fn stop(&mut self) {
        self.service.stop.cancel();
        let stopped = tokio::time::timeout(WAIT_MAX, self.service.task.join_next()).await;
        assert!(stopped.is_ok(), "pushcast does not stop within {WAIT_MAX:?}");
        assert_eq!(*self.failed.borrow(), None, "pushcast did not stop gracefully");
    }

    /// Starts pushcast again over the same store, with a setting changed.
    pub async fn start_again_with(&mut self, key: &str, value: &str) {
        self.environment.insert(variable(key), value.to_owned());
        self.service = Service::start(&self.environment, &self.store, &self.failed);
        self.wait_until_ready().await;
    }

    /// The end of every test.
    async fn finish(&mut self) {
        self.wait_until_settled().await;
        self.stop().await;
        let dead_letters = self.kafka.record_count("dead-letters").await;
        if dead_letters != self.dead_letters_expected {
            let letters = self.dead_letters(dead_letters).await;
            panic!("the test does not expect these dead letters: {letters:#?}");
        }
        let seen = self.sandbox.statistics();
        assert_eq!(seen.expo.duplicates + seen.fcm.duplicates, 0, "a message was sent twice: {seen:#?}");
    }
}

/// One dose that upstream found due: 500 mg of Metformin for the user.
pub fn dose_tick(user: &str, at: Timestamp) -> Value {
    let dose = json!({
        "regimenId": format!("{user}s-regimen"),
        "profileId": "pr1",
        "userId": user,
        "scheduleTime": at.to_string(),
        "medicineName": "Metformin",
        "dosage": "500 mg",
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
        let config = Config::load(None, environment).unwrap_or_else(|errors| panic!("{errors}"));
        let app = App::new(config, store.clone(), Stages::all());
        let metrics = app.metrics();
        let health = app.health();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let failed = failed.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let ended = AssertUnwindSafe(app.run(stopping.clone())).catch_unwind().await;
            let why = match ended {
                Ok(Ok(())) if stopping.is_cancelled() => return,
                Ok(Ok(())) => "pushcast ended without being stopped".to_owned(),
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
    /// A phone with a token of Expo's.
    pub fn expo(name: &str) -> Self {
        Self(format!("ExponentPushToken[{name}]"))
    }

    /// A phone with a token of FCM's.
    pub fn fcm(name: &str) -> Self {
        Self(format!("{name}:{}", "x".repeat(80)))
    }

    /// So many phones with tokens of Expo's: `phone-0`, `phone-1` …
    pub fn many(count: usize) -> Vec<Self> {
        (0..count).map(|number| Self::expo(&format!("phone-{number}"))).collect()
    }

    pub fn token(&self) -> Token {
        Token::parse(&self.0).unwrap()
    }
}

// === impl Post ===

impl Post<'_> {
    /// Only to these users.
    pub fn to(mut self, users: &[&str]) -> Self {
        self.event["audience"] = json!({ "users": users });
        self
    }

    /// Writes it.
    pub async fn by(mut self, author: &str) {
        self.event["authorId"] = author.into();
        self.world.produce("posts-created", &self.event).await;
    }
}
