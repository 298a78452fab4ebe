//! `pushcast inspect`: the state of a running instance and of the store, as JSON on standard output.

use pushcast::{config::Config, domain::ProviderId};

use super::{instance::Instance, route::provider};

/// What to show, and from which instance.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    instance: Instance,

    /// What to show
    #[command(subcommand)]
    pub subject: Subject,
}

/// What can be shown.
#[derive(Debug, clap::Subcommand)]
pub enum Subject {
    /// A device token, by itself or by the hash that the logs show
    Token {
        /// The token or its hash
        token: String,
    },
    /// A user's active tokens
    User {
        /// The user's id
        user: String,
    },
    /// A broadcast: what was sent, what is left, when it will be done, and why it does not advance
    Broadcast {
        /// The id of the post, or of its broadcast (post:…)
        id: String,
    },
    /// A dose: whether a reminder was due, how far it has come, and its outcome
    Dose {
        /// The id of the profile
        profile: String,
        /// The id of the regimen
        regimen: String,
        /// The time at which it is due, like 2026-11-20T08:00:00Z
        time: String,
    },
    /// A provider's route: whether it sends, since when, and who set it
    Route {
        /// expo or fcm
        #[arg(value_parser = provider)]
        provider: ProviderId,
    },
}

/// Prints the instance's answer.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    let path: &[&str] = match &args.subject {
        Subject::Token { token } => &["inspect", "token", token],
        Subject::User { user } => &["inspect", "user", user],
        Subject::Broadcast { id } => &["inspect", "broadcast", id],
        Subject::Dose { profile, regimen, time } => &["inspect", "dose", profile, regimen, time],
        Subject::Route { provider } => &["inspect", "route", provider.label()],
    };
    println!("{:#}", args.instance.get(&config, path).await?);
    Ok(())
}
