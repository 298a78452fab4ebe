//! The result that follows from the records that were published: a fold over them in their order, by the
//! documented guarantees alone. Nothing that was observed goes into it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{Timestamp, tz::TimeZone};
use pushcast::{
    domain::{Counts, DoseOutcome, ProviderId},
    store::Census,
};

use super::scenario::{Condition, Phone, ScenarioStep, profile};

/// A notification by what its message contains: `post:walk` or `dose:daily-1`.
pub type Name = String;

/// What must be found at the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// The tokens that take each notification, once each.
    pub pushes: BTreeMap<Name, BTreeSet<(ProviderId, String)>>,
    /// Messages of each notification that a provider answers with "not registered".
    pub dead: BTreeMap<(Name, ProviderId), u64>,
    /// The tokens in `invalid-tokens`.
    pub invalid: BTreeSet<String>,
    /// The records of `push-outcomes`, by notification, and for doses by provider.
    pub outcomes: BTreeMap<(String, Option<ProviderId>), ExpectedOutcome>,
    /// Records in `dead-letters`.
    pub dead_letters: u64,
    /// The tokens in the store.
    pub census: Vec<Census>,
}

/// The outcome of a notification without its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedOutcome {
    /// None for a broadcast.
    pub of_dose: Option<DoseOutcome>,
    /// Its messages by outcome.
    pub counts: Counts,
}

/// The phones after the records so far.
#[derive(Default)]
struct Phones(BTreeMap<Phone, PhoneState>);

struct PhoneState {
    owner: Option<String>,
    is_active: bool,
}

/// A dose of a regimen before its due minute.
struct PendingDose<'a> {
    user: &'a str,
    due: Timestamp,
    is_sent: bool,
}

impl Expected {
    /// The result that follows from these records.
    pub fn of(steps: &[ScenarioStep]) -> Self {
        let mut expected = Self::default();
        let mut phones = Phones::default();
        let mut pending: BTreeMap<&str, PendingDose> = BTreeMap::new();
        for step in steps {
            match step {
                ScenarioStep::Registered { phone, owner, previous } => {
                    phones.register(*phone, owner.clone(), *previous)
                }
                ScenarioStep::Unregistered { phone } => phones.deactivate(*phone),
                ScenarioStep::UserDeleted { user } => phones.deactivate_all_of(user),
                ScenarioStep::Posted { post, author, users } => {
                    expected.broadcast(&mut phones, post, author, users.as_deref())
                }
                ScenarioStep::Dose { regimen, user, at } => expected.dose(&phones, regimen, user, *at),
                ScenarioStep::Regimen { id, user, zone, due, last_day } => {
                    let is_over = last_day.is_some_and(|last| {
                        TimeZone::get(zone).is_ok_and(|zone| due.to_zoned(zone).date() > last)
                    });
                    pending.insert(id, PendingDose { user, due: *due, is_sent: !is_over });
                }
                ScenarioStep::RegimenRemoved { id } => drop(pending.remove(id.as_str())),
                ScenarioStep::Unreadable => expected.dead_letters += 1,
            }
        }
        for (id, dose) in pending.into_iter().filter(|(_, dose)| dose.is_sent) {
            expected.dose(&phones, id, dose.user, dose.due);
        }
        expected.census = phones.census();
        expected
    }

    /// Messages that a provider takes.
    pub fn sent(&self, provider: ProviderId) -> u64 {
        self.pushes.values().flatten().filter(|(of, _)| *of == provider).count() as u64
    }

    /// Messages that a provider answers with "not registered".
    pub fn dead(&self, provider: ProviderId) -> u64 {
        self.dead.iter().filter(|((_, of), _)| *of == provider).map(|(_, count)| count).sum()
    }

    /// Messages of one notification through one provider, taken or not.
    pub fn messages_of(&self, name: &str, provider: ProviderId) -> u64 {
        let taken =
            self.pushes.get(name).into_iter().flatten().filter(|(of, _)| *of == provider).count() as u64;
        taken + self.dead.get(&(name.to_owned(), provider)).copied().unwrap_or_default()
    }

