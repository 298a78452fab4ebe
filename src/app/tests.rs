use consumer::mock::Broker;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;
use crate::store::embedded::EmbeddedStore;

#[test]
fn a_stop_leaves_time_for_a_drain_and_for_leaving_the_groups() {
    let seconds = Duration::from_secs;
    assert!(grace(seconds(20)) == seconds(40) && grace(seconds(60)) > seconds(60));
}

fn config(broker: &Broker) -> Config {
    let properties = serde_json::to_string(&Broker::properties()).unwrap();
    let set = [
        ("PUSHCAST__KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers()),
        ("PUSHCAST__KAFKA__PROPERTIES", properties),
        ("PUSHCAST__STORE__URL", "embedded:memory".to_owned()),
        ("PUSHCAST__EXPO__URL", "http://127.0.0.1:9/send".to_owned()),
        ("PUSHCAST__HTTP__ADMIN_LISTEN", String::new()),
    ];
    Config::load(None, &set.map(|(name, value)| (name.to_owned(), value)).into()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_run_any_stage_alone_and_ends_after_a_stop() {
    let broker = topology::embedded_broker(16).unwrap();
    let stages = topology::STAGES.map(|stage| stage.name);
    for stage in stages.into_iter().filter(|stage| !stage.starts_with("delivery.fcm")) {
        let app = App::new(config(&broker), EmbeddedStore::memory().unwrap(), stage.parse().unwrap());
        let health = app.health();
        let stop = CancellationToken::new();
        let mut process = JoinSet::new();
        process.spawn(app.run(stop.clone()));
        let ready = async {
            while !health.report().is_ready() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = ready => {}
            ended = process.join_next() => {
                panic!("{stage} alone: {:#}", ended.unwrap().unwrap().unwrap_err())
            }
            () = sleep(Duration::from_secs(30)) => {
                panic!("{stage} alone is not ready: {:?}", health.report())
            }
        }
        let [expo, fcm] =
            ProviderId::ALL.map(|id| health.report().details.get(&http::local_status_of(id)).cloned());
        assert!(
            expo.is_none() && fcm.is_some_and(|detail| detail.contains("not set up")),
            "{stage} alone: {:?}",
            health.report()
        );
        stop.cancel();
        let ended = timeout(LEAVING, process.join_next()).await;
        ended.unwrap_or_else(|_| panic!("{stage} alone does not end")).unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_readiness_of_a_stage_leaves_it_to_the_stage_to_report_why_it_ended() {
    let stop = CancellationToken::new();
    let mut tasks = ProcessTasks::default();
    let assignment = || watch::channel(Assignment::default()).1; // of a stage that has ended
    let health = Health::new(Vec::<String>::new());
    for _ in 0..20 {
        let readiness = show_readiness("tokens".to_owned(), assignment(), health.clone(), stop.clone());
        tasks.spawn("readiness", readiness);
    }
    tasks.spawn("tokens", async { Err(anyhow::anyhow!("fenced")) });
    assert_eq!(format!("{:#}", tasks.first_to_end(&stop).await.unwrap()), "tokens failed: fenced");
}
