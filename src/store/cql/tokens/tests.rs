//! The protocol under handlers that race, end half-way and start again, over three replicas of each cell.
//!
//! A write reaches two replicas before it is acknowledged and the third one later; a read asks two. What runs
//! next is chosen at random: a step of some handler, a late write, or the end of a handler (its record is
//! handled again from the start). In the end the rows must be those that the events make of them in the order
//! of their versions, and be found by their hints. The same schedules must go wrong when a step is left out
//! or swapped, or else they prove nothing.

mod world;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use rand::prelude::*;

use self::world::{Broken, Cell, FAR, Handler, Replica, Role, World, hint_cell, state, ver};
use super::protocol::{self, Hint, HintOwner, TokenCell};
use crate::{
    domain::{Judged, Version},
    store::StoreResult,
};

#[derive(Clone, Debug)]
enum Event {
    Registered {
        token: String,
        user: Option<String>,
        device: Option<String>,
        previous: Option<String>,
        ver: i64,
    },
    Unregistered {
        token: String,
        ver: i64,
    },
    UserDeleted {
        user: String,
        ver: i64,
    },
}

#[derive(Clone, Debug)]
enum Task {
    Event(Event),
    Read(String),
    /// Sends to a token of the user; the verdict comes much later.
    Send(String),
}

type Step = Pin<Box<dyn Future<Output = StoreResult<()>>>>;

/// Tasks that run one after the other.
struct Queue {
    tasks: VecDeque<Task>,
    /// How often the handler may still end half-way.
    crashes: u32,
    running: Option<Step>,
}

struct Schedule {
    world: Arc<Mutex<World>>,
    broken: Broken,
    kinds: BTreeMap<String, &'static str>,
    events: Vec<Event>,
    sent: Arc<Mutex<BTreeSet<(String, i64)>>>,
    clock: i64,
}

// === What must hold ===

