//! `pushcast inspect`: what a running instance knows, as JSON on standard output.

use pushcast::{config::Config, domain::ProviderId};

use super::{instance::Instance, route::provider};

/// What to ask, and whom.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    instance: Instance,

    /// About what
    #[command(subcommand)]
    pub subject: Subject,
}

/// What can be asked about.
#[derive(Debug, clap::Subcommand)]
pub enum Subject {
    /// A device token, or the hash that stands for it in the logs
    Token {
        /// The token or its hash
        token: String,
    },
    /// A user's active tokens
    User {
        /// The user's id
        user: String,
    },
    /// A broadcast: what was sent, what is left, when it will be done, and why it stands still
    Broadcast {
        /// The post's id, or the broadcast's (post:…)
        id: String,
    },
    /// A dose: whether it was to ring, how far it is, and what became of it
    Dose {
        /// Whose dose: the profile's id
        profile: String,
        /// The regimen's id
        regimen: String,
        /// When it is due, like 2026-11-20T08:00:00Z
        time: String,
    },
    /// Whether a provider's route sends, since when, and who set it
    Route {
        /// expo or fcm
        #[arg(value_parser = provider)]
        provider: ProviderId,
    },
}

/// Asks and prints the answer.
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