    /// A post is sent to every user but its author, or to the users that it lists. The same post twice is one
    /// broadcast.
    fn broadcast(&mut self, phones: &mut Phones, post: &str, author: &str, users: Option<&[String]>) {
        let name = format!("post:{post}");
        if self.pushes.contains_key(&name) {
            return;
        }
        let named: Option<BTreeSet<&str>> = users.map(|users| users.iter().map(String::as_str).collect());
        let mut counts = Counts::default();
        let mut taken = BTreeSet::new();
        for (phone, state) in phones.0.iter_mut().filter(|(_, state)| state.is_active) {
            let owner = state.owner.as_deref();
            let is_addressed =
                named.as_ref().is_none_or(|named| owner.is_some_and(|owner| named.contains(owner)));
            if !is_addressed || owner == Some(author) {
                continue;
            }
            let condition = phone.condition();
            if condition != Condition::Alive {
                state.is_active = false;
                self.invalid.insert(phone.token());
            }
            if condition == Condition::Dead {
                *self.dead.entry((name.clone(), phone.provider)).or_default() += 1;
                counts.dead += 1;
            } else {
                taken.insert((phone.provider, phone.token()));
                counts.sent += 1;
            }
        }
        self.outcomes.insert((name.clone(), None), ExpectedOutcome { of_dose: None, counts });
        self.pushes.insert(name, taken);
    }

    /// A dose sends one reminder to every phone of its user, however often it is published. In the scenario
    /// no such phone is dead.
    fn dose(&mut self, phones: &Phones, regimen: &str, user: &str, at: Timestamp) {
        let recipients: BTreeSet<_> = phones.of(user).map(|phone| (phone.provider, phone.token())).collect();
        let id = format!("dose:{}:{regimen}:{at:.0}", profile(user));
        let mut by_provider = BTreeMap::<_, u64>::new();
        for (provider, _) in &recipients {
            *by_provider.entry(*provider).or_default() += 1;
        }
        for (provider, sent) in &by_provider {
            let counts = Counts { sent: *sent, ..Counts::default() };
            self.outcomes.insert(
                (id.clone(), Some(*provider)),
                ExpectedOutcome { of_dose: Some(DoseOutcome::Sent), counts },
            );
        }
        if recipients.is_empty() {
            self.outcomes.insert(
                (id, None),
                ExpectedOutcome { of_dose: Some(DoseOutcome::NoTokens), counts: Counts::default() },
            );
        }
        self.pushes.insert(format!("dose:{regimen}"), recipients);
    }
}

impl Phones {
    fn register(&mut self, phone: Phone, owner: Option<String>, previous: Option<Phone>) {
        if let Some(previous) = previous {
            self.deactivate(previous);
        }
        self.0.insert(phone, PhoneState { owner, is_active: true });
    }

    fn deactivate(&mut self, phone: Phone) {
        if let Some(state) = self.0.get_mut(&phone) {
            state.is_active = false;
        }
    }

    fn deactivate_all_of(&mut self, user: &str) {
        for state in self.0.values_mut().filter(|state| state.owner.as_deref() == Some(user)) {
            state.is_active = false;
        }
    }

    fn of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a Phone> {
        self.0
            .iter()
            .filter(move |(_, state)| state.is_active && state.owner.as_deref() == Some(user))
            .map(|(phone, _)| phone)
    }

