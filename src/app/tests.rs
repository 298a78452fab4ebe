use consumer::mock::Broker;
use tokio::time::sleep;

use super::*;
use crate::store::embedded::EmbeddedStore;

#[test]
fn a_stop_leaves_time_to_finish_what_is_begun_and_to_be_gone() {
    let seconds = Duration::from_secs;
    assert_eq!(finish_within(seconds(20), seconds(15)), seconds(4));
    assert_eq!(finish_within(seconds(15), seconds(15)), Duration::ZERO);
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
async fn a_process_may_run_any_stage_alone_and_ends_when_it_is_asked_to() {
    let broker = topology::embedded_broker(16).unwrap();
    for stage in crate::topology::STAGES
        .map(|stage| stage.name)
        .into_iter()
        .filter(|stage| !stage.starts_with("delivery.fcm"))
    {
        let app = App::new(config(&broker), EmbeddedStore::memory().unwrap(), stage.parse().unwrap());
        let (health, stop) = (app.health(), CancellationToken::new());
        let mut process = JoinSet::new();
        process.spawn(app.run(stop.clone()));
        let ready = async {
            while !health.report().is_ready() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = ready => {}
            ended = process.join_next() => panic!("{stage} alone: {:#}", ended.unwrap().unwrap().unwrap_err()),
            () = sleep(Duration::from_secs(30)) => panic!("{stage} alone is not ready: {:?}", health.report()),
        }
        let [expo, fcm] =
            ProviderId::ALL.map(|id| health.report().details.get(&http::local_status_of(id)).cloned());
        assert!(
            expo.is_none() && fcm.is_some_and(|told| told.contains("not set up")),
            "{stage} alone: {:?}",
            health.report()
        );
        stop.cancel();
        let ended = timeout(LEAVING, process.join_next()).await;
        ended.unwrap_or_else(|_| panic!("{stage} alone does not end")).unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_task_that_hears_of_the_stop_first_has_not_ended_too_early() {
    // Which of the two is looked at first is a matter of luck.
    for _ in 0..100 {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let stopped = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            stopped.await;
            ("sweep".to_owned(), Ok(()))
        });
        stop.cancel();
        tokio::task::yield_now().await;
        assert!(first_to_end(&mut tasks, &stop).await.is_none());
    }
}

#[tokio::test]
async fn a_task_that_ends_unasked_is_named() {
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(async { ("sweep".to_owned(), Ok(())) });
    assert_eq!(first_to_end(&mut tasks, &stop).await.unwrap().to_string(), "sweep ended without a stop");
    tasks.spawn(async { ("tokens".to_owned(), Err(anyhow!("away"))) });
    assert_eq!(format!("{:#}", first_to_end(&mut tasks, &stop).await.unwrap()), "tokens failed: away");
}

#[tokio::test]
async fn whoever_watches_a_stage_leaves_it_to_the_stage_to_say_why_it_ended() {
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let watched = || watch::channel(Assignment::default()).1; // of a stage that has ended
    let health = Health::new(Vec::<String>::new());
    for _ in 0..20 {
        let readiness = show_readiness("tokens".to_owned(), watched(), health.clone(), stop.clone());
        tasks.spawn(async { ("readiness".to_owned(), readiness.await) });
    }
    tasks.spawn(async { ("tokens".to_owned(), Err(anyhow!("fenced"))) });
    assert_eq!(format!("{:#}", first_to_end(&mut tasks, &stop).await.unwrap()), "tokens failed: fenced");
}
