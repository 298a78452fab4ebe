//! How a regimen is kept: one cell, its rule as text, the version of its event as timestamp.

use jiff::tz::TimeZone;
use scylla::{DeserializeValue, SerializeValue};

use super::execute::unreadable;
use crate::{
    domain::{ProfileId, Regimen, UserId, Version, recurrence::InvalidRule},
    store::StoreError,
};

/// The one cell of a regimen. Of two with one version the server keeps the greater one.
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

    /// The regimen that the cell holds; `None` = it was removed.
    pub(super) fn read(self) -> Result<Option<Regimen>, StoreError> {
        const CONTEXT: &str = "read a regimen";
        if self.removed {
            return Ok(None);
        }
        let not_a_date = |err: jiff::Error| unreadable(CONTEXT, err);
        Ok(Some(Regimen {
            profile: ProfileId::new(self.profile_id),
            user: UserId::new(self.user_id),
            medicine_name: self.medicine_name,
            dosage: self.dosage,
            timezone: TimeZone::get(&self.timezone).map_err(|err| unreadable(CONTEXT, err))?,
            rule: self.rule.parse().map_err(|err: InvalidRule| unreadable(CONTEXT, err))?,
            start_date: self.start_date.parse().map_err(not_a_date)?,
            end_date: self.end_date.as_deref().map(str::parse).transpose().map_err(not_a_date)?,
            enabled: self.enabled,
        }))
    }
}
