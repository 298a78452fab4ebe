//! The OAuth token that FCM requires with every message.
//!
//! One task fetches it, renews it well before it expires and publishes it; senders read the latest one and
//! never fetch. yup-oauth2 signs and requests; what it lacks is done here. It does not merge concurrent
//! fetches, so only this one task fetches. It caches an answer without a token for ever, so every fetch is a
//! forced one, and an answer without a token is an error. It has no time-out.
//!
//! When FCM refuses a token, the sender reports which one. However many senders do, the task fetches once: a
//! refusal of an older token than the latest renews nothing.

use std::{fmt, future::Future, path::Path, sync::Arc, time::Duration};

use backoff::{Backoff, Jitter};
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};
use yup_oauth2::{
    ServiceAccountAuthenticator, ServiceAccountKey, authenticator::DefaultAuthenticator, error::AuthErrorCode,
};

use super::{
    Settings,
    wire::{self, ServiceAccountFile},
};
use crate::dispatch::answer::causes;

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// The time-out of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a sender waits for the first token.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The least time between two fetches, even if FCM refuses every token.
const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The pauses between failed fetches.
const RETRIES: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60)).with(Jitter::Shorten(0.5));

/// The lifetime of a token whose answer has none: Google's usual one.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(3600);

/// A Google Cloud service account, with which OAuth tokens are fetched.
pub(super) struct ServiceAccount {
    pub project_id: String,
    key: ServiceAccountKey,
}

/// The credentials can't be used as they are.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe it")]
pub enum BadCredentials {
    #[error("fcm.credentials_file {path} can't be read: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("fcm.credentials_file {path} is not a service account's JSON: line {line}, column {column}")]
    NotJson { path: String, line: usize, column: usize },
    #[error("the credentials of FCM lack {field} ({origin})")]
    Lacks { field: &'static str, origin: String },
    #[error("the credentials of FCM can't be used: {0}")]
    Unusable(std::io::Error),
}

/// A token as FCM gets it, in the headers of a request. `Debug` does not print it.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    /// All headers of a request; Content-Length is a placeholder.
    pub headers: Arc<HeaderMap>,
    /// Counts the tokens of this process, from 1.
    generation: u64,
    expires_at: Instant,
}

/// There is no valid token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", if *.refused { "Google refuses the account" } else { "no OAuth token from Google" })]
pub struct NoCredential {
    /// Google refused the account: another fetch won't help.
    pub(super) refused: bool,
    /// For the log.
    pub(super) why: String,
}

/// The latest token. The task that renews it ends when this is dropped.
pub(super) struct TokenSource {
    state: watch::Receiver<CredentialState>,
    /// The generation that FCM refused last.
    rejected: watch::Sender<u64>,
    _renewal: JoinSet<()>,
}

#[derive(Clone, Debug, Default)]
struct CredentialState {
    credential: Option<Credential>,
    /// Why the last fetch failed, if it did.
    failure: Option<NoCredential>,
    fetches: u64,
}

/// A token just fetched.
struct FreshToken {
    token: SecretString,
    lifetime: Duration,
}

// === impl ServiceAccount ===

impl ServiceAccount {
    /// The account of these settings; the file wins over the parts. `None` where there are neither.
    ///
    /// # Errors
    /// The file can't be read, or a part is missing.
    pub(super) async fn load(settings: &Settings) -> Result<Option<Self>, BadCredentials> {
        let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (parts, origin) = if !settings.credentials_file.is_empty() {
            let path = settings.credentials_file.as_str();
            let mut file = read(Path::new(path)).await?;
            file.project_id = non_empty(&settings.project_id).or(file.project_id);
            (file, path.to_owned())
        } else if !settings.client_email.is_empty() || !settings.private_key.expose_secret().is_empty() {
            let parts = ServiceAccountFile {
                project_id: non_empty(&settings.project_id),
                private_key: non_empty(settings.private_key.expose_secret()),
                client_email: non_empty(&settings.client_email),
                token_uri: non_empty(&settings.token_url),
            };
            (parts, "given in parts".to_owned())
        } else {
            return Ok(None);
        };
        Self::of(parts, &origin).map(Some)
    }

