//! The fake providers, as a plain HTTP client sees them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "sandbox/control.rs"]
mod control;
#[path = "sandbox/expo.rs"]
mod expo;
#[path = "sandbox/fcm.rs"]
mod fcm;
#[path = "sandbox/outages.rs"]
mod outages;

use reqwest::{Client, RequestBuilder, StatusCode, Version};
use sandbox::{Faults, Options, ProviderStatistics, Sandbox};
use serde_json::{Value, json};
use yup_oauth2::{ServiceAccountAuthenticator, ServiceAccountKey};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// A sandbox and one client for each version of HTTP.
struct World {
    sandbox: Sandbox,
    http1: Client,
    http2: Client,
}

struct Answered {
    status: StatusCode,
    version: Version,
    retry_after: Option<String>,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }
}

impl World {
    async fn start(options: Options) -> Self {
        let sandbox = Sandbox::start(options).await.unwrap();
        let http2 = Client::builder().http2_prior_knowledge().build().unwrap();
        Self { sandbox, http1: Client::builder().http1_only().build().unwrap(), http2 }
    }

    /// FCM demands no access token, and messages are kept.
    async fn open() -> Self {
        Self::start(Options { require_bearer: false, ..Options::remembering() }).await
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.sandbox.faults().change(change);
    }

    async fn expo(&self, body: Value) -> Answered {
        answered(self.http1.post(self.sandbox.expo_url()).body(body.to_string())).await
    }

    async fn receipts(&self, ids: &[String]) -> Answered {
        let url = format!("{}/--/api/v2/push/getReceipts", self.sandbox.url());
        answered(self.http1.post(url).body(json!({ "ids": ids }).to_string())).await
    }

    fn fcm_request(&self, message: &Value) -> RequestBuilder {
        let url = format!("{}/v1/projects/sandbox/messages:send", self.sandbox.fcm_url());
        self.http2.post(url).body(json!({ "message": message }).to_string())
    }

    async fn fcm(&self, message: Value) -> Answered {
        answered(self.fcm_request(&message)).await
    }

    fn expo_statistics(&self) -> ProviderStatistics {
        self.sandbox.statistics().expo
    }

    async fn access_token(&self) -> Result<String, yup_oauth2::Error> {
        let key: ServiceAccountKey = serde_json::from_str(&self.sandbox.service_account()).unwrap();
        let authenticator = ServiceAccountAuthenticator::builder(key).build().await.unwrap();
        Ok(authenticator.token(&[SCOPE]).await?.token().unwrap().to_owned())
    }
}

async fn answered(request: RequestBuilder) -> Answered {
    let response = request.send().await.unwrap();
    Answered {
        status: response.status(),
        version: response.version(),
        retry_after: response.headers().get("retry-after").map(|after| after.to_str().unwrap().to_owned()),
        text: response.text().await.unwrap(),
    }
}

fn expo_token(name: impl std::fmt::Display) -> String {
    format!("ExponentPushToken[{name}]")
}

fn messages(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "to": expo_token(name), "title": "T", "body": "B" })).collect()
}

fn text_to(token: &str) -> Value {
    json!({ "token": token, "notification": { "title": "T", "body": "B" } })
}

fn ids(tickets: &Value) -> Vec<String> {
    tickets["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ticket| ticket["id"].as_str().unwrap().to_owned())
        .collect()
}
