//! Who takes part, and what upstream says of them: 20,000 phones made by rule, so that every run tells the
//! same story.
//!
//! A phone is a provider and a number; what is special about it follows from the number's last digits. Phones
//! with an even number are never special: whoever is to be rung at any moment of the demonstration has one.

use consumer::Message;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use pushcast::{domain::ProviderId, events::topics};
use serde_json::{Value, json};

/// Zones without summer time: no local minute is skipped or comes twice.
const ZONES: [&str; 8] = [
    "Asia/Bangkok",
    "Asia/Kathmandu",
    "Africa/Nairobi",
    "America/Bogota",
    "Pacific/Honolulu",
    "Asia/Kolkata",
    "Australia/Brisbane",
    "UTC",
];

/// Users whose doses are due at the full minute.
const PATIENTS: u32 = 60;

/// A token, made from a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Phone {
    /// Who delivers to it.
    pub provider: ProviderId,
    /// Which one.
    pub number: u32,
}

/// What a provider says of a phone. The sandbox finds it out by a word in the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It rings.
    Alive,
    /// The first message is answered with "not registered".
    Dead,
    /// The first message is taken, and its receipt says "not registered". Expo only.
    Ghost,
}

/// A record that the demonstration publishes.
#[derive(Clone, Debug, PartialEq)]
pub enum ScenarioStep {
    /// A token is alive; `owner` is nobody before login.
    Registered { phone: Phone, owner: Option<String>, previous: Option<Phone> },
    /// Its user has logged out.
    Unregistered { phone: Phone },
    /// A user is gone, with all tokens.
    UserDeleted { user: String },
    /// A post for everybody but its author, or for some users.
    Posted { post: String, author: String, users: Option<Vec<String>> },
    /// A regimen with a dose at `due`, unless its last day lies before.
    Regimen { id: String, user: String, zone: &'static str, due: Timestamp, last_day: Option<Date> },
    /// There is no such regimen any more.
    RegimenRemoved { id: String },
    /// A dose that upstream found due itself.
    Dose { regimen: String, user: String, at: Timestamp },
    /// A line that is no event.
    Unreadable,
}

// === Phones ===

impl Phone {
    /// How many phones there are at the beginning. With those that replace one there are 6,000 and 14,000
    /// tokens.
    pub fn count(provider: ProviderId) -> u32 {
        match provider {
            ProviderId::Expo => 5_985,
            ProviderId::Fcm => 13_965,
        }
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        ProviderId::ALL
            .into_iter()
            .flat_map(|provider| (0..Self::count(provider)).map(move |number| Self { provider, number }))
    }

    /// What its provider will say: 2 % are dead, and another 1 % of Expo's are ghosts.
    pub fn condition(self) -> Condition {
        match (self.provider, self.number % 100) {
            (ProviderId::Expo, 13 | 63) | (ProviderId::Fcm, 7 | 57) => Condition::Dead,
            (ProviderId::Expo, 29) => Condition::Ghost,
            _ => Condition::Alive,
        }
    }

    /// Its token.
    pub fn token(self) -> String {
        let Self { provider, number } = self;
        let word = match self.condition() {
            Condition::Alive => "fine",
            Condition::Dead => "dead",
            Condition::Ghost => "ghost",
        };
        match provider {
            ProviderId::Expo => format!("ExponentPushToken[demo-{number:05}-{word}]"),
            ProviderId::Fcm => format!("demo-{number:05}-{word}:APA91b{number:0130}"),
        }
    }

    /// Whose it is first; one in 500 belongs to nobody.
    fn owner(self) -> Option<String> {
        (self.number % 500 != 1).then(|| user(self.number))
    }

    /// The phone's device, which it shares with the token that replaces it.
    fn device(self) -> String {
        format!("device-{}-{}", self.provider, self.number % REPLACEMENT)
    }

    /// Whether somebody else logs in on it.
    fn moves(self) -> bool {
        self.number % 40 == 3
    }

    /// The token that its app gets anew.
    fn replacement(self) -> Option<Self> {
        (self.number % 400 == 11).then_some(Self { number: self.number + REPLACEMENT, ..self })
    }