    fn census(&self) -> Vec<Census> {
        let of = |provider| {
            let (active, all) = self
                .0
                .iter()
                .filter(|(phone, _)| phone.provider == provider)
                .fold((0, 0), |(active, all), (_, state)| (active + u64::from(state.is_active), all + 1));
            Census { provider, active, inactive: all - active }
        };
        ProviderId::ALL.map(of).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::scenario;

    const EXPO: ProviderId = ProviderId::Expo;

    fn phone(number: u32) -> Phone {
        Phone { provider: EXPO, number }
    }

    fn registered(number: u32, owner: &str) -> ScenarioStep {
        ScenarioStep::Registered { phone: phone(number), owner: Some(owner.to_owned()), previous: None }
    }

    fn recipients(expected: &Expected, name: &str) -> Vec<String> {
        expected.pushes[name].iter().map(|(_, token)| token.clone()).collect()
    }

    #[test]
    fn a_post_is_sent_to_all_but_its_author_and_the_next_one_to_no_dead_token() {
        let steps = [
            registered(0, "ann"),
            registered(2, "bob"),
            registered(13, "cat"),
            registered(29, "dan"),
            scenario::post_for_all("a", 9),
            scenario::post_for_all("a", 9),
            ScenarioStep::Posted { post: "b".to_owned(), author: "bob".to_owned(), users: None },
        ];
        let expected = Expected::of(&steps);
        assert_eq!(recipients(&expected, "post:a"), [phone(0), phone(2), phone(29)].map(Phone::token));
        assert_eq!(recipients(&expected, "post:b"), [phone(0).token()]);
        assert_eq!(expected.dead, BTreeMap::from([(("post:a".to_owned(), EXPO), 1)]));
        assert_eq!((expected.messages_of("post:a", EXPO), expected.messages_of("post:b", EXPO)), (4, 1));
        assert_eq!(expected.invalid, BTreeSet::from([phone(13), phone(29)].map(Phone::token)));
        assert_eq!(
            expected.outcomes[&("post:a".to_owned(), None)].counts,
            Counts { sent: 3, dead: 1, ..Counts::default() }
        );
        assert_eq!(expected.census[0], Census { provider: EXPO, active: 2, inactive: 2 });
    }

    #[test]
    fn a_phone_that_has_moved_is_notified_for_its_new_owner_only() {
        let to = |user: &str| vec![user.to_owned()];
        let post = |post: &str, users| ScenarioStep::Posted {
            post: post.to_owned(),
            author: "x".to_owned(),
            users: Some(users),
        };
        let expected = Expected::of(&[
            registered(0, "ann"),
            registered(0, "bob"),
            post("a", to("ann")),
            post("b", to("bob")),
        ]);
        assert_eq!(recipients(&expected, "post:a"), [""; 0]);
        assert_eq!(recipients(&expected, "post:b"), [phone(0).token()]);
    }

    #[test]
    fn a_token_that_is_deleted_unregistered_or_replaced_is_not_notified() {
        let steps = [
            registered(0, "ann"),
            registered(2, "bob"),
            registered(4, "cat"),
            ScenarioStep::UserDeleted { user: "ann".to_owned() },
            ScenarioStep::Unregistered { phone: phone(2) },
            ScenarioStep::Registered { phone: phone(6), owner: None, previous: Some(phone(4)) },
            scenario::post_for_all("a", 9),
        ];
        assert_eq!(recipients(&Expected::of(&steps), "post:a"), [phone(6).token()]);
    }

    #[test]
    fn a_dose_is_sent_once_and_not_after_the_end_or_the_removal_of_its_regimen() {
        let at: Timestamp = "2026-11-20T01:00:00Z".parse().unwrap();
        let mut steps = vec![
            registered(3_000, "user-3000"),
            registered(2_000, "user-2000"),
            registered(2_002, "user-2002"),
        ];
        steps.extend(scenario::dose_twice(at));
        steps.extend(scenario::regimens(at));
        let expected = Expected::of(&steps);
        assert_eq!(recipients(&expected, "dose:twice"), [phone(3_000).token()]);
        assert!(!expected.pushes.contains_key("dose:ended") && !expected.pushes.contains_key("dose:removed"));
        let twice = ("dose:of-user-3000:twice:2026-11-20T01:00:00Z".to_owned(), Some(EXPO));
        assert_eq!(expected.outcomes[&twice].of_dose, Some(DoseOutcome::Sent));
        let without_phone = ("dose:of-user-1000:daily-0:2026-11-20T01:00:00Z".to_owned(), None);
        assert_eq!(expected.outcomes[&without_phone].of_dose, Some(DoseOutcome::NoTokens));
    }
}
