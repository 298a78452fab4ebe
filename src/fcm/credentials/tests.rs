use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::*;

/// A token endpoint that returns `token-1`, `token-2`, … for an hour each, except for the fetches that its
/// script lets fail.
#[derive(Clone, Default)]
struct Endpoint {
    fetches: Arc<AtomicU64>,
    script: Arc<Mutex<VecDeque<Option<NoCredential>>>>,
}

impl Endpoint {
    fn then_fails(self, refused: bool) -> Self {
        self.script.lock().unwrap().push_back(Some(NoCredential { refused, why: "no".to_owned() }));
        self
    }

    fn then_succeeds(self) -> Self {
        self.script.lock().unwrap().push_back(None);
        self
    }

    fn source(&self) -> TokenSource {
        let endpoint = self.clone();
        TokenSource::renewed_by(move || {
            let endpoint = endpoint.clone();
            async move {
                sleep(Duration::from_millis(100)).await;
                let number = endpoint.fetches.fetch_add(1, Ordering::SeqCst) + 1;
                match endpoint.script.lock().unwrap().pop_front().flatten() {
                    Some(failure) => Err(failure),
                    None => {
                        Ok(FreshToken { token: format!("token-{number}").into(), lifetime: LIFETIME_DEFAULT })
                    }
                }
            }
        })
    }

    fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn authorization(credential: &Credential) -> &str {
    credential.headers[http::header::AUTHORIZATION].to_str().unwrap()
}

#[tokio::test(start_paused = true)]
async fn senders_share_one_fetch_and_renewal_comes_after_fifty_minutes() {
    let endpoint = Endpoint::default();
    let source = endpoint.source();
    let (one, two) = tokio::join!(source.current(), source.current());
    assert_eq!(
        (authorization(&one.unwrap()), authorization(&two.unwrap())),
        ("Bearer token-1", "Bearer token-1")
    );
    sleep(Duration::from_secs(49 * 60)).await;
    assert_eq!(endpoint.fetches(), 1);
    sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(endpoint.fetches(), 2);
    assert_eq!(authorization(&source.current().await.unwrap()), "Bearer token-2");
}

#[tokio::test(start_paused = true)]
async fn however_many_senders_are_refused_one_token_is_fetched() {
    let endpoint = Endpoint::default();
    let source = endpoint.source();
    let refused = source.current().await.unwrap();
    let renewed = futures::future::join_all((0..50).map(|_| source.newer_than(&refused))).await;
    assert!(renewed.iter().all(|credential| authorization(credential.as_ref().unwrap()) == "Bearer token-2"));
    // A late sender with the old token gets the new one at once.
    assert_eq!(authorization(&source.newer_than(&refused).await.unwrap()), "Bearer token-2");
    // The refusal of the old token does not renew the new one.
    sleep(Duration::from_secs(40 * 60)).await;
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_leaves_a_valid_token_in_use_until_it_expires() {
    let endpoint =
        (0..100).fold(Endpoint::default().then_succeeds(), |endpoint, _| endpoint.then_fails(false));
    let source = endpoint.source();
    source.current().await.unwrap();
    sleep(Duration::from_secs(55 * 60)).await;
    assert!(endpoint.fetches() > 5);
    assert_eq!(authorization(&source.current().await.unwrap()), "Bearer token-1");
    sleep(Duration::from_secs(7 * 60)).await;
    assert_eq!(source.current().await.unwrap_err(), NoCredential { refused: false, why: "no".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_whose_renewal_fails_is_not_used_again() {
    let endpoint = Endpoint::default().then_succeeds().then_fails(true);
    let source = endpoint.source();
    let refused = source.current().await.unwrap();
    assert!(source.newer_than(&refused).await.unwrap_err().refused);
    assert!(source.current().await.is_err());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(authorization(&source.current().await.unwrap()), "Bearer token-3");
}

#[tokio::test(start_paused = true)]
async fn a_sender_waits_for_the_first_token_but_not_for_ever() {
    let source = TokenSource::renewed_by(std::future::pending);
    let before = Instant::now();
    assert!(!source.current().await.unwrap_err().refused);
    assert_eq!(before.elapsed(), FIRST_WAIT);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_source_ends_its_task() {
    let endpoint = Endpoint::default();
    drop(endpoint.source());
    sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(endpoint.fetches(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_never_printed() {
    let source = Endpoint::default().source();
    let credential = source.current().await.unwrap();
    assert!(!format!("{credential:?} {source:?} {:?}", source.state).contains("token-1"));
}

#[test]
fn pauses_between_failures_grow_up_to_a_minute() {
    let seconds = |failures, random| RETRIES.pause(failures, random).as_secs_f64();
    assert_eq!([seconds(1, 0.0), seconds(2, 0.0), seconds(4, 0.0), seconds(100, 0.0)], [1.0, 2.0, 8.0, 60.0]);
    assert_eq!(seconds(2, 1.0), 1.0);
}

fn settings() -> Settings {
    Settings { token_url: "http://127.0.0.1:1/token".into(), ..Settings::empty() }
}

async fn refusal(settings: &Settings) -> String {
    ServiceAccount::load(settings).await.err().unwrap().to_string()
}

#[tokio::test]
async fn without_credentials_there_is_no_account() {
    let project_alone = Settings { project_id: "p".into(), ..settings() };
    assert!(ServiceAccount::load(&project_alone).await.unwrap().is_none());
}

#[tokio::test]
async fn a_missing_part_is_named() {
    let parts = Settings {
        project_id: "p".into(),
        client_email: "a@b".into(),
        private_key: "\"a\\nb\"".into(),
        ..settings()
    };
    let account = ServiceAccount::load(&parts).await.unwrap().unwrap();
    assert_eq!(account.key.private_key, "a\nb");
    assert!(
        refusal(&Settings { project_id: String::new(), ..parts.clone() }).await.contains("lack project_id")
    );
    assert!(
        refusal(&Settings { client_email: String::new(), ..parts.clone() })
            .await
            .contains("lack client_email")
    );
    assert!(refusal(&Settings { private_key: "".into(), ..parts }).await.contains("lack private_key"));
}

#[tokio::test]
async fn an_error_about_a_file_does_not_quote_its_contents() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Settings { credentials_file: path.to_str().unwrap().to_owned(), ..settings() }
    };
    let missing =
        Settings { credentials_file: folder.path().join("none").to_str().unwrap().to_owned(), ..settings() };
    assert!(refusal(&missing).await.contains("none can't be read"));
    let not_json = refusal(&file("a", "\"-----BEGIN SECRET\"")).await;
    assert!(
        not_json.contains("is not a service account's JSON: line 1") && !not_json.contains("SECRET"),
        "{not_json}"
    );
    let no_email = file("b", r#"{"project_id":"p","private_key":"k","token_uri":"http://127.0.0.1:1"}"#);
    assert!(refusal(&no_email).await.contains("lack client_email"));
    let whole = file(
        "c",
        r#"{"type":"service_account","project_id":"p","private_key":"k","client_email":"a@b",
            "token_uri":"http://127.0.0.1:1"}"#,
    );
    assert_eq!(ServiceAccount::load(&whole).await.unwrap().unwrap().project_id, "p");
    let other_project = Settings { project_id: "q".into(), ..whole };
    assert_eq!(ServiceAccount::load(&other_project).await.unwrap().unwrap().project_id, "q");
}

#[tokio::test]
async fn a_private_key_that_cannot_be_parsed_is_refused_at_the_start() {
    let parts = Settings {
        project_id: "p".into(),
        client_email: "a@b".into(),
        private_key: "none".into(),
        ..settings()
    };
    let account = ServiceAccount::load(&parts).await.unwrap().unwrap();
    assert!(matches!(TokenSource::start(account).await, Err(BadCredentials::Unusable(_))));
}