    fn is_logged_out(self) -> bool {
        self.number % 500 == 21
    }
}

/// Beyond every number of [`Phone::all`].
const REPLACEMENT: u32 = 50_000;

/// The user who has the phones of that number.
pub fn user(number: u32) -> String {
    format!("user-{number}")
}

/// Who logs in on a phone that moves.
pub fn newcomer(number: u32) -> String {
    format!("newcomer-{number}")
}

// === What happens to them ===

/// Every phone is registered.
pub fn registrations() -> Vec<ScenarioStep> {
    Phone::all()
        .map(|phone| ScenarioStep::Registered { phone, owner: phone.owner(), previous: None })
        .collect()
}

/// What happens then: phones move, get new tokens, are registered twice, are logged out; users go; a line
/// makes no sense.
pub fn changes() -> Vec<ScenarioStep> {
    let mut steps = vec![ScenarioStep::Unreadable];
    for phone in Phone::all() {
        if phone.moves() {
            steps.push(ScenarioStep::Registered {
                phone,
                owner: Some(newcomer(phone.number)),
                previous: None,
            });
        }
        if let Some(new) = phone.replacement() {
            steps.push(ScenarioStep::Registered { phone: new, owner: phone.owner(), previous: Some(phone) });
        }
        if phone.number % 500 == 2 {
            steps.push(ScenarioStep::Registered { phone, owner: phone.owner(), previous: None });
        }
        if phone.is_logged_out() {
            steps.push(ScenarioStep::Unregistered { phone });
        }
    }
    steps.extend(
        (31..Phone::count(ProviderId::Fcm))
            .step_by(1_000)
            .map(|number| ScenarioStep::UserDeleted { user: user(number) }),
    );
    steps
}

/// What [`changes`] do, in words.
pub fn told(changes: &[ScenarioStep]) -> String {
    let count = |is: fn(&ScenarioStep) -> bool| changes.iter().filter(|step| is(step)).count();
    format!(
        "{} change hands, {} get a new token, {} are registered again, {} are logged out, {} users go, {} line is no JSON",
        count(
            |step| matches!(step, ScenarioStep::Registered { owner: Some(owner), .. } if owner.starts_with("newcomer"))
        ),
        count(|step| matches!(step, ScenarioStep::Registered { previous: Some(_), .. })),
        count(|step| matches!(step, ScenarioStep::Registered { phone, .. } if phone.number % 500 == 2)),
        count(|step| matches!(step, ScenarioStep::Unregistered { .. })),
        count(|step| matches!(step, ScenarioStep::UserDeleted { .. })),
        count(|step| *step == ScenarioStep::Unreadable),
    )
}

/// A post for everybody.
pub fn post_for_everybody(post: &str, author: u32) -> ScenarioStep {
    ScenarioStep::Posted { post: post.to_owned(), author: user(author), users: None }
}

/// A post for named users: some who have lost their phone to a newcomer, these newcomers, some who are gone,
/// somebody whom nobody knows, and the author, who is not told.
pub fn post_for_some(post: &str, author: u32) -> ScenarioStep {
    let moved =
        Phone::all().filter(|phone| phone.number < 600 && phone.provider == ProviderId::Fcm && phone.moves());
    let users = (0..600)
        .map(user)
        .chain(moved.map(|phone| newcomer(phone.number)))
        .chain(["nobody-knows".to_owned()]);
    ScenarioStep::Posted { post: post.to_owned(), author: user(author), users: Some(users.collect()) }
}

/// Regimens with a dose at `due`, each at that minute of its own zone. Most ring; one ended yesterday, one is
/// removed again, one is of a user who has lost the phone and one of the newcomer who has it now.
pub fn regimens(due: Timestamp) -> Vec<ScenarioStep> {
    let of = |id: String, user: String, zone: &'static str, last_day: Option<Date>| ScenarioStep::Regimen {
        id,
        user,
        zone,
        due,
        last_day,
    };
    let mut steps: Vec<ScenarioStep> = (0..PATIENTS)
        .zip(ZONES.iter().cycle())
        .map(|(n, zone)| of(format!("daily-{n}"), user(1_000 + 2 * n), zone, None))
        .collect();
    let yesterday = local_date(due, ZONES[0]).and_then(|today| today.yesterday().ok());
    steps.push(of("ended".to_owned(), user(2_000), ZONES[0], yesterday));
    steps.push(of("removed".to_owned(), user(2_002), ZONES[1], None));
    steps.push(ScenarioStep::RegimenRemoved { id: "removed".to_owned() });
    steps.push(of("phone-lost".to_owned(), user(43), ZONES[2], None));
    steps.push(of("phone-found".to_owned(), newcomer(43), ZONES[3], None));
    steps
}