    fn of(parts: ServiceAccountFile, origin: &str) -> Result<Self, BadCredentials> {
        let required = |field, value: Option<String>| {
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| BadCredentials::Lacks { field, origin: origin.to_owned() })
        };
        let project_id = required("project_id", parts.project_id)?;
        let key = ServiceAccountKey {
            key_type: None,
            project_id: Some(project_id.clone()),
            private_key_id: None,
            // Environment files can't hold line breaks, so the key has them as `\n`, often in quotes.
            private_key: required("private_key", parts.private_key)?.trim_matches('"').replace("\\n", "\n"),
            client_email: required("client_email", parts.client_email)?,
            client_id: None,
            auth_uri: None,
            token_uri: required("token_uri", parts.token_uri)?,
            auth_provider_x509_cert_url: None,
            client_x509_cert_url: None,
        };
        Ok(Self { project_id, key })
    }
}

async fn read(path: &Path) -> Result<ServiceAccountFile, BadCredentials> {
    let name = path.display().to_string();
    let bytes = tokio::fs::read(path)
        .await
        .map_err(|source| BadCredentials::Unreadable { path: name.clone(), source })?;
    // serde's own message may quote the file, and the file holds the key.
    serde_json::from_slice(&bytes).map_err(|error| BadCredentials::NotJson {
        path: name,
        line: error.line(),
        column: error.column(),
    })
}

// === impl TokenSource ===

impl TokenSource {
    /// Starts the task that fetches.
    ///
    /// # Errors
    /// The private key can't be parsed, or the system has no trusted certificates.
    pub(super) async fn start(account: ServiceAccount) -> Result<Self, BadCredentials> {
        let google = ServiceAccountAuthenticator::builder(account.key)
            .build()
            .await
            .map_err(BadCredentials::Unusable)?;
        Ok(Self::renewed_by(move || {
            let google = google.clone();
            async move { fetch(&google).await }
        }))
    }

    fn renewed_by<F, Fut>(fetch: F) -> Self
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<FreshToken, NoCredential>> + Send + 'static,
    {
        let (publish, state) = watch::channel(CredentialState::default());
        let (rejected, refusals) = watch::channel(0);
        let mut renewal = JoinSet::new();
        renewal.spawn(renew(fetch, publish, refusals));
        Self { state, rejected, _renewal: renewal }
    }

    /// The latest token.
    pub(super) fn latest(&self) -> Option<Credential> {
        self.state.borrow().credential.clone()
    }

    /// The latest token. Waits for the first one, [`FIRST_WAIT`] at most.
    pub(super) async fn current(&self) -> Result<Credential, NoCredential> {
        let mut state = self.state.clone();
        let first = timeout(
            FIRST_WAIT,
            state.wait_for(|state| state.credential.is_some() || state.failure.is_some()),
        )
        .await;
        match first {
            Ok(Ok(state)) => state.usable(),
            Ok(Err(_)) | Err(_) => {
                Err(NoCredential { refused: false, why: format!("no OAuth token within {FIRST_WAIT:?}") })
            }
        }
    }

    /// A token that is newer than this one, which FCM refused. Waits until the next fetch has ended.
    pub(super) async fn newer_than(&self, refused: &Credential) -> Result<Credential, NoCredential> {
        let mut state = self.state.clone();
        let fetches = state.borrow_and_update().fetches;
        self.rejected.send_if_modified(|rejected| {
            let newer = refused.generation > *rejected;
            *rejected = refused.generation.max(*rejected);
            newer
        });
        let renewed = |state: &CredentialState| {
            state.credential.as_ref().is_some_and(|credential| credential.generation > refused.generation)
        };
        match state.wait_for(|state| renewed(state) || state.fetches > fetches).await {
            Ok(state) if renewed(&state) => state.usable(),
            Ok(state) => Err(state.failure.clone().unwrap_or_else(NoCredential::ended)),
            Err(_) => Err(NoCredential::ended()),
        }
    }
}

