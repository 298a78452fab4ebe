//! A dose that is due: which providers it goes to, and what the notification says.

use std::{collections::BTreeSet, time::Duration};

use consumer::{HandlerError, Message, Publish};
use jiff::tz::TimeZone;

use super::{Medication, Settings};
use crate::{
    domain::{
        Counts, DoseJob, DoseKey, DoseOutcome, Job, Lane, Notification, NotificationId, ProfileId,
        ProviderId, Regimen, RegimenId, Report, Timestamp, UpstreamDose, UserId, Work,
        template::{self, TemplateValue},
    },
    events::{self, topics},
    store::{Doses, Registry},
};

/// One dose, from its regimen or from upstream.
#[derive(Debug)]
pub(super) struct Dose {
    profile: ProfileId,
    regimen: RegimenId,
    user: UserId,
    schedule_time: Timestamp,
    medicine_name: String,
    dosage: String,
    timezone: TimeZone,
}

impl<S: Doses + Registry, P: Publish> Medication<S, P> {
    /// Dispatches a dose to delivery, or publishes why it is not sent. Returns when that is acknowledged.
    pub(super) async fn dispatch(&self, dose: &Dose) -> Result<(), HandlerError> {
        let missed_at = later(dose.schedule_time, self.settings.max_lateness);
        if self.now() > missed_at {
            return Ok(self.publish.publish(dose.not_sent(DoseOutcome::Missed, missed_at)).await?);
        }
        let registrations = self.store.tokens_of(&dose.user).await?;
        let owned: BTreeSet<ProviderId> =
            registrations.iter().map(|registration| registration.token.kind().provider()).collect();
        let jobs: Vec<Message> = owned
            .into_iter()
            .filter(|provider| self.providers.contains(provider))
            .map(|provider| dose.job(provider, &self.settings, self.life))
            .collect();
        if jobs.is_empty() {
            return Ok(self
                .publish
                .publish(dose.not_sent(DoseOutcome::NoTokens, dose.schedule_time))
                .await?);
        }
        Ok(self.publish.publish_all(jobs).await?)
    }
}

// === impl Dose ===

impl Dose {
    pub(super) fn of_regimen(id: &RegimenId, regimen: &Regimen, schedule_time: Timestamp) -> Self {
        Self {
            profile: regimen.profile.clone(),
            regimen: id.clone(),
            user: regimen.user.clone(),
            schedule_time,
            medicine_name: regimen.medicine_name.clone(),
            dosage: regimen.dosage.clone(),
            timezone: regimen.timezone.clone(),
        }
    }

    /// In the zone that upstream names, else in the regimen's, else in UTC.
    pub(super) fn of_upstream(dose: UpstreamDose, regimen: Option<&Regimen>) -> Self {
        let UpstreamDose { regimen: id, profile, user, schedule_time, medicine_name, dosage, timezone } =
            dose;
        let named = timezone.and_then(|name| TimeZone::get(&name).ok());
        let timezone =
            named.or_else(|| regimen.map(|regimen| regimen.timezone.clone())).unwrap_or(TimeZone::UTC);
        Self { profile, regimen: id, user, schedule_time, medicine_name, dosage, timezone }
    }

    fn notification_id(&self) -> NotificationId {
        DoseKey::notification(&self.profile, &self.regimen, self.schedule_time)
    }

    fn job(&self, provider: ProviderId, settings: &Settings, life: Duration) -> Message {
        let local_time = self.timezone.to_datetime(self.schedule_time).strftime("%H:%M").to_string();
        let values = [
            ("medicine_name", &*self.medicine_name),
            ("dosage", &*self.dosage),
            ("local_time", &*local_time),
        ];
        let data = [("screen", settings.screen.as_str()), ("regimen_id", self.regimen.as_str())];
        let notification = Notification {
            id: self.notification_id(),
            title: filled(&settings.title, &values),
            body: filled(&settings.body, &values),
            data: data.map(|(name, value)| (name.to_owned(), value.into())).into(),
            sound: Some(settings.sound.clone()).filter(|sound| !sound.is_empty()),
            channel: settings.channel.clone(),
            expires_at: later(self.schedule_time, life),
        };
        let work = DoseJob {
            profile: self.profile.clone(),
            regimen: self.regimen.clone(),
            user: self.user.clone(),
            schedule_time: self.schedule_time,
        };
        let job = Job { provider, notification, work: Work::Dose(work) };
        Message::new(
            events::jobs::topic(provider, Lane::Urgent),
            events::jobs::key(&job),
            events::jobs::write(&job),
        )
    }

    /// The outcome of a dose that goes to no provider. `at` follows from the dose, so that a repeat is equal.
    fn not_sent(&self, outcome: DoseOutcome, at: Timestamp) -> Message {
        let notification = self.notification_id();
        let key = notification.as_str().to_owned();
        let report = Report::Dose { notification, provider: None, outcome, counts: Counts::default(), at };
        Message::new(topics::PUSH_OUTCOMES, key, events::push_outcomes::write(&report))
    }
}

/// The template with these values in it.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    template::fill(template, |name| {
        let known = values.iter().find(|(known, _)| *known == name);
        known.map_or(TemplateValue::Unknown, |(_, value)| TemplateValue::Text(value))
    })
}

/// That much later, at most the last representable time.
pub(super) fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// That much earlier, at least the first representable time.
pub(super) fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}
