//! Three processes on one Kafka and one CQL store share the work and send each message once, also when one is
//! killed and another one joins.

use std::{collections::BTreeSet, env, fs, net::TcpListener, time::Duration};

use jiff::Timestamp;
use sandbox::Provider;
use scylla::client::session_builder::SessionBuilder;
use serde_json::{Value, json};
use tokio::{runtime::Handle, task::block_in_place};

use crate::{
    broker::services,
    world::{Running, World, until},
};

/// How many tokens each provider has.
const TOKENS: u64 = 1_000;
/// How many users, each with an Expo token, have a dose due.
const DOSES: usize = 48;
/// Long, because the servers and all processes may share two cores with other tests.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// Settings under which a broadcast lasts some seconds, and a kill can repeat little of it.
const SETTINGS: [(&str, &str); 9] = [
    ("EXPO__RATE_PER_SECOND", "400"),
    ("FCM__RATE_PER_SECOND", "400"),
    ("FCM__RAMP_UP", "0s"),
    ("EXPO__RECEIPT_DELAY", "1s"),
    ("MEDICATION__TICK_EVERY", "0s"),
    ("PUSH__OPEN_PAGES", "4"),
    ("PUSH__PAGE_SIZE", "10"),
    ("KAFKA__SESSION_TIMEOUT", "6s"),
    ("KAFKA__COMMIT_EVERY", "200ms"),
];
/// After a kill at most these messages are sent again, to each provider: open pages x page size.
const AGAIN_MAX: u64 = 4 * 10;

/// One of the processes.
struct Member {
    running: Running,
    admin: String,
}