impl CredentialState {
    fn usable(&self) -> Result<Credential, NoCredential> {
        self.credential.clone().ok_or_else(|| self.failure.clone().unwrap_or_else(NoCredential::ended))
    }
}

impl NoCredential {
    fn ended() -> Self {
        Self { refused: false, why: "no OAuth token".to_owned() }
    }
}

/// Fetches, publishes and waits until the token is to be renewed, for ever.
async fn renew<F, Fut>(fetch: F, publish: watch::Sender<CredentialState>, mut rejected: watch::Receiver<u64>)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<FreshToken, NoCredential>>,
{
    let mut generation = 0;
    let mut failures = 0;
    loop {
        let fetched = fetch().await.and_then(|fresh| Ok((bearer(&fresh.token)?, fresh.lifetime)));
        let now = Instant::now();
        match fetched {
            Ok((bearer, lifetime)) => {
                generation += 1;
                failures = 0;
                info!(lifetime = ?lifetime, "Fetched OAuth token {generation} for FCM");
                let headers = Arc::new(wire::headers(bearer));
                let credential = Credential { headers, generation, expires_at: now + lifetime };
                publish.send_modify(|state| {
                    *state = CredentialState {
                        credential: Some(credential),
                        failure: None,
                        fetches: state.fetches + 1,
                    };
                });
                let refused = async {
                    let _source_dropped =
                        rejected.wait_for(|rejected| *rejected >= generation).await.is_err();
                    sleep_until(now + FETCH_INTERVAL_MIN).await;
                };
                tokio::select! {
                    () = sleep(renew_after(lifetime)) => {}
                    () = refused => {}
                }
            }
            Err(failure) => {
                failures += 1;
                let wait = RETRIES.pause(failures, rand::random());
                warn!(
                    failures,
                    error = failure.why,
                    "Fetching an OAuth token for FCM failed, trying again in {wait:?}"
                );
                publish.send_modify(|state| {
                    state.fetches += 1;
                    state.failure = Some(failure);
                    // A token that is still valid stays in use.
                    state.credential.take_if(|credential| {
                        credential.expires_at <= now || credential.generation <= *rejected.borrow()
                    });
                });
                sleep(wait).await;
            }
        }
    }
}

/// A token is renewed after five sixths of its lifetime: 50 minutes of Google's hour.
fn renew_after(lifetime: Duration) -> Duration {
    lifetime.mul_f64(5.0 / 6.0).max(FETCH_INTERVAL_MIN)
}

async fn fetch(google: &DefaultAuthenticator) -> Result<FreshToken, NoCredential> {
    let unreachable = |why| NoCredential { refused: false, why };
    let token = timeout(FETCH_TIMEOUT, google.force_refreshed_token(&[SCOPE]))
        .await
        .map_err(|_| unreachable(format!("the token endpoint did not answer within {FETCH_TIMEOUT:?}")))?
        .map_err(|error| NoCredential { refused: is_refusal(&error), why: causes(&error) })?;
    let text = token.token().filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| unreachable("the token endpoint answered without a token".to_owned()))?;
    let lifetime = token.expiration_time().map_or(LIFETIME_DEFAULT, |end| {
        let seconds = end.unix_timestamp().saturating_sub(Timestamp::now().as_second());
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    });
    Ok(FreshToken { token: text.into(), lifetime })
}

/// Whether Google refuses the account, rather than failing for a reason of its own.
fn is_refusal(error: &yup_oauth2::Error) -> bool {
    use AuthErrorCode::{AccessDenied, InvalidClient, InvalidGrant, UnauthorizedClient};
    matches!(
        error,
        yup_oauth2::Error::AuthError(answer)
            if matches!(answer.error, InvalidClient | InvalidGrant | UnauthorizedClient | AccessDenied)
    )
}

fn bearer(token: &SecretString) -> Result<HeaderValue, NoCredential> {
    let mut bearer =
        HeaderValue::try_from(format!("Bearer {}", token.expose_secret())).map_err(|_| NoCredential {
            refused: false,
            why: "the OAuth token has characters that are not allowed in a header".to_owned(),
        })?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
