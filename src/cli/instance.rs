//! How commands speak with a running instance: through its admin listener.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use pushcast::config::Config;
use reqwest::{Client, Method, Url};
use serde_json::Value;

/// Finding a token by its hash reads the whole table.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Which instance.
#[derive(Debug, clap::Args)]
pub struct Instance {
    /// The admin address of the instance [default: http.admin_listen of the configuration]
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub admin: Option<SocketAddr>,
}

impl Instance {
    /// Asks a question.
    pub async fn get(&self, config: &Config, path: &[&str]) -> anyhow::Result<Value> {
        ask(self.address(config)?, Method::GET, path, None).await
    }

    /// Asks for a change.
    pub async fn post(&self, config: &Config, path: &[&str], body: &Value) -> anyhow::Result<Value> {
        ask(self.address(config)?, Method::POST, path, Some(body)).await
    }

    fn address(&self, config: &Config) -> anyhow::Result<SocketAddr> {
        self.admin.map_or_else(|| address_of(&config.http.admin_listen), Ok)
    }
}

async fn ask(
    address: SocketAddr,
    method: Method,
    path: &[&str],
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let mut url = Url::parse(&format!("http://{address}"))?;
    url.path_segments_mut().ok().context("an address has a path")?.extend(path);
    let client = Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
    // The path may hold a token, so no error of the request shows its URL.
    let mut request = client.request(method, url);
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let answer = request.send().await.map_err(reqwest::Error::without_url);
    let answer = answer.with_context(|| {
        format!("no instance answers on {address}; is it running, with http.admin_listen there?")
    })?;
    let status = answer.status();
    let text = answer.text().await.map_err(reqwest::Error::without_url)?;
    match serde_json::from_str::<Value>(&text) {
        Ok(told) if status.is_success() => Ok(told),
        Ok(told) => bail!("{}", told["error"].as_str().unwrap_or(&text)),
        Err(_) => bail!("{address} answered {status}, which is not pushcast's way"),
    }
}

/// Where an instance with this setting can be reached from the same machine.
fn address_of(admin_listen: &str) -> anyhow::Result<SocketAddr> {
    if admin_listen.is_empty() {
        bail!("http.admin_listen is empty: the instance answers no questions");
    }
    let mut address: SocketAddr = admin_listen.parse().context("http.admin_listen")?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_listens_everywhere_is_asked_on_this_machine() {
        assert_eq!(address_of("0.0.0.0:9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(address_of("[::]:9464").unwrap().to_string(), "[::1]:9464");
        assert_eq!(address_of("10.0.0.5:9464").unwrap().to_string(), "10.0.0.5:9464");
        assert!(address_of("").unwrap_err().to_string().contains("http.admin_listen is empty"));
    }
}
