//! Whether what was seen is what must come of what was published.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use pushcast::{
    domain::{ProviderId, Report},
    store::Census,
};
use sandbox::{Answer, ProviderStatistics, Statistics};

use super::{
    expected::{Expected, ExpectedOutcome},
    measure::shown,
    watch::{Noted, Push},
};

/// Everything that was found at the end.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The messages that reached the sandbox.
    pub pushes: Vec<Push>,
    /// What the sandbox counted.
    pub statistics: Statistics,
    /// What pushcast published.
    pub noted: Noted,
    /// What the store holds.
    pub census: Vec<Census>,
    /// How far arrivals ran ahead of the rate that each provider allows.
    pub ahead: BTreeMap<ProviderId, Duration>,
}

/// How far arrivals may run ahead of the rate. pushcast keeps it where messages leave; a busy machine holds
/// some of them up on their way and lets them arrive together, here at most that long.
const AHEAD_MAX: Duration = Duration::from_millis(500);

/// Two that should agree and do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// About what.
    pub about: String,
    /// What follows from what was published.
    pub expected: String,
    /// What there is.
    pub found: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.about, self.expected, self.found)
    }
}

/// Everything that does not agree.
pub fn verify(expected: &Expected, found: &Found) -> Vec<Disagreement> {
    let mut findings = Findings::default();
    pushes(&mut findings, expected, &found.pushes);
    for provider in ProviderId::ALL {
        statistics(&mut findings, expected, found, provider);
        let of = |census: &[Census]| {
            census.iter().find(|of| of.provider == provider).map(|of| (of.active, of.inactive))
        };
        let told = |of: Option<(u64, u64)>| {
            of.map_or("nothing".to_owned(), |(active, inactive)| format!("{active} active, {inactive} not"))
        };
        findings.agree(
            format!("tokens of {provider} in the store"),
            told(of(&expected.census)),
            told(of(&found.census)),
        );
    }
    outcomes(&mut findings, expected, &found.noted.outcomes);
    invalid_tokens(&mut findings, expected, &found.noted);
    findings.agree("records in dead-letters", expected.dead_letters, found.noted.dead_letters);
    findings.0
}

/// Every notification reached exactly the phones that it is for.
fn pushes(findings: &mut Findings, expected: &Expected, pushes: &[Push]) {
    let mut taken: BTreeMap<&str, BTreeMap<(ProviderId, &str), u64>> = BTreeMap::new();
    for push in pushes {
        *taken.entry(&push.name).or_default().entry((push.provider, &push.token)).or_default() += 1;
    }
    let names: BTreeSet<&str> =
        expected.pushes.keys().map(String::as_str).chain(taken.keys().copied()).collect();
    for name in names {
        let wanted: BTreeSet<(ProviderId, &str)> = expected
            .pushes
            .get(name)
            .into_iter()
            .flatten()
            .map(|(provider, token)| (*provider, token.as_str()))
            .collect();
        let got = taken.remove(name).unwrap_or_default();
        let missing = wanted.iter().filter(|phone| !got.contains_key(phone)).count();
        let uninvited = got.keys().filter(|phone| !wanted.contains(phone)).count();
        let again = got.values().filter(|times| **times > 1).count();
        if missing + uninvited + again > 0 {
            let found =
                format!("{missing} of them not rung, {uninvited} others rung, {again} rung more than once");
            findings.disagree(name, format!("{} phones rung once", wanted.len()), found);
        }
    }
}

/// The sandbox's own count, which knows nothing of names.
fn statistics(findings: &mut Findings, expected: &Expected, found: &Found, provider: ProviderId) {
    let of: &ProviderStatistics = match provider {
        ProviderId::Expo => &found.statistics.expo,
        ProviderId::Fcm => &found.statistics.fcm,
    };
    let tokens: BTreeSet<_> = expected.pushes.values().flatten().filter(|(of, _)| *of == provider).collect();
    findings.agree(format!("messages that {provider} took"), expected.sent(provider), of.taken);
    findings.agree(
        format!("tokens that {provider} took messages for"),
        tokens.len() as u64,
        of.distinct_tokens,
    );
    findings.agree(format!("doubles that {provider} saw"), 0, of.duplicates);
    findings.agree(
        format!("messages to dead tokens at {provider}"),
        expected.dead(provider),
        of.answered(Answer::Dead),
    );
    let ahead = found.ahead.get(&provider).copied().unwrap_or_default();
    if ahead > AHEAD_MAX {
        findings.disagree(
            format!("the rate at {provider}"),
            "kept",
            format!("messages came {} too early", shown(ahead)),
        );
    }
}

/// `push-outcomes` tells each outcome, with the same content however often.
fn outcomes(findings: &mut Findings, expected: &Expected, reports: &[Report]) {
    let mut told: BTreeMap<(String, Option<ProviderId>), Vec<ExpectedOutcome>> = BTreeMap::new();
    for report in reports {
        let (key, outcome) = match report {
            Report::Broadcast { notification, counts, .. } => {
                ((notification.to_string(), None), ExpectedOutcome { of_dose: None, counts: *counts })
            }
            Report::Dose { notification, provider, outcome, counts, .. } => (
                (notification.to_string(), *provider),
                ExpectedOutcome { of_dose: Some(*outcome), counts: *counts },
            ),
        };
        let of_key = told.entry(key).or_default();
        if !of_key.contains(&outcome) {
            of_key.push(outcome);
        }
    }
    for (key, wanted) in &expected.outcomes {
        let got = told.remove(key).unwrap_or_default();
        if got != [*wanted] {
            let found = if got.is_empty() { "none".to_owned() } else { format!("{got:?}") };
            findings.disagree(outcome_of(key), format!("{wanted:?}"), found);
        }
    }
    for (key, got) in told {
        findings.disagree(outcome_of(&key), "none", format!("{got:?}"));
    }
}

fn outcome_of((notification, provider): &(String, Option<ProviderId>)) -> String {
    let by = provider.map(|provider| format!(" through {provider}")).unwrap_or_default();
    format!("the outcome of {notification}{by}")
}

/// `invalid-tokens` names every dead token, and no other.
fn invalid_tokens(findings: &mut Findings, expected: &Expected, noted: &Noted) {
    let told: BTreeSet<&str> = noted.invalid.iter().map(|dead| dead.token.as_str()).collect();
    let untold = expected.invalid.iter().filter(|token| !told.contains(token.as_str())).count();
    let slandered = told.iter().filter(|token| !expected.invalid.contains(**token)).count();
    if untold + slandered > 0 {
        let found = format!("{untold} of them untold, {slandered} others told");
        findings.disagree(
            "tokens in invalid-tokens",
            format!("the {} dead ones", expected.invalid.len()),
            found,
        );
    }
}

#[derive(Default)]
struct Findings(Vec<Disagreement>);

impl Findings {
    fn disagree(&mut self, about: impl Into<String>, expected: impl ToString, found: impl ToString) {
        self.0.push(Disagreement {
            about: about.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    fn agree<T: PartialEq + ToString>(&mut self, about: impl Into<String>, expected: T, found: T) {
        if expected != found {
            self.disagree(about, expected, found);
        }
    }
}

#[cfg(test)]
mod tests;
