use std::sync::Arc;

use super::*;
use crate::{
    domain::{Cursor, Data, Notification, Plan},
    http::Health,
    metrics::Metrics,
    store::{RouteState, embedded::EmbeddedStore},
};

fn spec() -> Spec {
    let notification = Notification {
        id: BroadcastId::new("post:p1").notification(),
        title: "On walking".to_owned(),
        body: String::new(),
        data: Data::new(),
        sound: None,
        channel: "default".to_owned(),
        expires_at: Timestamp::now() + Duration::from_secs(3600),
    };
    let audience = Audience::Everybody { slices: 4, exclude: None, include_anonymous: true };
    Spec { notification, audience, providers: vec![ProviderId::Expo], posted_at: Timestamp::UNIX_EPOCH }
}

/// A broadcast of four slices: the first is done, the second half done, each with 100 messages in all.
async fn world() -> Admin<EmbeddedStore> {
    let store = EmbeddedStore::memory().unwrap();
    let id = broadcast_of("p1");
    store
        .plan(&id, &Plan { spec: broadcast_specs::write(&spec()), parts: 4 }, Timestamp::now())
        .await
        .unwrap();
    for (part, sent, done) in [(0, 100, true), (1, 50, false)] {
        let id = PartId { broadcast: id.clone(), provider: ProviderId::Expo, part };
        let (low, high) = Slice { index: part, of: 4 }.bounds();
        let cursor = Some(Cursor(if done { high } else { low + (high - low) / 2 }));
        let begun = store.take_over(&id).await.unwrap();
        store
            .checkpoint(
                &id,
                &Progress { cursor, done, counts: Counts { sent, ..Counts::default() }, ..begun },
            )
            .await
            .unwrap();
    }
    let admin = Admin { metrics: Arc::new(Metrics::new()), health: Health::new(["posts"]), store };
    admin.metrics.rate_limit.with_label_values(&["expo", "deployment"]).set(10.0);
    admin.metrics.rate_limit.with_label_values(&["expo", "instance"]).set(10.0);
    admin
}

async fn inspected(admin: &Admin<EmbeddedStore>) -> Value {
    inspect(State(admin.clone()), Path("p1".to_owned())).await.unwrap().0
}

#[tokio::test]
async fn an_open_broadcast_shows_what_is_left_and_when_it_ends() {
    let admin = world().await;
    let answer = inspected(&admin).await;
    assert_eq!((&answer["state"], &answer["title"]), (&json!("planned"), &json!("On walking")));
    let expo = &answer["providers"]["expo"];
    assert_eq!(
        (&expo["parts"], &expo["begun"], &expo["done"], &expo["sent"]),
        (&json!(4), &json!(2), &json!(1), &json!(150))
    );
    assert_eq!((&expo["left"], &expo["standsStill"]), (&json!(250), &json!([])));
    let ends: Timestamp = expo["endsAt"].as_str().unwrap().parse().unwrap();
    let seconds = ends.duration_since(Timestamp::now()).as_secs();
    assert!((20..=25).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_broadcast_that_is_not_sent_shows_every_reason() {
    let admin = world().await;
    let paused = RouteRow {
        state: RouteState::Paused,
        since: Timestamp::now(),
        set_by: "ann".to_owned(),
        detail: "lunch".to_owned(),
    };
    admin.store.set_route(ProviderId::Expo, &paused).await.unwrap();
    admin.metrics.rate_limit.with_label_values(&["expo", "instance"]).set(0.0);
    for (local_status, reason) in
        [(Some("open breaker: HTTP 503"), "open breaker"), (None, "owns none of its partitions")]
    {
        admin.health.detail(&local_status_of(ProviderId::Expo), local_status.map(str::to_owned));
        let answer = inspected(&admin).await;
        let expo = &answer["providers"]["expo"];
        let reasons: Vec<&str> =
            expo["standsStill"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(
            reasons[0].starts_with("the route is paused since") && reasons[0].ends_with("by ann: lunch"),
            "{reasons:?}"
        );
        assert!(reasons.len() == 2 && reasons[1].contains(reason), "{reasons:?}");
        assert_eq!(expo["endsAt"], Value::Null);
    }
}

#[tokio::test]
async fn a_broadcast_is_cancelled_once_and_not_after_its_end() {
    let admin = world().await;
    let cancelled =
        async |id: &str| cancel(State(admin.clone()), Path(id.to_owned())).await.map(|Json(answer)| answer);
    assert_eq!(
        cancelled("p1").await.unwrap(),
        json!({"broadcast": "post:p1", "state": "stopped", "planned": true})
    );
    let state = admin.store.broadcast(&broadcast_of("post:p1")).await.unwrap().1;
    assert_eq!(state, Some(BroadcastState::Stopped { reason: StopReason::Cancelled }));
    assert_eq!(inspected(&admin).await["reason"], json!("cancelled"));
    // One that is not planned yet is not sent either.
    assert_eq!(cancelled("p2").await.unwrap()["planned"], json!(false));
    admin.store.close(&broadcast_of("p1")).await.unwrap();
    assert!(matches!(cancelled("p1").await, Err(ApiError::Conflict(_))));
}

#[tokio::test]
async fn a_broadcast_that_never_was_is_not_found() {
    let admin = world().await;
    assert!(matches!(inspect(State(admin), Path("p9".to_owned())).await, Err(ApiError::NotFound(_))));
}
