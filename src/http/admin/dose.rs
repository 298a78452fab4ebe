//! What an operator may ask of a dose: whether it was to ring, how far it is on its way, and what became of
//! it.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{Admin, ApiError};
use crate::{
    domain::{DoseKey, ProfileId, ProviderId, Regimen, RegimenId, Timestamp},
    store::{Claimed, Doses, Shard, Watermarks},
};

/// Due rows of one moment that are looked through: those of a shard at one time.
const ROWS: usize = 10_000;

/// What the store knows of a dose.
struct KnownDose {
    regimen: Option<Regimen>,
    marks: Watermarks,
    is_due: bool,
    claims: Vec<(ProviderId, Claimed)>,
}

pub(super) async fn inspect<S: Doses>(
    State(admin): State<Admin<S>>,
    Path((profile, regimen, time)): Path<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let at: Timestamp = time.parse().map_err(|err| {
        ApiError::BadRequest(format!("{time:?} is no time like 2026-11-20T08:00:00Z: {err}"))
    })?;
    let (profile, regimen) = (ProfileId::new(profile), RegimenId::new(regimen));
    let (store, shard) = (&admin.store, Shard::of(&regimen));
    let just_before = at.saturating_sub(jiff::SignedDuration::from_micros(1)).unwrap_or(at);
    let mut known = KnownDose {
        regimen: store.regimen(&regimen).await?,
        marks: store.marks(shard).await?,
        is_due: store
            .due_rows(shard, just_before, at, None, ROWS)
            .await?
            .iter()
            .any(|row| row.regimen == regimen),
        claims: Vec::new(),
    };
    for provider in ProviderId::ALL {
        let key = DoseKey { profile: profile.clone(), regimen: regimen.clone(), schedule_time: at, provider };
        if let Some(claimed) = store.claimed(&key).await? {
            known.claims.push((provider, claimed));
        }
    }
    let now = Timestamp::now();
    let mut told = json!({
        "notification": DoseKey::notification(&profile, &regimen, at).as_str(),
        "regimen": known.regimen.as_ref().map(|regimen| json!({
            "profile": regimen.profile.as_str(),
            "user": regimen.user.as_str(),
            "enabled": regimen.enabled,
            "occursThen": regimen.is_occurrence(at),
            "next": regimen.next_after(now),
        })),
        "due": known.is_due,
        "dispatchedUntil": known.marks.dispatched,
        "says": says(&known, at, now),
    });
    for (provider, Claimed { lease, mark }) in &known.claims {
        told[provider.label()] = match mark {
            Some(mark) => {
                json!({ "outcome": mark.outcome.label(), "sent": mark.counts.sent, "dead": mark.counts.dead, "at": mark.at })
            }
            None => json!({ "claimedUntil": lease.until, "attempt": lease.attempt }),
        };
    }
    Ok(Json(told))
}

/// The whole of it in a sentence.
fn says(known: &KnownDose, at: Timestamp, now: Timestamp) -> String {
    if let Some((provider, Claimed { mark: Some(mark), .. })) =
        known.claims.iter().find(|(_, claimed)| claimed.mark.is_some())
    {
        return format!("{provider} has its outcome: {}", mark.outcome.label());
    }
    if let Some((provider, claimed)) = known.claims.first() {
        let over = if claimed.lease.until < now { "over since" } else { "good until" };
        return format!("it is being rung through {provider}: a claim is {over} {}", claimed.lease.until);
    }
    let rings = known.regimen.as_ref().is_some_and(|regimen| regimen.is_occurrence(at));
    match (rings || known.is_due, at <= known.marks.dispatched) {
        (false, _) => "it was never to ring: the regimen has no dose then, and nobody announced one".to_owned(),
        (true, true) => "it was handed on, and no provider has begun with it: `push-outcomes` says so if it was missed or had no token, \
                         else it waits in push.*.urgent"
            .to_owned(),
        (true, false) if now < at => "it is to come".to_owned(),
        (true, false) if known.is_due => "it is due and not handed on yet: the next tick of its shard does that".to_owned(),
        (true, false) => "it is due and has no row: the daily sweep looks for those to come only".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Counts, DoseOutcome, EveryDay, Rule, UserId},
        store::{DoseMark, Lease},
    };

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Every day at eight in London, known and not handed on.
    fn known() -> KnownDose {
        let regimen = Regimen {
            profile: ProfileId::new("pr1"),
            user: UserId::new("pat"),
            medicine_name: "Metformin".into(),
            dosage: "500 mg".into(),
            timezone: jiff::tz::TimeZone::get("Europe/London").unwrap(),
            rule: Rule::Times { times: vec![jiff::civil::time(8, 0, 0, 0)], days: EveryDay::Nth(1) },
            start_date: jiff::civil::date(2026, 11, 1),
            end_date: None,
            enabled: true,
        };
        let handed = at("2026-11-20T07:59:45Z");
        KnownDose {
            regimen: Some(regimen),
            marks: Watermarks { read: handed, dispatched: handed },
            is_due: true,
            claims: Vec::new(),
        }
    }

    #[test]
    fn each_step_of_a_dose_has_its_words() {
        let (dose, now) = (at("2026-11-20T08:00:00Z"), at("2026-11-20T08:00:10Z"));
        let words = |change: &dyn Fn(&mut KnownDose)| {
            let mut known = known();
            change(&mut known);
            says(&known, dose, now)
        };
        assert!(words(&|_| {}).contains("not handed on yet"));
        assert!(words(&|known| known.is_due = false).contains("has no row"));
        assert!(words(&|known| known.marks.dispatched = now).contains("was handed on"));
        assert_eq!(says(&known(), at("2026-11-21T08:00:00Z"), now), "it is to come");
        let never = |known: &mut KnownDose| (known.regimen, known.is_due) = (None, false);
        assert!(words(&never).contains("never to ring"));
        assert!(!words(&|known| known.regimen = None).contains("never"), "upstream announced it");

        let lease = Lease { owner: "o".into(), attempt: 1, until: at("2026-11-20T08:01:00Z") };
        let claimed = Claimed { lease: lease.clone(), mark: None };
        assert!(
            words(&|known| known.claims = vec![(ProviderId::Fcm, claimed.clone())])
                .contains("rung through fcm: a claim is good until")
        );
        let mark = DoseMark { outcome: DoseOutcome::Sent, counts: Counts::default(), at: now };
        let marked = Claimed { lease, mark: Some(mark) };
        let both = vec![(ProviderId::Expo, claimed.clone()), (ProviderId::Fcm, marked)];
        assert_eq!(words(&|known| known.claims = both.clone()), "fcm has its outcome: sent");
    }
}