/// One dose that upstream publishes twice.
pub fn dose_twice(at: Timestamp) -> Vec<ScenarioStep> {
    vec![ScenarioStep::Dose { regimen: "twice".to_owned(), user: user(3_000), at }; 2]
}

/// The `n`th reminder, for somebody whose phones are fine, one by Expo and one by FCM.
pub fn reminder(n: u32, at: Timestamp) -> ScenarioStep {
    ScenarioStep::Dose { regimen: format!("reminder-{n}"), user: user(4_000 + 2 * (n % 900)), at }
}

fn local_date(at: Timestamp, zone: &str) -> Option<Date> {
    TimeZone::get(zone).ok().map(|zone| at.to_zoned(zone).date())
}

// === As any producer would write it ===

impl ScenarioStep {
    /// The record.
    pub fn message(&self) -> Message {
        match self {
            Self::Registered { phone, owner, previous } => {
                let mut value = json!({
                    "event": "registered", "token": phone.token(), "deviceId": phone.device(),
                    "platform": if phone.number % 3 == 0 { "ios" } else { "android" },
                });
                if let Some(owner) = owner {
                    value["userId"] = owner.as_str().into();
                }
                if let Some(previous) = previous {
                    value["previousToken"] = previous.token().into();
                }
                record(topics::DEVICE_TOKENS, phone.token(), &value)
            }
            Self::Unregistered { phone } => record(
                topics::DEVICE_TOKENS,
                phone.token(),
                &json!({ "event": "unregistered", "token": phone.token() }),
            ),
            Self::UserDeleted { user } => record(
                topics::DEVICE_TOKENS,
                user.clone(),
                &json!({ "event": "userDeleted", "userId": user }),
            ),
            Self::Posted { post, author, users } => {
                let mut value =
                    json!({ "postId": post, "authorId": author, "authorName": "Ann", "title": "On walking" });
                if let Some(users) = users {
                    value["audience"] = json!({ "users": users });
                }
                record(topics::POSTS_CREATED, post.clone(), &value)
            }
            Self::Regimen { id, user, zone, due, last_day } => {
                let local = TimeZone::get(zone).map(|zone| due.to_zoned(zone).datetime());
                let (date, time) = local.map_or_else(
                    |_| (String::new(), String::new()),
                    |local| (local.date().to_string(), local.strftime("%H:%M").to_string()),
                );
                // One that has ended has begun before: a regimen without days would be refused.
                let start = if last_day.is_some() { "2020-01-01".to_owned() } else { date };
                let value = json!({
                    "regimenId": id, "profileId": profile(user), "userId": user, "medicineName": "Metformin", "dosage": "500 mg",
                    "timezone": zone, "times": [time], "startDate": start, "endDate": last_day.map(|day| day.to_string()), "enabled": true,
                });
                record(topics::MEDICATION_REGIMENS, id.clone(), &value)
            }
            Self::RegimenRemoved { id } => {
                Message { value: None, ..Message::new(topics::MEDICATION_REGIMENS, id.clone(), Vec::new()) }
            }
            Self::Dose { regimen, user, at } => {
                let dose = json!({
                    "regimenId": regimen, "profileId": profile(user), "userId": user, "scheduleTime": format!("{at:.0}"),
                    "medicineName": "Metformin", "dosage": "500 mg",
                });
                record(topics::MEDICATION_TICKS, None, &json!({ "dose": dose }))
            }
            Self::Unreadable => Message::new(topics::DEVICE_TOKENS, None, b"{\"token\":".to_vec()),
        }
    }
}

