//! How a regimen is stored: its fields as columns, its rule as text.

use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension, Row};

use super::values::unreadable;
use crate::domain::{ProfileId, Regimen, RegimenId, UserId, Version, recurrence::InvalidRule};

/// The columns of a definition, after its version.
pub(super) const REGIMEN: &str = "version, removed, profile_id, user_id, medicine_name, dosage, timezone, \
                                  rule, start_date, end_date, enabled";

/// A definition as its columns hold it. Of two with the same version the greater one wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StoredDefinition {
    pub removed: bool,
    profile: String,
    user: String,
    medicine_name: String,
    dosage: String,
    timezone: String,
    rule: String,
    start_date: String,
    end_date: Option<String>,
    enabled: bool,
}

impl StoredDefinition {
    /// What is written for a regimen, or for its removal.
    pub(super) fn of(regimen: Option<&Regimen>) -> Self {
        let Some(regimen) = regimen else { return Self { removed: true, ..Self::default() } };
        Self {
            removed: false,
            profile: regimen.profile.to_string(),
            user: regimen.user.to_string(),
            medicine_name: regimen.medicine_name.clone(),
            dosage: regimen.dosage.clone(),
            timezone: regimen.timezone.iana_name().unwrap_or_default().to_owned(),
            rule: regimen.rule.to_string(),
            start_date: regimen.start_date.to_string(),
            end_date: regimen.end_date.map(|date| date.to_string()),
            enabled: regimen.enabled,
        }
    }

    pub(super) fn load(db: &Connection, regimen: &RegimenId) -> rusqlite::Result<Option<(Version, Self)>> {
        db.prepare_cached(&format!("SELECT {REGIMEN} FROM regimens WHERE regimen_id = ?1"))?
            .query_row([regimen.as_str()], Self::from_row)
            .optional()
    }

    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<(Version, Self)> {
        let definition = Self {
            removed: row.get(1)?,
            profile: row.get(2)?,
            user: row.get(3)?,
            medicine_name: row.get(4)?,
            dosage: row.get(5)?,
            timezone: row.get(6)?,
            rule: row.get(7)?,
            start_date: row.get(8)?,
            end_date: row.get(9)?,
            enabled: row.get(10)?,
        };
        Ok((Version::from_i64(row.get(0)?), definition))
    }

    pub(super) fn save(
        &self,
        db: &Connection,
        regimen: &RegimenId,
        version: Version,
    ) -> rusqlite::Result<()> {
        db.prepare_cached(&format!(
            "INSERT OR REPLACE INTO regimens ({REGIMEN}, regimen_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
        ))?
        .execute((
            version.as_i64(),
            self.removed,
            &self.profile,
            &self.user,
            &self.medicine_name,
            &self.dosage,
            &self.timezone,
            &self.rule,
            &self.start_date,
            &self.end_date,
            self.enabled,
            regimen.as_str(),
        ))
        .map(drop)
    }

    /// The regimen that these columns hold.
    pub(super) fn read(&self) -> rusqlite::Result<Regimen> {
        Ok(Regimen {
            profile: ProfileId::new(self.profile.as_str()),
            user: UserId::new(self.user.as_str()),
            medicine_name: self.medicine_name.clone(),
            dosage: self.dosage.clone(),
            timezone: TimeZone::get(&self.timezone).map_err(|error| unreadable(6, error))?,
            rule: self.rule.parse().map_err(|error: InvalidRule| unreadable(7, error))?,
            start_date: self.start_date.parse().map_err(|error: jiff::Error| unreadable(8, error))?,
            end_date: self
                .end_date
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|error: jiff::Error| unreadable(9, error))?,
            enabled: self.enabled,
        })
    }
}
