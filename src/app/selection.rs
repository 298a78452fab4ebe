//! Which stages a process runs.

use std::{fmt, str::FromStr};

/// The stages that can be selected; `delivery` stands for all that begin with it.
pub const STAGES: [&str; 6] = ["tokens", "posts", "medication", "delivery", "receipts", "cleanup"];

/// A selection of stages: `tokens,delivery.expo`. A name stands for all stages that it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(Vec<String>);

/// There is no such stage.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no stage {0:?}; there are tokens, posts, medication, delivery.<provider>.<lane>, receipts and cleanup")]
pub struct UnknownStage(String);

impl Selection {
    /// All of them.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether `stage` is selected.
    pub fn contains(&self, stage: &str) -> bool {
        let begins = |name: &str| stage.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.0.is_empty() || self.0.iter().any(|name| begins(name))
    }
}

impl FromStr for Selection {
    type Err = UnknownStage;

    fn from_str(text: &str) -> Result<Self, UnknownStage> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names
            .map(|name| {
                let known = STAGES.iter().any(|stage| name == *stage) || ["delivery.expo", "delivery.fcm"].iter().any(|lane| {
                    name.strip_prefix(lane).is_some_and(|rest| matches!(rest, "" | ".urgent" | ".bulk"))
                });
                if known { Ok(name.to_owned()) } else { Err(UnknownStage(name.to_owned())) }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "all".to_owned() } else { self.0.join(",") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_all_stages_that_it_begins() {
        let some: Selection = "tokens, delivery.expo".parse().unwrap();
        assert!(some.contains("tokens") && some.contains("delivery.expo.bulk"));
        assert!(!some.contains("posts") && !some.contains("delivery.fcm.bulk"));
        assert!(Selection::all().contains("posts"));
    }

    #[test]
    fn an_unknown_stage_is_refused_by_name() {
        assert_eq!("tokens,postz".parse::<Selection>(), Err(UnknownStage("postz".into())));
    }
}
