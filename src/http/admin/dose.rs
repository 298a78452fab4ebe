//! The state of a dose for an operator: whether the regimen has it, whether it is dispatched, and the outcome
//! of its reminder.

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

/// The most due rows that are searched: those of one shard at one time.
const ROWS: usize = 10_000;

/// What the store has of a dose.
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
        ApiError::BadRequest(format!("{time:?} is not a time like 2026-11-20T08:00:00Z: {err}"))
    })?;
    let profile = ProfileId::new(profile);
    let regimen = RegimenId::new(regimen);
    let store = &admin.store;
    let shard = Shard::of(&regimen);
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
    let mut answer = json!({
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
        "says": describe(&known, at, now),
    });
    for (provider, Claimed { lease, mark }) in &known.claims {
        answer[provider.label()] = match mark {
            Some(mark) => {
                json!({
                    "outcome": mark.outcome.label(),
                    "sent": mark.counts.sent,
                    "dead": mark.counts.dead,
                    "at": mark.at,
                })
            }
            None => json!({ "claimedUntil": lease.until, "attempt": lease.attempt }),
        };
    }
    Ok(Json(answer))
}

/// The state of the dose in one sentence.
fn describe(known: &KnownDose, at: Timestamp, now: Timestamp) -> String {
    if let Some((provider, Claimed { mark: Some(mark), .. })) =
        known.claims.iter().find(|(_, claimed)| claimed.mark.is_some())
    {
        return format!("{provider} has its outcome: {}", mark.outcome.label());
    }
    if let Some((provider, claimed)) = known.claims.first() {
        let validity = if claimed.lease.until < now { "expired at" } else { "is valid until" };
        let until = claimed.lease.until;
        return format!("its reminder is being sent through {provider}: the claim {validity} {until}");
    }
    let occurs = known.regimen.as_ref().is_some_and(|regimen| regimen.is_occurrence(at));
    let text = match (occurs || known.is_due, at <= known.marks.dispatched) {
        (false, _) => "there is no such dose: the regimen does not occur then, and no record announced it",
        (true, true) => {
            "it is dispatched, and no provider has claimed it: `push-outcomes` has a record if it was missed \
             or had no token; otherwise it waits in push.*.urgent"
        }
        (true, false) if now < at => "it is not due yet",
        (true, false) if known.is_due => {
            "it is due and not dispatched yet: the next tick of its shard does that"
        }
        (true, false) => "it is due and has no row: the daily sweep inserts rows of future doses only",
    };
    text.to_owned()
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

    /// Every day at eight in London, due and not dispatched.
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
        let dispatched = at("2026-11-20T07:59:45Z");
        KnownDose {
            regimen: Some(regimen),
            marks: Watermarks { read: dispatched, dispatched },
            is_due: true,
            claims: Vec::new(),
        }
    }

    #[test]
    fn each_step_of_a_dose_has_its_description() {
        let dose = at("2026-11-20T08:00:00Z");
        let now = at("2026-11-20T08:00:10Z");
        let description = |change: &dyn Fn(&mut KnownDose)| {
            let mut known = known();
            change(&mut known);
            describe(&known, dose, now)
        };
        assert!(description(&|_| {}).contains("not dispatched yet"));
        assert!(description(&|known| known.is_due = false).contains("has no row"));
        assert!(description(&|known| known.marks.dispatched = now).contains("is dispatched"));
        assert_eq!(describe(&known(), at("2026-11-21T08:00:00Z"), now), "it is not due yet");
        let unknown = |known: &mut KnownDose| {
            known.regimen = None;
            known.is_due = false;
        };
        assert!(description(&unknown).contains("there is no such dose"));
        assert!(
            !description(&|known| known.regimen = None).contains("no such dose"),
            "upstream announced it"
        );

        let lease = Lease { owner: "o".into(), attempt: 1, until: at("2026-11-20T08:01:00Z") };
        let claimed = Claimed { lease: lease.clone(), mark: None };
        assert!(
            description(&|known| known.claims = vec![(ProviderId::Fcm, claimed.clone())])
                .contains("sent through fcm: the claim is valid until")
        );
        let mark = DoseMark { outcome: DoseOutcome::Sent, counts: Counts::default(), at: now };
        let marked = Claimed { lease, mark: Some(mark) };
        let both = vec![(ProviderId::Expo, claimed.clone()), (ProviderId::Fcm, marked)];
        assert_eq!(description(&|known| known.claims = both.clone()), "fcm has its outcome: sent");
    }
}
