//! How a regimen is stored: in one cell, its rule as text, with the version of its event as timestamp.

use jiff::tz::TimeZone;
use scylla::{DeserializeValue, SerializeValue};

use super::errors::{corrupt, row_name};
use crate::{
    domain::{ProfileId, Regimen, UserId, Version, recurrence::InvalidRule},
    store::StoreResult,
};

/// The one cell of a regimen. Of two with the same version the server keeps the greater one.
#[derive(Debug, SerializeValue, DeserializeValue)]
pub(super) struct DefinitionRow {
    /// The cell's timestamp.
    pub ver: i64,
    pub removed: bool,
    profile_id: String,
    user_id: String,
    medicine_name: String,
    dosage: String,
    timezone: String,
    rule: String,
    start_date: String,
    end_date: Option<String>,
    enabled: bool,
}

impl DefinitionRow {
    /// What is written for a regimen, or for its removal.
    pub(super) fn of(regimen: Option<&Regimen>, version: Version) -> Self {
        let mut definition = Self {
            ver: version.as_i64(),
            removed: true,
            profile_id: String::new(),
            user_id: String::new(),
            medicine_name: String::new(),
            dosage: String::new(),
            timezone: String::new(),
            rule: String::new(),
            start_date: String::new(),
            end_date: None,
            enabled: false,
        };
        if let Some(regimen) = regimen {
            definition = Self {
                removed: false,
                profile_id: regimen.profile.to_string(),
                user_id: regimen.user.to_string(),
                medicine_name: regimen.medicine_name.clone(),
                dosage: regimen.dosage.clone(),
                timezone: regimen.timezone.iana_name().unwrap_or_default().to_owned(),
                rule: regimen.rule.to_string(),
                start_date: regimen.start_date.to_string(),
                end_date: regimen.end_date.map(|date| date.to_string()),
                enabled: regimen.enabled,
                ..definition
            };
        }
        definition
    }

    /// The regimen `id` that the cell holds; `None` = it was removed.
    pub(super) fn read(self, id: &str) -> StoreResult<Option<Regimen>> {
        if self.removed {
            return Ok(None);
        }
        let row = || row_name("regimens", id);
        let not_a_date = |err: jiff::Error| corrupt(row, err);
        Ok(Some(Regimen {
            profile: ProfileId::new(self.profile_id),
            user: UserId::new(self.user_id),
            medicine_name: self.medicine_name,
            dosage: self.dosage,
            timezone: TimeZone::get(&self.timezone).map_err(|err| corrupt(row, err))?,
            rule: self.rule.parse().map_err(|err: InvalidRule| corrupt(row, err))?,
            start_date: self.start_date.parse().map_err(not_a_date)?,
            end_date: self.end_date.as_deref().map(str::parse).transpose().map_err(not_a_date)?,
            enabled: self.enabled,
        }))
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::{date, time};

    use super::*;
    use crate::{
        domain::{EveryDay, Rule, Timestamp},
        store::StoreError,
    };

    #[test]
    fn a_cell_that_no_release_wrote_is_corrupt_and_names_its_row() {
        let regimen = Regimen {
            profile: ProfileId::new("pr1"),
            user: UserId::new("ann"),
            medicine_name: "Metformin".to_owned(),
            dosage: "1".to_owned(),
            timezone: TimeZone::UTC,
            rule: Rule::Times { times: vec![time(8, 0, 0, 0)], days: EveryDay::Nth(1) },
            start_date: date(2026, 11, 1),
            end_date: None,
            enabled: true,
        };
        let stored = || DefinitionRow::of(Some(&regimen), Version::of_record(Timestamp::UNIX_EPOCH, 0));
        assert_eq!(stored().read("r1").unwrap().as_ref(), Some(&regimen));
        let garbage = || "garbage".to_owned();
        for cell in [
            DefinitionRow { timezone: garbage(), ..stored() },
            DefinitionRow { rule: garbage(), ..stored() },
            DefinitionRow { start_date: garbage(), ..stored() },
            DefinitionRow { end_date: Some(garbage()), ..stored() },
        ] {
            let failure = cell.read("r1").unwrap_err();
            let StoreError::Corrupt { context, .. } = &failure else { panic!("{failure:?}") };
            assert_eq!(context, "table regimens, key r1");
        }
    }
}
