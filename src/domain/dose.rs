//! One dose of a medication.

use super::{NotificationId, ProfileId, ProviderId, RegimenId, Timestamp};

/// Which ringing of which dose: claimed once, by one handling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DoseKey {
    /// Whose dose.
    pub profile: ProfileId,
    /// Of which regimen.
    pub regimen: RegimenId,
    /// Due when.
    pub schedule_time: Timestamp,
    /// Rung through whom.
    pub provider: ProviderId,
}

/// A reminder to look at a regimen at a time; a hint, the regimen is the truth.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueRow {
    /// When.
    pub due_at: Timestamp,
    /// Which regimen.
    pub regimen: RegimenId,
    /// A dose that upstream found due itself, in the words of its event; such a row asks no regimen.
    pub payload: Option<String>,
}

impl DoseKey {
    /// The notification of a dose, the same through every provider.
    pub fn notification(
        profile: &ProfileId,
        regimen: &RegimenId,
        schedule_time: Timestamp,
    ) -> NotificationId {
        NotificationId::new(format!("dose:{profile}:{regimen}:{schedule_time:.0}"))
    }
}
