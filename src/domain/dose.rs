//! One dose of a medication.

use super::{NotificationId, ProfileId, ProviderId, RegimenId, Timestamp};

/// One dose's reminder through one provider. One handling at a time holds the claim to send it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DoseKey {
    /// The person whose dose it is.
    pub profile: ProfileId,
    /// The regimen that it belongs to.
    pub regimen: RegimenId,
    /// When it is due.
    pub schedule_time: Timestamp,
    /// The provider that it is sent through.
    pub provider: ProviderId,
}

/// An entry of the due queue: look at a regimen at a time. Only a hint, the regimen itself decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueRow {
    /// When to look.
    pub due_at: Timestamp,
    /// The regimen to look at.
    pub regimen: RegimenId,
    /// A dose that upstream found due itself, as the text of its event; the regimen is not asked then.
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
