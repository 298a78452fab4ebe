//! `pushcast run`: the stages, until a signal.

use std::collections::BTreeSet;

use pushcast::{config::Config, stream::Stop};

/// Every stage, in the order of a record's life.
pub const STAGES: [&str; 9] = [
    "tokens",
    "posts",
    "medication",
    "delivery.expo.urgent",
    "delivery.expo.bulk",
    "delivery.fcm.urgent",
    "delivery.fcm.bulk",
    "receipts",
    "cleanup",
];

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these stages, separated by commas; "delivery" and "delivery.expo" mean all below them [default: all]
    #[arg(long, value_name = "STAGES", value_parser = selected)]
    pub stages: Option<Stages>,
}

/// The stages that were picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages(pub BTreeSet<&'static str>);

/// Runs the stages until `stop`, and drains.
pub async fn run(args: Args, config: Config, _stop: Stop) -> anyhow::Result<()> {
    let Stages(stages) = args.stages.unwrap_or_else(Stages::all);
    tracing::info!(config = %config.redacted(), "Starting pushcast {}", env!("CARGO_PKG_VERSION"));
    anyhow::bail!("running {stages:?} is not wired yet")
}

// === impl Stages ===

impl Stages {
    /// All of them.
    pub fn all() -> Self {
        Self(STAGES.into())
    }
}

fn selected(list: &str) -> Result<Stages, String> {
    let mut selected = BTreeSet::new();
    for name in list.split(',').map(str::trim) {
        let is_named = |stage: &&str| stage.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let named: Vec<_> = STAGES.into_iter().filter(is_named).collect();
        if named.is_empty() {
            return Err(format!("{name:?} is no stage; there are {}", STAGES.join(", ")));
        }
        selected.extend(named);
    }
    Ok(Stages(selected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_picked_by_name_or_by_what_stands_before_a_dot() {
        assert_eq!(selected("tokens, cleanup").unwrap().0, ["cleanup", "tokens"].into());
        assert_eq!(selected("delivery.expo").unwrap().0, ["delivery.expo.bulk", "delivery.expo.urgent"].into());
        assert_eq!(selected("delivery").unwrap().0.len(), 4);
    }

    #[test]
    fn a_stage_that_does_not_exist_is_refused() {
        for list in ["", "token", "tokens,", "delivery.exp", "delivery."] {
            assert!(selected(list).is_err(), "{list:?}");
        }
    }
}
