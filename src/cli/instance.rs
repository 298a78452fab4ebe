//! The client of a running instance's admin listener.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use pushcast::config::Config;
use reqwest::{Client, Method, Url};
use serde_json::Value;

/// Long, because finding a token by its hash reads the whole table.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Which instance.
#[derive(Debug, clap::Args)]
pub struct Instance {
    /// The admin address of the instance [default: http.admin_listen of the configuration]
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub admin: Option<SocketAddr>,
}

impl Instance {
    /// The answer to a `GET`.
    pub async fn get(&self, config: &Config, path: &[&str]) -> anyhow::Result<Value> {
        request(self.address(config)?, Method::GET, path, None).await
    }

    /// The answer to a `POST`.
    pub async fn post(&self, config: &Config, path: &[&str], body: &Value) -> anyhow::Result<Value> {
        request(self.address(config)?, Method::POST, path, Some(body)).await
    }

    fn address(&self, config: &Config) -> anyhow::Result<SocketAddr> {
        self.admin.map_or_else(|| address_of(&config.http.admin_listen), Ok)
    }
}

async fn request(
    address: SocketAddr,
    method: Method,
    path: &[&str],
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let mut url = Url::parse(&format!("http://{address}"))?;
    url.path_segments_mut().ok().context("an address has a path")?.extend(path);
    let client = Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
    // The path may contain a token, so no error shows the URL.
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
        Ok(value) if status.is_success() => Ok(value),
        Ok(value) => bail!("{}", value["error"].as_str().unwrap_or(&text)),
        Err(_) => bail!("{address} answered {status} without JSON: is it pushcast's http.admin_listen?"),
    }
}

/// The address at which an instance with this setting can be reached from the same machine.
fn address_of(admin_listen: &str) -> anyhow::Result<SocketAddr> {
    if admin_listen.is_empty() {
        bail!("http.admin_listen is empty: the instance has no admin listener");
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
    fn an_instance_that_listens_on_every_address_is_reached_through_the_loopback() {
        assert_eq!(address_of("0.0.0.0:9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(address_of("[::]:9464").unwrap().to_string(), "[::1]:9464");
        assert_eq!(address_of("10.0.0.5:9464").unwrap().to_string(), "10.0.0.5:9464");
        assert!(address_of("").unwrap_err().to_string().contains("http.admin_listen is empty"));
    }
}
