//! The fake OAuth endpoint: exchanges an assertion signed by the service account for an access token.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use axum::{
    Extension,
    body::Bytes,
    extract::{Query, State},
    http::Uri,
    response::Response,
};
use base64::{
    Engine as _, alphabet,
    engine::{
        GeneralPurpose,
        general_purpose::{PAD_INDIFFERENT, STANDARD},
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    FailureMode, Outage, Shared,
    fcm::google_error,
    lock,
    reply::{ConnectionReset, HttpReply},
};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// JWTs come with and without padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PAD_INDIFFERENT);
/// How many access tokens are valid at a time; a further one replaces the oldest.
const VALID_MAX: usize = 1000;

/// The service account and its access tokens.
#[derive(Default)]
pub(super) struct Oauth {
    account: OnceLock<IssuedAccount>,
    /// Access tokens and when they expire, oldest first.
    valid: Mutex<VecDeque<(String, Instant)>>,
    issued: AtomicU64,
}

struct IssuedAccount {
    key: KeyPair,
    pem: String,
}

/// `POST /token`
pub(super) async fn token(
    State(shared): State<Arc<Shared>>,
    Extension(reset): Extension<ConnectionReset>,
    body: Bytes,
) -> Response {
    let faults = shared.faults();
    let reply = match shared.oauth_outage.on_request(Instant::now()) {
        Some(outage) => outage_reply(&outage),
        None if faults.oauth.refused => invalid_grant("Invalid grant: account not found"),
        None => match shared.oauth.check(&body, &shared.options.project_id, &shared.url, Timestamp::now()) {
            Ok(()) => shared.oauth.issue(faults.oauth.lifetime),
            Err(why) => invalid_grant(why),
        },
    };
    reply.send(faults.oauth.latency, &reset).await
}

impl Oauth {
    /// The JSON file of the service account. The first call generates its key.
    pub fn service_account(&self, project: &str, url: &str) -> String {
        let account = self.account.get_or_init(IssuedAccount::generate);
        let json = json!({
            "type": "service_account",
            "project_id": project,
            "private_key_id": "sandbox",
            "private_key": account.pem,
            "client_email": client_email(project),
            "client_id": "100000000000000000000",
            "auth_uri": format!("{url}/auth"),
            "token_uri": token_uri(url),
        });
        format!("{json:#}\n")
    }

    /// Whether this access token was issued here, has not expired and was not revoked.
    pub fn accepts(&self, bearer: &str) -> bool {
        let now = Instant::now();
        lock(&self.valid).iter().rev().any(|(token, expires)| token == bearer && now < *expires)
    }

    pub fn revoke(&self) {
        lock(&self.valid).clear();
    }

    pub fn issued(&self) -> u64 {
        self.issued.load(Relaxed)
    }

    pub fn reset_count(&self) {
        self.issued.store(0, Relaxed);
    }

    fn issue(&self, lifetime: Duration) -> HttpReply {
        let token = format!("ya29.sandbox-{:032x}", rand::random::<u128>());
        let now = Instant::now();
        let mut valid = lock(&self.valid);
        valid.retain(|(_, expires)| now < *expires);
        if valid.len() == VALID_MAX {
            valid.pop_front();
        }
        valid.push_back((token.clone(), now + lifetime));
        self.issued.fetch_add(1, Relaxed);
        let body = json!({ "access_token": token, "expires_in": lifetime.as_secs(), "token_type": "Bearer" });
        HttpReply::json(200, body.to_string())
    }

    /// Checks that a form holds an assertion signed by the service account, for this endpoint, not expired.
    fn check(&self, form: &[u8], project: &str, url: &str, now: Timestamp) -> Result<(), &'static str> {
        let assertion = assertion(form).ok_or("Invalid grant_type or missing assertion")?;
        let (signed, signature) = assertion.rsplit_once('.').ok_or("Invalid JWT")?;
        let (header, claims) = signed.split_once('.').ok_or("Invalid JWT")?;
        let header = decode(header).ok_or("Invalid JWT")?;
        let claims = decode(claims).ok_or("Invalid JWT")?;
        if header["alg"] != "RS256" {
            return Err("Invalid JWT: unexpected algorithm");
        }
        if claims["iss"] != client_email(project) {
            return Err("Invalid grant: account not found");
        }
        if claims["aud"] != token_uri(url) {
            return Err("Invalid JWT: Failed audience check");
        }
        if claims["exp"].as_i64().is_none_or(|expires| expires <= now.as_second()) {
            return Err("Invalid JWT: Token must be a short-lived token and in a reasonable timeframe");
        }
        let key = self.account.get().ok_or("Invalid JWT Signature.")?.key.public_key();
        let signature = BASE64URL.decode(signature).map_err(|_| "Invalid JWT Signature.")?;
        let verified =
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(signed.as_bytes(), &signature);
        verified.map_err(|_| "Invalid JWT Signature.")
    }
}

impl IssuedAccount {
    #[expect(
        clippy::expect_used,
        reason = "a sandbox without a key is of no use, and generating one fails only without memory"
    )]
    fn generate() -> Self {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("a fresh RSA key");
        let der: Pkcs8V1Der = key.as_der().expect("PKCS#8 of a fresh key");
        let text = STANDARD.encode(der.as_ref());
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        Self { key, pem }
    }
}

impl fmt::Debug for Oauth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oauth").field("issued", &self.issued).finish_non_exhaustive()
    }
}

fn client_email(project: &str) -> String {
    format!("sandbox@{project}.iam.gserviceaccount.com")
}

fn token_uri(url: &str) -> String {
    format!("{url}/token")
}

/// The assertion of a form with the JWT bearer grant. A form is encoded like a URL's query.
fn assertion(form: &[u8]) -> Option<String> {
    let uri = Uri::try_from([b"/?", form].concat()).ok()?;
    let Query(fields) = Query::<Vec<(String, String)>>::try_from_uri(&uri).ok()?;
    let field = |wanted: &str| fields.iter().find_map(|(name, value)| (name == wanted).then_some(value));
    field("assertion").filter(|_| field("grant_type").is_some_and(|grant| grant == GRANT)).cloned()
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64URL.decode(part).ok()?).ok()
}

fn invalid_grant(why: &str) -> HttpReply {
    HttpReply::json(400, json!({ "error": "invalid_grant", "error_description": why }).to_string())
}

fn outage_reply(outage: &Outage) -> HttpReply {
    let reply = match outage.manner {
        FailureMode::Html => HttpReply::html(outage.status),
        FailureMode::Short => {
            HttpReply::json(200, json!({ "expires_in": 3599, "token_type": "Bearer" }).to_string())
        }
        FailureMode::Error | FailureMode::Hang | FailureMode::Reset | FailureMode::Drip => {
            error_with(outage.status)
        }
    };
    reply.retry_after(outage.retry_after).with_failure_mode(outage.manner)
}

fn error_with(code: u16) -> HttpReply {
    let status = if code == 503 { "UNAVAILABLE" } else { "INTERNAL" };
    HttpReply::json(
        code,
        google_error(code, status, "The service is currently unavailable.", &[]).to_string(),
    )
}