#[test]
fn any_schedule_ends_in_the_state_of_its_events() {
    for seed in 0..12_000 {
        if let Err(wrong) = Schedule::run(seed, Broken::Nothing) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

macro_rules! goes_wrong {
    ($($name:ident: $broken:ident;)+) => {$(
        #[test]
        fn $name() {
            let run = |seed| Schedule::run(seed, Broken::$broken).err().map(|wrong| (seed, wrong));
            let wrong = (0..20_000).find_map(run);
            println!("{wrong:?}");
            assert!(wrong.is_some(), "the schedules do not detect it");
        }
    )+};
}

goes_wrong! {
    without_the_marker_of_a_deleted_user_it_goes_wrong: NoMarker;
    with_the_marker_read_before_the_row_is_written_it_goes_wrong: MarkerReadFirst;
    with_hints_read_before_the_marker_is_written_it_goes_wrong: HintsReadBeforeMarker;
    with_the_device_read_before_the_row_is_written_it_goes_wrong: DeviceReadFirst;
    with_the_row_before_its_hints_it_goes_wrong: RowBeforeHints;
    with_hints_deleted_at_the_version_of_the_event_it_goes_wrong: HintsDeletedAtTheEvent;
    with_a_replacement_at_the_version_of_the_event_it_goes_wrong: ReplacedAtTheEvent;
    with_a_deletion_at_the_version_of_the_event_it_goes_wrong: DeletedAtTheEvent;
    with_kinds_ignored_it_goes_wrong: KindIgnored;
    with_readers_that_delete_what_no_row_disproves_it_goes_wrong: ReaderDeletesUnproven;
    with_revocations_by_the_clock_it_goes_wrong: RevokedByClock;
    with_revocations_that_leave_the_user_it_goes_wrong: RevokedKeepsUser;
    with_a_deletion_of_what_is_newer_too_it_goes_wrong: DeletesNewerToo;
    with_the_previous_token_ended_next_to_its_own_version_it_goes_wrong: PreviousAtItsRow;
    with_a_token_that_takes_its_own_place_it_goes_wrong: PreviousIsItself;
    with_the_winner_chosen_by_version_only_it_goes_wrong: WinnerByVersionOnly;
}

// === impl Schedule ===

impl Schedule {
    /// Runs the schedule of this seed to its end. Fails with what is wrong then, or after a handler's crash.
    fn run(seed: u64, broken: Broken) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(seed);
        let (kinds, events) = scenario(&mut random);
        let world = World {
            replicas: Default::default(),
            late: Vec::new(),
            random: StdRng::seed_from_u64(seed ^ 0x5eed),
        };
        let clock = events.iter().map(Event::ver).max().unwrap_or(0) + 101;
        let schedule =
            Self { world: Arc::new(Mutex::new(world)), broken, kinds, events, sent: Arc::default(), clock };
        let mut queues = schedule.queues(&mut random);
        while !queues.is_empty() {
            let late = schedule.world.lock().unwrap().late.len();
            let which = random.random_range(0..queues.len());
            if late > 0 && random.random_bool(0.1) {
                let mut world = schedule.world.lock().unwrap();
                let (replica, cell, kept) = world.late.swap_remove(random.random_range(0..late));
                world.write(replica, &cell, &kept);
                continue;
            }
            let queue = &mut queues[which];
            if queue.crashes > 0 && queue.running.is_some() && random.random_bool(0.02) {
                queue.crashes -= 1;
                queue.running = None;
                schedule.check_after_a_crash()?;
                continue;
            }
            let Some(task) = queue.tasks.front() else {
                queues.swap_remove(which);
                continue;
            };
            let step = queue.running.get_or_insert_with(|| schedule.handle(task.clone()));
            if let Poll::Ready(done) = step.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                done.unwrap();
                queue.running = None;
                queue.tasks.pop_front();
            }
        }
        schedule.check()
    }

    /// Records of one key follow each other, or all are distributed at random; some are handled once more, as
    /// by a process that was fenced.
    fn queues(&self, random: &mut StdRng) -> Vec<Queue> {
        let mut keyed: BTreeMap<String, VecDeque<Task>> = BTreeMap::new();
        let mut order = self.events.clone();
        let by_key = random.random_bool(0.5);
        if !by_key {
            order.shuffle(random);
        }
        for event in order {
            let key = if by_key { event.key().to_owned() } else { random.random_range(0..4).to_string() };
            keyed.entry(key).or_default().push_back(Task::Event(event));
        }
        let queue = |tasks, crashes| Queue { tasks, crashes, running: None };
        let mut queues: Vec<Queue> =
            keyed.into_values().map(|tasks| queue(tasks, *[0, 0, 1, 2].choose(random).unwrap())).collect();
        for event in &self.events {
            if random.random_bool(0.15) {
                queues.push(queue(VecDeque::from([Task::Event(event.clone())]), 0));
            }
        }
        for _ in 0..random.random_range(0..3) {
            queues.push(queue(VecDeque::from([Task::Read(user(random))]), 0));
            queues.push(queue(VecDeque::from([Task::Send(user(random))]), *[0, 1].choose(random).unwrap()));
        }
        queues
    }

    fn handler(&self, role: Role, ver: i64, kind: &str) -> Handler {
        Handler {
            world: Arc::clone(&self.world),
            broken: self.broken,
            role,
            ver,
            kind: kind.to_owned(),
            early: Mutex::default(),
        }
    }

    fn handle(&self, task: Task) -> Step {
        let kinds = self.kinds.clone();
        match task {
            Task::Event(Event::Registered { token, user, device, previous, ver }) => {
                let kind = kinds[&token];
                let cells = self.handler(Role::Registering, ver, kind);
                Box::pin(async move {
                    if let (Broken::MarkerReadFirst, Some(user)) = (cells.broken, &user) {
                        let marker = cells.marker_now(user).await;
                        cells.early.lock().unwrap().marker = Some(marker);
                    }
                    if let (Broken::DeviceReadFirst, Some(device)) = (cells.broken, &device) {
                        let mut hints = cells.hints_now(HintOwner::Device(device)).await;
                        hints.push(Hint { token: token.clone(), ver });
                        cells.early.lock().unwrap().device = Some(hints);
                    }
                    let state = TokenCell {
                        active: true,
                        user_id: user,
                        device_id: device,
                        reason: None,
                        ..TokenCell::inactive(ver, kind, "")
                    };
                    let previous = previous
                        .as_deref()
                        .filter(|previous| *previous != token || cells.broken == Broken::PreviousIsItself);
                    let previous = previous.map(|previous| (previous, kinds[previous]));
                    protocol::registered(&cells, &token, state, previous).await.map(drop)
                })
            }
            Task::Event(Event::Unregistered { token, ver }) => {
                let cells = self.handler(Role::Registering, ver, kinds[&token]);
                Box::pin(async move { protocol::unregistered(&cells, &token, kinds[&token], ver).await })
            }
            Task::Event(Event::UserDeleted { user, ver }) => {
                let cells = self.handler(Role::Deleting, ver, "");
                Box::pin(async move {
                    let before = if cells.broken == Broken::DeletesNewerToo { FAR } else { ver };
                    protocol::user_deleted(&cells, &user, before).await?;
                    let later = std::mem::take(&mut cells.early.lock().unwrap().writes);
                    for (cell, kept) in later {
                        cells.write(cell, kept).await;
                    }
                    Ok(())
                })
            }
            Task::Read(user) => {
                let cells = self.handler(Role::Reading, 0, "");
                Box::pin(async move { protocol::tokens_of(&cells, &user).await.map(drop) })
            }
            Task::Send(user) => {
                let cells = self.handler(Role::Revoking, self.clock, "");
                let sent = Arc::clone(&self.sent);
                Box::pin(async move {
                    let Some((token, state)) = protocol::tokens_of(&cells, &user).await?.pop() else {
                        return Ok(());
                    };
                    sent.lock().unwrap().insert((token.clone(), state.ver));
                    for _ in 0..12 {
                        cells.turn().await;
                    }
                    protocol::revoke(
                        &cells,
                        &token,
                        Judged::Registration(Version::from_i64(state.ver)),
                        "dead",
                    )
                    .await
                    .map(drop)
                })
            }
        }
    }

    /// Before a crashed handler starts again: a registration that a majority has is found by its user.
    fn check_after_a_crash(&self) -> Result<(), String> {
        let world = self.world.lock().unwrap();
        for token in self.kinds.keys() {
            let latest =
                self.events.iter().filter(|event| event.concerns(token)).max_by_key(|event| event.ver());
            let Some(Event::Registered { token: registered, user: Some(user), ver: at, .. }) = latest else {
                continue;
            };
            let rows = world.replicas.iter().filter_map(|replica| replica.get(&Cell::Row(token.clone())));
            let versions: Vec<i64> = rows.map(|kept| kept.at).collect();
            let hint = Cell::OfUser(user.clone(), token.clone());
            let has_hint = |replica: &&Replica| replica.get(&hint).is_some_and(|kept| kept.at >= *at);
            let hints = world.replicas.iter().filter(has_hint).count();
            let is_current = versions.iter().filter(|version| *version == at).count() >= 2
                && versions.iter().all(|version| version <= at);
            if registered == token && is_current && hints < 2 {
                return Err(format!("{token} is not found by {user} after a handler's crash"));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let all = self.world.lock().unwrap().settle();
        let row = |token: &str| state(all.get(&Cell::Row(token.to_owned())));
        for token in self.kinds.keys() {
            let found = row(token);
            let expected = self.expected(token);
            let owner = |state: &TokenCell| (state.user_id.clone(), state.device_id.clone());
            let same = match (&expected, found) {
                (None, None) => true,
                (Some((ver, None)), Some(found)) => found.ver == *ver && !found.active,
                (Some((ver, Some(named))), Some(found)) => {
                    let is_active = found.ver == *ver && found.active && owner(found) == *named;
                    is_active
                        || (found.ver == ver + 1
                            && !found.active
                            && self.may_be_deactivated(token, *ver, named.1.as_deref()))
                }
                _ => false,
            };
            if !same {
                return Err(format!("{token} is {found:?}, expected {expected:?} of {:?}", self.events));
            }
            let Some(found) = found else { continue };
            if !found.active && owner(found) != (None, None) {
                return Err(format!("{token} is inactive and yet has an owner: {found:?}"));
            }
            let has_hint = |owner| ver(all.get(&hint_cell(owner, token))).is_some();
            let user = found.user_id.as_deref().map(HintOwner::User);
            if found.active && user.is_some_and(|user| !has_hint(user)) {
                return Err(format!("{token} is not found by its user"));
            }
            let device = found.device_id.as_deref().map(HintOwner::Device);
            if found.active && device.is_some_and(|device| !has_hint(device)) {
                return Err(format!("{token} is not found by its device"));
            }
            let rival = |other: &&String| {
                *other != token
                    && row(other).is_some_and(|row| {
                        row.active && (&row.device_id, &row.kind) == (&found.device_id, &found.kind)
                    })
            };
            if found.active && found.device_id.is_some() && self.kinds.keys().any(|other| rival(&other)) {
                return Err(format!("{token} is not the only one on its device"));
            }
        }
        Ok(())
    }

    /// The state that the events make of a token in the order of their versions: the last one's version, and
    /// the owner.
    #[expect(clippy::type_complexity, reason = "version, and user and device while it is active")]
    fn expected(&self, token: &str) -> Option<(i64, Option<(Option<String>, Option<String>)>)> {
        let mut expected = None;
        for event in &self.events {
            match event {
                Event::Registered { token: of, user, device, ver, .. } if of == token => {
                    expected = Some((*ver, Some((user.clone(), device.clone()))));
                }
                Event::UserDeleted { user, .. } => {
                    if let Some((ver, Some((Some(owner), _)))) = &expected
                        && owner == user
                    {
                        expected = Some((ver + 1, None));
                    }
                }
                other if other.concerns(token) => expected = Some((other.ver(), None)),
                _ => {}
            }
        }
        expected
    }

    /// By a verdict on this very registration, or by a later one of a token of its kind on its device.
    fn may_be_deactivated(&self, token: &str, than: i64, on: Option<&str>) -> bool {
        let sent = self.sent.lock().unwrap().contains(&(token.to_owned(), than));
        let replaced = self.events.iter().any(|event| match event {
            Event::Registered { token: other, device, ver, .. } => {
                other != token
                    && on.is_some()
                    && device.as_deref() == on
                    && self.kinds[other] == self.kinds[token]
                    && (*ver, other.as_str()) > (than, token)
            }
            _ => false,
        });
        sent || replaced
    }
}

// === impl Event ===

impl Event {
    fn ver(&self) -> i64 {
        match self {
            Self::Registered { ver, .. } | Self::Unregistered { ver, .. } | Self::UserDeleted { ver, .. } => {
                *ver
            }
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Registered { token, .. } | Self::Unregistered { token, .. } => token,
            Self::UserDeleted { user, .. } => user,
        }
    }

    /// Whether it names this token.
    fn concerns(&self, of: &str) -> bool {
        match self {
            Self::Registered { token, previous, .. } => token == of || previous.as_deref() == Some(of),
            Self::Unregistered { token, .. } => token == of,
            Self::UserDeleted { .. } => false,
        }
    }
}

fn user(random: &mut StdRng) -> String {
    (*["A", "B"].choose(random).unwrap()).to_owned()
}

/// Events about few tokens, users and devices, so that they collide; their versions adjacent or far apart.
fn scenario(random: &mut StdRng) -> (BTreeMap<String, &'static str>, Vec<Event>) {
    let tokens: Vec<String> = (1..=random.random_range(1..=3)).map(|n| format!("t{n}")).collect();
    let kinds =
        tokens.iter().map(|token| (token.clone(), if random.random_bool(0.2) { "f" } else { "e" })).collect();
    let devices = [Some("D1"), Some("D2"), None];
    let dense = random.random_bool(0.3);
    let step = *[2, 100].choose(random).unwrap();
    let number = if dense { random.random_range(4..=7) } else { random.random_range(2..=6) };
    let events = (1..=number).map(|n| {
        let token = tokens.choose(random).unwrap().clone();
        let ver = 1_000 + n * step;
        match random.random_range(0..100) {
            0..65 => Event::Registered {
                token,
                user: random.random_bool(if dense { 1.0 } else { 0.7 }).then(|| user(random)),
                device: if dense { devices[0] } else { *devices.choose(random).unwrap() }.map(str::to_owned),
                previous: random.random_bool(0.2).then(|| tokens.choose(random).unwrap().clone()),
                ver,
            },
            65..80 => Event::Unregistered { token, ver },
            _ => Event::UserDeleted { user: user(random), ver },
        }
    });
    let mut events: Vec<Event> = events.collect();
    if random.random_bool(0.2) {
        make_some_versions_equal(&mut events);
    }
    (kinds, events)
}

/// Sets adjacent events to the same version where the order of the two changes nothing: registrations of two
/// tokens, neither of which replaces another one.
fn make_some_versions_equal(events: &mut [Event]) {
    for pair in events.chunks_exact_mut(2) {
        if let [
            Event::Registered { token, previous: None, ver, .. },
            Event::Registered { token: other, previous: None, ver: later, .. },
        ] = pair
            && token != other
        {
            *later = *ver;
        }
    }
}