fn record(topic: &str, key: impl Into<Option<String>>, value: &Value) -> Message {
    Message::new(topic, key, value.to_string().into_bytes())
}

/// The profile of a user's own medication.
pub fn profile(user: &str) -> String {
    format!("of-{user}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pushcast::{
        domain::{RegimenEvent, Tick, Token, TokenChange},
        events::{device_tokens, medication_regimens, medication_ticks, posts_created},
    };

    use super::*;

    #[test]
    fn there_are_twenty_thousand_tokens_of_which_a_few_per_cent_are_dead() {
        let tokens: BTreeSet<_> = registrations()
            .into_iter()
            .chain(changes())
            .filter_map(|step| match step {
                ScenarioStep::Registered { phone, .. } => Some(phone),
                _ => None,
            })
            .collect();
        let of = |provider| tokens.iter().filter(|phone| phone.provider == provider).count();
        assert_eq!((of(ProviderId::Expo), of(ProviderId::Fcm)), (6_000, 14_000));
        let gone = tokens.iter().filter(|phone| phone.condition() != Condition::Alive).count();
        assert!((400..800).contains(&gone), "{gone}");
    }

    #[test]
    fn a_token_carries_the_word_of_its_condition_and_no_other() {
        for phone in Phone::all() {
            let text = phone.token();
            let token = Token::parse(&text).unwrap();
            assert_eq!(token.kind().provider(), phone.provider);
            let words = ["dead", "ghost", "foreign", "busy", "malformed", "uncredentialed"]
                .map(|word| text.contains(word));
            let (dead, ghost) = (phone.condition() == Condition::Dead, phone.condition() == Condition::Ghost);
            assert_eq!(words, [dead, ghost, false, false, false, false], "{text}");
        }
    }

    #[test]
    fn phones_with_an_even_number_stay_whose_they_are() {
        for step in changes() {
            match step {
                // Registered twice, by the same user.
                ScenarioStep::Registered { phone, owner, previous: None } if owner == phone.owner() => {}
                ScenarioStep::Registered { phone, .. } | ScenarioStep::Unregistered { phone } => {
                    assert_eq!(phone.number % 2, 1)
                }
                ScenarioStep::UserDeleted { user } => assert!(user.ends_with('1')),
                _ => {}
            }
        }
        assert!(
            Phone::all()
                .filter(|phone| phone.number % 2 == 0)
                .all(|phone| phone.condition() == Condition::Alive)
        );
    }

    #[test]
    fn every_record_is_what_its_topic_wants() {
        let due = "2026-11-20T01:00:00Z".parse().unwrap();
        for step in registrations()
            .into_iter()
            .take(50)
            .chain(changes())
            .filter(|step| *step != ScenarioStep::Unreadable)
        {
            let Message { key, value, .. } = step.message();
            let change = device_tokens::read(key.as_deref(), value.as_deref()).unwrap();
            assert_eq!(
                matches!(change, TokenChange::Registered { .. }),
                matches!(step, ScenarioStep::Registered { .. })
            );
        }
        for step in [post_for_everybody("p", 1), post_for_some("p", 1)] {
            posts_created::read(None, step.message().value.as_deref()).unwrap();
        }
        for step in regimens(due) {
            let Message { key, value, .. } = step.message();
            let event = medication_regimens::read(key.as_deref(), value.as_deref()).unwrap();
            if let (RegimenEvent::Set(_, regimen), ScenarioStep::Regimen { last_day, .. }) = (event, step) {
                assert_eq!(regimen.is_occurrence(due), last_day.is_none());
            }
        }
        let Ok(Tick::Dose(dose)) = medication_ticks::read(None, reminder(0, due).message().value.as_deref())
        else {
            panic!()
        };
        assert_eq!((dose.schedule_time, dose.user.as_str()), (due, "user-4000"));
        assert!(device_tokens::read(None, ScenarioStep::Unreadable.message().value.as_deref()).is_err());
    }
}
