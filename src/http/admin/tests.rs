use std::{net::SocketAddr, sync::Mutex};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::{
        BroadcastId, BroadcastState, DoseKey, DueRow, Judged, PartId, Plan, Platform, Progress, ProviderId,
        Regimen, RegimenId, Timestamp, TokenChange, Version,
    },
    store::{
        Census, Checkpoint, Claim, Claimed, DoseMark, Lease, Marked, RouteRow, RouteState, Shard, Total,
        Watermark, Watermarks,
    },
};

const TOKEN: &str = "ExponentPushToken[ada-1]";

/// A registry that knows Ada and her phone; or one that is away.
#[derive(Clone)]
struct Known {
    away: bool,
    expo: Arc<Mutex<RouteState>>,
}

impl Known {
    fn new(away: bool) -> Self {
        Self { away, expo: Arc::new(Mutex::new(RouteState::Running)) }
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
        if self.away { Err(StoreError::unavailable("looking", "no route")) } else { Ok(answer) }
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

impl Registry for Known {
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

impl Routes for Known {
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

/// It knows of no broadcast; `broadcast` has tests of its own.
impl Broadcasts for Known {
    async fn plan(&self, _: &BroadcastId, plan: &Plan, _: Timestamp) -> Result<Plan, StoreError> {
        self.answer(plan.clone())
    }
    async fn broadcast(&self, _: &BroadcastId) -> Result<(Option<Plan>, Option<BroadcastState>), StoreError> {
        self.answer((None, None))
    }
    async fn stop(&self, _: &BroadcastId, _: &str) -> Result<(), StoreError> {
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
        unreachable!("the listener sums nothing up")
    }
}

/// It knows of no dose; `dose` has tests of its own.
impl Doses for Known {
    async fn put_regimen(&self, _: &RegimenId, _: Option<&Regimen>, _: Version) -> Result<(), StoreError> {
        unreachable!("the listener keeps no regimen")
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
        unreachable!("the listener plans nothing")
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
        unreachable!("the listener begins nothing")
    }
    async fn raise(&self, _: Shard, _: Watermark, _: Timestamp) -> Result<(), StoreError> {
        unreachable!("the listener ticks nothing")
    }
    async fn claim(&self, _: &DoseKey, _: &str, _: Timestamp, _: Timestamp) -> Result<Claim, StoreError> {
        unreachable!("the listener rings nothing")
    }
    async fn claimed(&self, _: &DoseKey) -> Result<Option<Claimed>, StoreError> {
        self.answer(None)
    }
    async fn mark(&self, _: &DoseKey, _: &Lease, _: &DoseMark) -> Result<Marked, StoreError> {
        unreachable!("the listener rings nothing")
    }
}

/// Serves while `questions` are asked, and ends in good order.
async fn serving(store: Known, questions: impl AsyncFnOnce(SocketAddr, &Health)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, health, stop) =
        (listener.local_addr().unwrap(), Health::new(["tokens"]), CancellationToken::new());
    let admin = Admin { metrics: Arc::new(Metrics::new()), health: health.clone(), store };
    let asking = async {
        questions(address, &health).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serve(listener, admin, stop.clone()), asking);
    served.unwrap();
}

/// The status and the body of an answer.
async fn ask(address: SocketAddr, path: &[&str]) -> (u16, String) {
    let mut url = reqwest::Url::parse(&format!("http://{address}")).unwrap();
    url.path_segments_mut().unwrap().extend(path);
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn ask_json(address: SocketAddr, path: &[&str]) -> (u16, Value) {
    let (status, body) = ask(address, path).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn ready_follows_the_stages_and_tells_why_not() {
    serving(Known::new(false), async |address, health: &Health| {
        health.store(Ok(()));
        let (status, told) = ask_json(address, &["ready"]).await;
        assert_eq!(
            (status, told),
            (503, json!({"ready": false, "store": "answers", "kafka": "answers", "stages": {"tokens": false}, "details": {}}))
        );

        health.assigned("tokens", true);
        health.detail("route.fcm", Some("halted: 401".to_owned()));
        let (status, told) = ask_json(address, &["ready"]).await;
        assert_eq!((status, &told["details"]["route.fcm"]), (200, &json!("halted: 401")));
    })
    .await;
}

#[tokio::test]
async fn metrics_and_life_are_told_before_the_process_is_ready() {
    serving(Known::new(true), async |address, _: &Health| {
        assert_eq!(ask(address, &["live"]).await, (200, "alive\n".to_owned()));
        let (status, text) = ask(address, &["metrics"]).await;
        assert!(
            status == 200 && text.contains("# TYPE pushcast_last_tick_timestamp_seconds gauge"),
            "{text}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_token_is_found_by_itself_and_by_its_hash_and_shown_as_its_hash() {
    serving(Known::new(false), async |address, _: &Health| {
        let hash = Token::parse(TOKEN).unwrap().hash().to_string();
        let (status, told) = ask_json(address, &["inspect", "token", TOKEN]).await;
        assert_eq!(status, 200);
        assert_eq!(
            told,
            json!({"token": hash, "kind": "expo", "user": "ada", "platform": "ios", "device": null, "version": 42, "active": true,
                   "deviceInfo": {"model": "iPhone15,2"}, "reason": null, "createdAt": null, "seenAt": null})
        );
        assert_eq!(ask_json(address, &["inspect", "token", &hash]).await, (200, told));
        assert_eq!(ask(address, &["inspect", "token", "ExponentPushToken[other]"]).await.0, 404);
        assert_eq!(ask(address, &["inspect", "token", "nonsense"]).await.0, 400);
    })
    .await;
}

#[tokio::test]
async fn a_users_tokens_are_shown_as_hashes_too() {
    serving(Known::new(false), async |address, _: &Health| {
        let (status, told) = ask_json(address, &["inspect", "user", "ada"]).await;
        assert_eq!((status, told["tokens"].as_array().unwrap().len()), (200, 1));
        assert!(!told.to_string().contains("ada-1"), "{told}");
        assert_eq!(
            ask_json(address, &["inspect", "user", "bob/ö"]).await,
            (200, json!({"user": "bob/ö", "tokens": []}))
        );
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be() {
    serving(Known::new(true), async |address, _: &Health| {
        let (status, told) = ask_json(address, &["inspect", "user", "ada"]).await;
        assert_eq!((status, told), (503, json!({"error": "the store is unavailable: looking"})));
    })
    .await;
}

/// The status and the body of the answer to an operator's wish.
async fn wish(address: SocketAddr, path: &str) -> (u16, Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let said = r#"{"by":"ada","why":"a look at the tokens"}"#;
    let answer = client
        .post(format!("http://{address}{path}"))
        .header("content-type", "application/json")
        .body(said)
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

#[tokio::test]
async fn an_operator_pauses_and_resumes_a_route_and_is_told_what_is_not_possible() {
    serving(Known::new(false), async |address, _: &Health| {
        let (status, told) = wish(address, "/route/expo/pause").await;
        assert_eq!((status, &told["state"], &told["setBy"]), (200, &json!("paused"), &json!("ada")));
        let (_, told) = ask_json(address, &["inspect", "route", "expo"]).await;
        assert_eq!(told["state"], json!("paused"));
        assert_eq!(wish(address, "/route/expo/resume").await.1["state"], json!("running"));
        let (status, told) = wish(address, "/route/expo/release").await;
        assert_eq!((status, &told["error"]), (409, &json!("the route of expo is running, not braked")));
        assert_eq!(wish(address, "/route/expo/open").await.0, 400);
        assert_eq!(wish(address, "/route/apns/pause").await.0, 400);
    })
    .await;
}

#[tokio::test]
async fn a_dose_is_found_by_its_regimen_and_its_time() {
    serving(Known::new(false), async |address, _: &Health| {
        let (status, told) =
            ask_json(address, &["inspect", "dose", "pr1", "r1/ö", "2026-11-20T08:00:00Z"]).await;
        assert_eq!((status, &told["notification"]), (200, &json!("dose:pr1:r1/ö:2026-11-20T08:00:00Z")));
        assert!(told["says"].as_str().unwrap().contains("never to ring"), "{told}");
        assert_eq!(ask(address, &["inspect", "dose", "pr1", "r1", "at eight"]).await.0, 400);
    })
    .await;
}
