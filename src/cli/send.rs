//! `pushcast send TOKEN`: does a message reach this device?

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use jiff::Timestamp;
use pushcast::{
    config::Config,
    dispatch::{Provider, PushMessage, Reply, Verdict},
    domain::{Data, Notification, NotificationId, ProviderId, Token},
    expo::Expo,
    fcm::Fcm,
    metrics::Metrics,
};

/// How long the provider may keep trying to reach the device.
const TTL: Duration = Duration::from_secs(3600);

/// What to send, and to which token.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device token
    pub token: String,

    /// The notification's title
    #[arg(long, default_value = "Test from pushcast")]
    pub title: String,

    /// The notification's text
    #[arg(long, default_value = "This device can be reached.")]
    pub body: String,
}

/// Sends one message without Kafka and the store, and reports the provider's verdict.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    let token =
        Token::parse(&args.token).context("expected ExponentPushToken[…] or an FCM registration token")?;
    let metrics = Arc::new(Metrics::new());
    let now = Timestamp::now();
    let notification = Notification {
        id: NotificationId::new(format!("test:{now}")),
        title: args.title,
        body: args.body,
        data: Data::new(),
        sound: Some(config.posts.sound.clone()),
        channel: config.posts.channel.clone(),
        expires_at: now + TTL,
    };
    let reply = match token.kind().provider() {
        ProviderId::Expo => send(&Expo::new(&config.expo, metrics)?, &notification, &token).await?,
        ProviderId::Fcm => {
            let fcm = Fcm::new(&config.fcm, metrics)
                .await?
                .context("FCM is not configured: set fcm.credentials_file")?;
            send(&fcm, &notification, &token).await?
        }
    };
    match reply {
        Reply::Each(verdicts) if matches!(verdicts[..], [Verdict::Accepted { .. }]) => {
            println!("{} accepted the message for {token}", token.kind().provider());
            Ok(())
        }
        other => bail!("{} did not accept the message for {token}: {other:?}", token.kind().provider()),
    }
}

async fn send<P: Provider>(
    provider: &P,
    notification: &Notification,
    token: &Token,
) -> anyhow::Result<Reply> {
    let body = provider.body(notification)?;
    let mut reauthorised = false;
    loop {
        match provider.send(&[PushMessage { body: &body, token, platform: None, ttl: TTL }]).await {
            Reply::Reauthorised { refused: Some(why) } if reauthorised => {
                return Ok(Reply::CredentialsRefused { why });
            }
            Reply::Reauthorised { refused } => reauthorised = refused.is_some(),
            reply => return Ok(reply),
        }
    }
}
