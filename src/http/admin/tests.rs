use std::{net::SocketAddr, sync::Mutex};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::{
        BroadcastId, BroadcastState, DoseKey, DueRow, Judged, PartId, Plan, Platform, Progress, ProviderId,
        Regimen, RegimenId, StopReason, Timestamp, TokenChange, Version,
    },
    store::{
        Census, Checkpoint, Claim, Claimed, DoseMark, Lease, Marked, RouteRow, RouteState, Shard, Total,
        Watermark, Watermarks,
    },
};

const TOKEN: &str = "ExponentPushToken[ada-1]";

/// A store that has Ada and her phone, or one that is unavailable.
#[derive(Clone)]
struct KnownStore {
    unavailable: bool,
    expo: Arc<Mutex<RouteState>>,
}

impl KnownStore {
    fn new(unavailable: bool) -> Self {
        Self { unavailable, expo: Arc::new(Mutex::new(RouteState::Running)) }
    }

    fn phone() -> Registration {
        Registration {
            token: Token::parse(TOKEN).unwrap(),
            version: Version::from_i64(42),
            user: Some(UserId::new("ada")),
            platform: Some(Platform::Ios),
            device: None,
            device_info: Some(r#"{"model":"iPhone15,2"}"#.to_owned()),
        }
    }

    fn answer<T>(&self, answer: T) -> Result<T, StoreError> {
        if self.unavailable { Err(StoreError::unavailable("looking", "no route")) } else { Ok(answer) }
    }

    fn row(&self, known: bool) -> Result<Option<TokenRow>, StoreError> {
        let row = || TokenRow {
            token: Self::phone().token,
            version: Version::from_i64(42),
            registration: Some(Self::phone()),
            reason: None,
            created_at: None,
            seen_at: None,
        };
        self.answer(known.then(row))
    }
}

impl Registry for KnownStore {
    async fn apply(&self, _: &TokenChange, _: Version) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn tokens_of(&self, user: &UserId) -> Result<Vec<Registration>, StoreError> {
        self.answer(if user.as_str() == "ada" { vec![Self::phone()] } else { vec![] })
    }
    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> Result<bool, StoreError> {
        self.answer(false)
    }
    async fn inspect(&self, token: &Token) -> Result<Option<TokenRow>, StoreError> {
        self.row(*token == Self::phone().token)
    }
    async fn inspect_hash(&self, hash: TokenHash) -> Result<Option<TokenRow>, StoreError> {
        self.row(hash == Self::phone().token.hash())
    }
    async fn census(&self) -> Result<Vec<Census>, StoreError> {
        self.answer(vec![])
    }
}

impl Routes for KnownStore {
    async fn route(&self, _: ProviderId) -> Result<RouteRow, StoreError> {
        let state = *self.expo.lock().unwrap();
        self.answer(RouteRow {
            state,
            since: Timestamp::UNIX_EPOCH,
            set_by: String::new(),
            detail: String::new(),
        })
    }
    async fn set_route(&self, _: ProviderId, route: &RouteRow) -> Result<(), StoreError> {
        *self.expo.lock().unwrap() = route.state;
        self.answer(())
    }
}

/// It has no broadcast; `broadcast` has tests of its own.
impl Broadcasts for KnownStore {
    async fn plan(&self, _: &BroadcastId, plan: &Plan, _: Timestamp) -> Result<Plan, StoreError> {
        self.answer(plan.clone())
    }
    async fn broadcast(&self, _: &BroadcastId) -> Result<(Option<Plan>, Option<BroadcastState>), StoreError> {
        self.answer((None, None))
    }
    async fn stop(&self, _: &BroadcastId, _: &StopReason) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn close(&self, _: &BroadcastId) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn take_over(&self, _: &PartId) -> Result<Progress, StoreError> {
        unreachable!("the listener sends nothing")
    }
    async fn checkpoint(&self, _: &PartId, _: &Progress) -> Result<Checkpoint, StoreError> {
        unreachable!("the listener sends nothing")
    }
    async fn finish_part(&self, _: &PartId) -> Result<u32, StoreError> {
        unreachable!("the listener sends nothing")
    }
    async fn progress(&self, _: &PartId) -> Result<Option<Progress>, StoreError> {
        self.answer(None)
    }
    async fn total(&self, _: &BroadcastId, _: Timestamp) -> Result<Total, StoreError> {
        unreachable!("the listener reads no total")
    }
}

/// It has no dose; `dose` has tests of its own.
impl Doses for KnownStore {
    async fn put_regimen(&self, _: &RegimenId, _: Option<&Regimen>, _: Version) -> Result<(), StoreError> {
        unreachable!("the listener writes no regimen")
    }
    async fn regimen(&self, _: &RegimenId) -> Result<Option<Regimen>, StoreError> {
        self.answer(None)
    }
    async fn regimens(
        &self,
        _: Option<&RegimenId>,
        _: usize,
    ) -> Result<Vec<(RegimenId, Regimen)>, StoreError> {
        unreachable!("the listener sweeps nothing")
    }
    async fn insert_due(&self, _: Shard, _: &DueRow) -> Result<(), StoreError> {
        unreachable!("the listener inserts no due row")
    }
    async fn due_rows(
        &self,
        _: Shard,
        _: Timestamp,
        _: Timestamp,
        _: Option<&DueRow>,
        _: usize,
    ) -> Result<Vec<DueRow>, StoreError> {
        self.answer(vec![])
    }
    async fn marks(&self, _: Shard) -> Result<Watermarks, StoreError> {
        self.answer(Watermarks { read: Timestamp::UNIX_EPOCH, dispatched: Timestamp::UNIX_EPOCH })
    }
    async fn init_marks(&self, _: Timestamp) -> Result<(), StoreError> {
        unreachable!("the listener creates no watermarks")
    }
    async fn raise(&self, _: Shard, _: Watermark, _: Timestamp) -> Result<(), StoreError> {
        unreachable!("the listener raises no watermark")
    }
    async fn claim(&self, _: &DoseKey, _: &str, _: Timestamp, _: Timestamp) -> Result<Claim, StoreError> {
        unreachable!("the listener sends nothing")
    }
    async fn claimed(&self, _: &DoseKey) -> Result<Option<Claimed>, StoreError> {
        self.answer(None)
    }
    async fn mark(&self, _: &DoseKey, _: &Lease, _: &DoseMark) -> Result<Marked, StoreError> {
        unreachable!("the listener sends nothing")
    }
}

/// Serves while `requests` are made, and stops gracefully.
async fn serving(store: KnownStore, requests: impl AsyncFnOnce(SocketAddr, &Health)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health::new(["tokens"]);
    let stop = CancellationToken::new();
    let admin = Admin { metrics: Arc::new(Metrics::new()), health: health.clone(), store };
    let requesting = async {
        requests(address, &health).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serve(listener, admin, stop.clone()), requesting);
    served.unwrap();
}

/// The status and the body of an answer.
async fn fetch(address: SocketAddr, path: &[&str]) -> (u16, String) {
    let mut url = reqwest::Url::parse(&format!("http://{address}")).unwrap();
    url.path_segments_mut().unwrap().extend(path);
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn fetch_json(address: SocketAddr, path: &[&str]) -> (u16, Value) {
    let (status, body) = fetch(address, path).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn ready_follows_the_stages_and_shows_why_not() {
    serving(KnownStore::new(false), async |address, health: &Health| {
        health.store(Ok(()));
        let (status, answer) = fetch_json(address, &["ready"]).await;
        assert_eq!(
            (status, answer),
            (
                503,
                json!({
                    "ready": false, "store": "answers", "kafka": "answers", "stages": {"tokens": false},
                    "details": {},
                })
            )
        );

        health.assigned("tokens", true);
        health.detail("route.fcm", Some("halted: 401".to_owned()));
        let (status, answer) = fetch_json(address, &["ready"]).await;
        assert_eq!((status, &answer["details"]["route.fcm"]), (200, &json!("halted: 401")));
    })
    .await;
}

#[tokio::test]
async fn metrics_and_live_answer_before_the_process_is_ready() {
    serving(KnownStore::new(true), async |address, _: &Health| {
        assert_eq!(fetch(address, &["live"]).await, (200, "alive\n".to_owned()));
        let (status, text) = fetch(address, &["metrics"]).await;
        assert!(
            status == 200 && text.contains("# TYPE pushcast_last_tick_timestamp_seconds gauge"),
            "{text}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_token_is_found_by_its_text_and_by_its_hash_and_shown_as_its_hash() {
    serving(KnownStore::new(false), async |address, _: &Health| {
        let hash = Token::parse(TOKEN).unwrap().hash().to_string();
        let (status, answer) = fetch_json(address, &["inspect", "token", TOKEN]).await;
        assert_eq!(status, 200);
        assert_eq!(
            answer,
            json!({
                "token": hash, "kind": "expo", "user": "ada", "platform": "ios", "device": null,
                "version": 42, "active": true, "deviceInfo": {"model": "iPhone15,2"}, "reason": null,
                "createdAt": null, "seenAt": null,
            })
        );
        assert_eq!(fetch_json(address, &["inspect", "token", &hash]).await, (200, answer));
        assert_eq!(fetch(address, &["inspect", "token", "ExponentPushToken[other]"]).await.0, 404);
        assert_eq!(fetch(address, &["inspect", "token", "nonsense"]).await.0, 400);
    })
    .await;
}

#[tokio::test]
async fn a_users_tokens_are_shown_as_hashes_too() {
    serving(KnownStore::new(false), async |address, _: &Health| {
        let (status, answer) = fetch_json(address, &["inspect", "user", "ada"]).await;
        assert_eq!((status, answer["tokens"].as_array().unwrap().len()), (200, 1));
        assert!(!answer.to_string().contains("ada-1"), "{answer}");
        assert_eq!(
            fetch_json(address, &["inspect", "user", "bob/ö"]).await,
            (200, json!({"user": "bob/ö", "tokens": []}))
        );
    })
    .await;
}

#[tokio::test]
async fn an_unavailable_store_is_reported() {
    serving(KnownStore::new(true), async |address, _: &Health| {
        let (status, answer) = fetch_json(address, &["inspect", "user", "ada"]).await;
        assert_eq!((status, answer), (503, json!({"error": "the store is unavailable: looking"})));
    })
    .await;
}

/// The status and the body of the answer to a change of a route.
async fn change(address: SocketAddr, path: &str) -> (u16, Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = r#"{"by":"ada","why":"a look at the tokens"}"#;
    let answer = client
        .post(format!("http://{address}{path}"))
        .header("content-type", "application/json")
        .body(request)
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

#[tokio::test]
async fn an_operator_pauses_and_resumes_a_route_and_an_impossible_change_is_refused() {
    serving(KnownStore::new(false), async |address, _: &Health| {
        let (status, answer) = change(address, "/route/expo/pause").await;
        assert_eq!((status, &answer["state"], &answer["setBy"]), (200, &json!("paused"), &json!("ada")));
        let (_, answer) = fetch_json(address, &["inspect", "route", "expo"]).await;
        assert_eq!(answer["state"], json!("paused"));
        assert_eq!(change(address, "/route/expo/resume").await.1["state"], json!("running"));
        let (status, answer) = change(address, "/route/expo/release").await;
        assert_eq!((status, &answer["error"]), (409, &json!("the route of expo is running, not braked")));
        assert_eq!(change(address, "/route/expo/open").await.0, 400);
        assert_eq!(change(address, "/route/apns/pause").await.0, 400);
    })
    .await;
}

#[tokio::test]
async fn a_dose_is_found_by_its_regimen_and_its_time() {
    serving(KnownStore::new(false), async |address, _: &Health| {
        let (status, answer) =
            fetch_json(address, &["inspect", "dose", "pr1", "r1/ö", "2026-11-20T08:00:00Z"]).await;
        assert_eq!((status, &answer["notification"]), (200, &json!("dose:pr1:r1/ö:2026-11-20T08:00:00Z")));
        assert!(answer["says"].as_str().unwrap().contains("no such dose"), "{answer}");
        assert_eq!(fetch(address, &["inspect", "dose", "pr1", "r1", "at eight"]).await.0, 400);
    })
    .await;
}