pub async fn share_the_work() {
    let store = new_keyspace(&cassandra()).await;
    let world = World::empty(&[&SETTINGS[..], &[("STORE__URL", &store)]].concat()).await;
    let ended = world.pushcast(&["init"]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    // All tokens are registered by the first process, before there is another.
    let first = Member::start(&world);
    let tokens = register_all(&world);
    assert_eq!(first.metric("records_total", &[r#"stage="tokens""#, r#"fate="done""#]), 2 * TOKENS);
    let members = [first, Member::start(&world), Member::start(&world)];
    each_has_partitions(&world, members.len());

    each_takes_part_in_a_broadcast(&world, &members, &tokens);
    each_takes_part_in_doses(&world, &members);
    let members = a_kill_in_the_middle_repeats_little(&world, members);
    for member in members {
        assert!(member.running.stop().success(), "a graceful stop");
    }
}

// === The steps ===

fn register_all(world: &World) -> BTreeSet<String> {
    let expo = (0..TOKENS).map(|n| (format!("ExponentPushToken[alive-{n}]"), format!("u{n}"), "ios"));
    let fcm = (0..TOKENS).map(|n| (format!("alive-{n}:{}", "x".repeat(80)), format!("v{n}"), "android"));
    let phones: Vec<_> = expo.chain(fcm).collect();
    let line = |(token, user, platform): &_| {
        json!({"token": token, "userId": user, "platform": platform}).to_string()
    };
    world.produce("device-tokens", &phones.iter().map(line).collect::<Vec<_>>());
    world.broker.wait_until_settled(&world.group("tokens"), "device-tokens", WAIT_MAX);
    phones.into_iter().map(|(token, _, _)| token).collect()
}

fn each_has_partitions(world: &World, members: usize) {
    for stage in ["delivery.expo.bulk", "delivery.fcm.bulk", "delivery.expo.urgent"] {
        until(&format!("each has partitions of {stage}"), WAIT_MAX, || {
            let assigned = world.broker.assigned(&world.group(stage));
            (assigned.len() == members
                && assigned.iter().all(|partitions| *partitions > 0)
                && assigned.iter().sum::<u32>() == 16)
                .then_some(())
        });
    }
}

/// Tokens that one process has registered are sent to by all three, each once.
fn each_takes_part_in_a_broadcast(world: &World, members: &[Member], tokens: &BTreeSet<String>) {
    broadcast(world, "first");
    let sent_to: Vec<String> = world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert_eq!(sent_to.len() as u64, 2 * TOKENS, "no token twice");
    assert_eq!(BTreeSet::from_iter(sent_to), *tokens, "no token missed");
    for provider in ["expo", "fcm"] {
        let sent: Vec<u64> = members.iter().map(|member| member.sent(provider, "bulk")).collect();
        println!("{provider}: {sent:?} of a broadcast");
        assert!(sent.iter().all(|sent| *sent > 0), "each takes part: {sent:?}");
        assert_eq!(sent.iter().sum::<u64>(), TOKENS);
    }
}

fn each_takes_part_in_doses(world: &World, members: &[Member]) {
    world.sandbox.reset();
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap().to_string();
    let dose = |n: usize| {
        let regimen = format!("r{n}");
        json!({"dose": {
            "regimenId": regimen, "profileId": "pr1", "userId": format!("u{n}"), "scheduleTime": at,
            "medicineName": "Metformin", "dosage": "500 mg",
        }})
        .to_string()
    };
    world.produce("medication-ticks", &(0..DOSES).map(dose).collect::<Vec<_>>());
    let outcomes = until("each dose has its outcome", WAIT_MAX, || {
        let outcomes = outcomes(world, "dose:");
        (outcomes.len() >= DOSES).then_some(outcomes)
    });
    let distinct: BTreeSet<_> =
        outcomes.iter().map(|outcome| outcome["notificationId"].as_str().unwrap()).collect();
    assert_eq!((outcomes.len(), distinct.len()), (DOSES, DOSES), "each once");
    assert!(outcomes.iter().all(|outcome| outcome["outcome"] == "sent"), "{outcomes:?}");
    let seen = world.sandbox.statistics().expo;
    assert_eq!((seen.taken, seen.distinct_tokens, seen.duplicates), (DOSES as u64, DOSES as u64, 0));
    let sent: Vec<u64> = members.iter().map(|member| member.sent("expo", "urgent")).collect();
    println!("expo: {sent:?} of the doses");
    assert!(sent.iter().all(|sent| *sent > 0), "each takes part: {sent:?}");
}

/// One of three is killed in the middle of a broadcast, and another one joins at once.
fn a_kill_in_the_middle_repeats_little(world: &World, members: [Member; 3]) -> [Member; 3] {
    world.sandbox.reset();
    let [killed, second, third] = members;
    world.produce("posts-created", &[post("second")]);
    let middle = || Some(world.sandbox.statistics().expo.taken).filter(|taken| *taken >= TOKENS / 4);
    let taken = until("the middle of the broadcast", WAIT_MAX, middle);
    killed.running.kill();
    println!("killed when Expo had taken {taken} of {TOKENS}");
    let members = [second, third, Member::start(world)];
    assert_eq!(outcomes(world, "post:second"), Vec::<Value>::new(), "killed too late");
    check_total(world, "second");

    let seen = world.sandbox.statistics();
    println!(
        "duplicates: Expo {}, FCM {}; at most {AGAIN_MAX} each",
        seen.expo.duplicates, seen.fcm.duplicates
    );
    for seen in [&seen.expo, &seen.fcm] {
        assert_eq!(seen.distinct_tokens, TOKENS, "no token missed");
        assert!(seen.duplicates <= AGAIN_MAX, "{} duplicates", seen.duplicates);
    }
    each_has_partitions(world, members.len());
    members
}

// === What they need ===

/// Broadcasts, waits for the end and checks the total. The sandbox has seen nothing else then.
fn broadcast(world: &World, id: &str) {
    world.sandbox.reset();
    world.produce("posts-created", &[post(id)]);
    check_total(world, id);
    let seen = world.sandbox.statistics();
    for provider in [Provider::Expo, Provider::Fcm] {
        let seen = if provider == Provider::Expo { &seen.expo } else { &seen.fcm };
        assert_eq!((seen.taken, seen.distinct_tokens, seen.duplicates), (TOKENS, TOKENS, 0));
    }
}

/// Waits for the outcome of a broadcast, and until every part of it is settled: there is one outcome, and it
/// is right.
fn check_total(world: &World, id: &str) {
    let notification = format!("post:{id}");
    until(&format!("the total of {notification}"), WAIT_MAX, || {
        (!outcomes(world, &notification).is_empty()).then_some(())
    });
    for provider in ["expo", "fcm"] {
        world.broker.wait_until_settled(
            &world.group(&format!("delivery.{provider}.bulk")),
            &format!("push.{provider}.bulk"),
            WAIT_MAX,
        );
    }
    let totals = outcomes(world, &notification);
    assert_eq!(totals.len(), 1, "{totals:?}");
    assert_eq!(
        (&totals[0]["sent"], &totals[0]["dead"], &totals[0]["failed"]),
        (&json!(2 * TOKENS), &json!(0), &json!(0))
    );
}

fn post(id: &str) -> String {
    json!({"postId": id, "authorName": "Ann", "title": id}).to_string()
}

/// The outcomes of notifications whose id starts with the prefix.
fn outcomes(world: &World, prefix: &str) -> Vec<Value> {
    let matches =
        |outcome: &Value| outcome["notificationId"].as_str().is_some_and(|id| id.starts_with(prefix));
    world.broker.values("push-outcomes").into_iter().filter(matches).collect()
}

fn cassandra() -> String {
    env::var("PUSHCAST_TEST_CQL")
        .or_else(|_| fs::read_to_string(services().join("cassandra.address")))
        .map(|address| address.trim().to_owned())
        .expect("a CQL server is needed: `make services` starts one, or PUSHCAST_TEST_CQL names one")
}

/// The URL of a new keyspace; those of earlier runs are dropped.
async fn new_keyspace(address: &str) -> String {
    let session = SessionBuilder::new().known_node(address).build().await.unwrap();
    let rows = session
        .query_unpaged("SELECT keyspace_name FROM system_schema.keyspaces", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    for (name,) in rows.rows::<(String,)>().unwrap().map(Result::unwrap) {
        if name.starts_with("three_processes_") {
            session.query_unpaged(format!("DROP KEYSPACE {name}"), ()).await.unwrap();
        }
    }
    format!("scylla://{address}/three_processes_{:08x}", rand::random::<u32>())
}

// === impl Member ===

impl Member {
    /// Starts a process, and waits until it reports that it is ready.
    fn start(world: &World) -> Self {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let member = Self { running: world.start_with(&[("HTTP__ADMIN_LISTEN", &admin)]), admin };
        until("pushcast is ready", WAIT_MAX, || {
            member.get("ready").filter(|answer| answer.status().is_success()).map(drop)
        });
        member
    }

    fn get(&self, what: &str) -> Option<reqwest::Response> {
        block_in_place(|| Handle::current().block_on(reqwest::get(format!("http://{}/{what}", self.admin))))
            .ok()
    }

    /// How many messages it has sent.
    fn sent(&self, provider: &str, lane: &str) -> u64 {
        let provider = format!(r#"provider="{provider}""#);
        let lane = format!(r#"lane="{lane}""#);
        self.metric("notifications_total", &[&provider, &lane, r#"outcome="sent""#])
    }

    /// The sum of a metric over all lines that have these labels.
    fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let answer = self.get("metrics").unwrap();
        let text = block_in_place(|| Handle::current().block_on(answer.text())).unwrap();
        let prefix = format!("pushcast_{name}{{");
        let lines = text
            .lines()
            .filter(|line| line.starts_with(&prefix) && labels.iter().all(|label| line.contains(label)));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}
