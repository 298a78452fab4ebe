//! Which stages a process runs.

use std::{collections::BTreeSet, str::FromStr};

use crate::topology::STAGES;

/// The selected stages. As text: names separated by commas; `delivery` and `delivery.expo` select all stages
/// below them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages(BTreeSet<&'static str>);

/// There is no such stage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no stage {0:?}; the stages are {all}", all = STAGES.map(|stage| stage.name).join(", "))]
pub struct UnknownStage(String);

impl Stages {
    /// All of them.
    pub fn all() -> Self {
        Self(STAGES.map(|stage| stage.name).into())
    }

    /// Whether the stage of that name is selected.
    pub fn contains(&self, stage: &str) -> bool {
        self.0.contains(stage)
    }
}

impl FromStr for Stages {
    type Err = UnknownStage;

    fn from_str(list: &str) -> Result<Self, UnknownStage> {
        let mut selected = BTreeSet::new();
        for name in list.split(',').map(str::trim) {
            let is_named = |stage: &&str| {
                stage.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let named: Vec<_> = STAGES.iter().map(|stage| stage.name).filter(is_named).collect();
            if named.is_empty() {
                return Err(UnknownStage(name.to_owned()));
            }
            selected.extend(named);
        }
        Ok(Self(selected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(list: &str) -> Vec<&'static str> {
        list.parse::<Stages>().unwrap().0.into_iter().collect()
    }

    #[test]
    fn stages_are_selected_by_name_or_by_a_prefix_that_ends_before_a_dot() {
        assert_eq!(selected("tokens, cleanup"), ["cleanup", "tokens"]);
        assert_eq!(selected("delivery.expo"), ["delivery.expo.bulk", "delivery.expo.urgent"]);
        assert_eq!(selected("delivery").len(), 4);
    }

    #[test]
    fn a_stage_that_does_not_exist_is_refused() {
        for list in ["", "token", "tokens,", "delivery.exp", "delivery."] {
            assert!(list.parse::<Stages>().is_err(), "{list:?}");
        }
    }
}
