//! Compares what was found with what follows from the records that were published.

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
    measure::format_duration,
    watch::{Collected, Push},
};

/// Everything that was found at the end.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The messages that reached the sandbox.
    pub pushes: Vec<Push>,
    /// What the sandbox counted.
    pub statistics: Statistics,
    /// What pushcast published.
    pub collected: Collected,
    /// What the store holds.
    pub census: Vec<Census>,
    /// The most by which arrivals were ahead of each provider's rate limit.
    pub lead: BTreeMap<ProviderId, Duration>,
}

/// The most by which arrivals may be ahead of the rate limit. pushcast keeps the limit where it sends; a busy
/// machine delays some messages in between, so that they arrive together with later ones.
const LEAD_MAX: Duration = Duration::from_millis(500);

/// Two values that should agree and do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What was compared.
    pub about: String,
    /// The value that follows from what was published.
    pub expected: String,
    /// The value that was found.
    pub found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.about, self.expected, self.found)
    }
}

/// All mismatches, in a fixed order.
pub fn verify(expected: &Expected, found: &Found) -> Vec<Mismatch> {
    let mut findings = Findings::default();
    pushes(&mut findings, expected, &found.pushes);
    for provider in ProviderId::ALL {
        statistics(&mut findings, expected, found, provider);
        let of = |census: &[Census]| {
            census.iter().find(|of| of.provider == provider).map(|of| (of.active, of.inactive))
        };
        let text = |of: Option<(u64, u64)>| {
            of.map_or("nothing".to_owned(), |(active, inactive)| format!("{active} active, {inactive} not"))
        };
        findings.compare(
            format!("tokens of {provider} in the store"),
            text(of(&expected.census)),
            text(of(&found.census)),
        );
    }
    outcomes(&mut findings, expected, &found.collected.outcomes);
    invalid_tokens(&mut findings, expected, &found.collected);
    findings.compare("records in dead-letters", expected.dead_letters, found.collected.dead_letters);
    findings.0
}

/// Every notification reached exactly its recipients, once each.
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
        let others = got.keys().filter(|phone| !wanted.contains(phone)).count();
        let repeated = got.values().filter(|times| **times > 1).count();
        if missing + others + repeated > 0 {
            let found = format!(
                "{missing} of them not notified, {others} others notified, {repeated} notified more than once"
            );
            findings.mismatch(name, format!("{} phones notified once", wanted.len()), found);
        }
    }
}

/// The sandbox's own counts, which do not distinguish notifications.
fn statistics(findings: &mut Findings, expected: &Expected, found: &Found, provider: ProviderId) {
    let of: &ProviderStatistics = match provider {
        ProviderId::Expo => &found.statistics.expo,
        ProviderId::Fcm => &found.statistics.fcm,
    };
    let tokens: BTreeSet<_> = expected.pushes.values().flatten().filter(|(of, _)| *of == provider).collect();
    findings.compare(format!("messages that {provider} took"), expected.sent(provider), of.taken);
    findings.compare(
        format!("tokens that {provider} took messages for"),
        tokens.len() as u64,
        of.distinct_tokens,
    );
    findings.compare(format!("duplicates that {provider} saw"), 0, of.duplicates);
    findings.compare(
        format!("messages to dead tokens at {provider}"),
        expected.dead(provider),
        of.answered(Answer::Dead),
    );
    let lead = found.lead.get(&provider).copied().unwrap_or_default();
    if lead > LEAD_MAX {
        findings.mismatch(
            format!("the rate at {provider}"),
            "kept",
            format!("messages came {} too early", format_duration(lead)),
        );
    }
}

/// `push-outcomes` has each outcome, perhaps repeatedly, but always with the same content.
fn outcomes(findings: &mut Findings, expected: &Expected, reports: &[Report]) {
    let mut published: BTreeMap<(String, Option<ProviderId>), Vec<ExpectedOutcome>> = BTreeMap::new();
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
        let of_key = published.entry(key).or_default();
        if !of_key.contains(&outcome) {
            of_key.push(outcome);
        }
    }
    for (key, wanted) in &expected.outcomes {
        let got = published.remove(key).unwrap_or_default();
        if got != [*wanted] {
            let found = if got.is_empty() { "none".to_owned() } else { format!("{got:?}") };
            findings.mismatch(outcome_of(key), format!("{wanted:?}"), found);
        }
    }
    for (key, got) in published {
        findings.mismatch(outcome_of(&key), "none", format!("{got:?}"));
    }
}

fn outcome_of((notification, provider): &(String, Option<ProviderId>)) -> String {
    let by = provider.map(|provider| format!(" through {provider}")).unwrap_or_default();
    format!("the outcome of {notification}{by}")
}

/// `invalid-tokens` has every dead token and no other.
fn invalid_tokens(findings: &mut Findings, expected: &Expected, collected: &Collected) {
    let published: BTreeSet<&str> = collected.invalid.iter().map(|dead| dead.token.as_str()).collect();
    let missing = expected.invalid.iter().filter(|token| !published.contains(token.as_str())).count();
    let others = published.iter().filter(|token| !expected.invalid.contains(**token)).count();
    if missing + others > 0 {
        let found = format!("{missing} of them missing, {others} others");
        findings.mismatch(
            "tokens in invalid-tokens",
            format!("the {} dead ones", expected.invalid.len()),
            found,
        );
    }
}

#[derive(Default)]
struct Findings(Vec<Mismatch>);

impl Findings {
    fn mismatch(&mut self, about: impl Into<String>, expected: impl ToString, found: impl ToString) {
        self.0.push(Mismatch {
            about: about.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    fn compare<T: PartialEq + ToString>(&mut self, about: impl Into<String>, expected: T, found: T) {
        if expected != found {
            self.mismatch(about, expected, found);
        }
    }
}

#[cfg(test)]
mod tests;
