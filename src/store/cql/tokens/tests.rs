//! The protocol under handlers that race, die and come back, over three copies of each cell.
//!
//! A write reaches two copies before it is acknowledged and the third one later; a read asks two. What runs next is a
//! matter of dice: a step of some handler, a late copy, a death (its record is handled again from the start). In the end
//! the rows must be those that the events make of them in the order of their versions, and be found by their hints. The
//! same schedules must go wrong when a step is left out or swapped, or else they prove nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use rand::prelude::*;

use super::protocol::{self, Cells, Hint, Of, State};
use crate::domain::{Judged, Unavailable, Version};

/// What is wrong with the protocol. Each is the right protocol over cells that do something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    NoMark,
    MarkReadFirst,
    WalkBeforeMark,
    DeviceReadFirst,
    RowBeforeHints,
    HintsDeletedAtTheEvent,
    ReplacedAtTheEvent,
    DeletedAtTheEvent,
    KindIgnored,
    ReaderDeletesUnproven,
    RevokedByClock,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Row(String),
    OfUser(String, String),
    OfDevice(String, String),
    Deleted(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    State(State),
    Ver(i64),
}

/// In the order in which one stands against another: later, deleted, expiring, greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    at: i64,
    deleted: bool,
    expires: bool,
    value: Option<Value>,
}

type Copies = BTreeMap<Cell, Kept>;

struct World {
    copies: [Copies; 3],
    late: Vec<(usize, Cell, Kept)>,
    random: StdRng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Registering,
    Deleting,
    Reading,
    Revoking,
}

/// The cells as one handler sees them.
struct Handler {
    world: Arc<Mutex<World>>,
    broken: Broken,
    role: Role,
    /// The event's version; of a revocation the clock.
    ver: i64,
    kind: String,
    early: Mutex<Early>,
}

/// What a broken handler has read too early, or not yet written.
#[derive(Default)]
struct Early {
    mark: Option<Option<i64>>,
    device: Option<Vec<Hint>>,
    writes: Vec<(Cell, Kept)>,
}

#[derive(Clone, Debug)]
enum Event {
    Registered { token: String, user: Option<String>, device: Option<String>, previous: Option<String>, ver: i64 },
    Unregistered { token: String, ver: i64 },
    UserDeleted { user: String, ver: i64 },
}

#[derive(Clone, Debug)]
enum Task {
    Event(Event),
    Read(String),
    /// Sends to a token of the user; the verdict comes much later.
    Send(String),
}

type Step = Pin<Box<dyn Future<Output = Result<(), Unavailable>>>>;

struct Lane {
    tasks: VecDeque<Task>,
    deaths: u32,
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
            let wrong = (0..20_000).find_map(|seed| Schedule::run(seed, Broken::$broken).err().map(|wrong| (seed, wrong)));
            println!("{wrong:?}");
            assert!(wrong.is_some(), "the schedules do not notice it");
        }
    )+};
}

goes_wrong! {
    without_the_mark_of_a_deleted_user_it_goes_wrong: NoMark;
    with_the_mark_read_before_the_row_is_written_it_goes_wrong: MarkReadFirst;
    with_the_walk_before_the_mark_it_goes_wrong: WalkBeforeMark;
    with_the_device_read_before_the_row_is_written_it_goes_wrong: DeviceReadFirst;
    with_the_row_before_its_hints_it_goes_wrong: RowBeforeHints;
    with_hints_deleted_at_the_version_of_the_event_it_goes_wrong: HintsDeletedAtTheEvent;
    with_a_replacement_at_the_version_of_the_event_it_goes_wrong: ReplacedAtTheEvent;
    with_a_deletion_at_the_version_of_the_event_it_goes_wrong: DeletedAtTheEvent;
    with_kinds_ignored_it_goes_wrong: KindIgnored;
    with_readers_that_delete_what_no_row_disproves_it_goes_wrong: ReaderDeletesUnproven;
    with_revocations_by_the_clock_it_goes_wrong: RevokedByClock;
}

// === impl World ===

impl World {
    fn write(&mut self, copy: usize, cell: &Cell, kept: &Kept) {
        let stands = self.copies[copy].entry(cell.clone()).or_insert_with(|| kept.clone());
        if kept > stands {
            *stands = kept.clone();
        }
    }

    fn order(&mut self) -> [usize; 3] {
        let mut order = [0, 1, 2];
        order.shuffle(&mut self.random);
        order
    }

    /// All copies as one, late writes too.
    fn settle(&mut self) -> Copies {
        for (copy, cell, kept) in std::mem::take(&mut self.late) {
            self.write(copy, &cell, &kept);
        }
        let mut all = Copies::new();
        for copy in &self.copies {
            merge(&mut all, copy.clone());
        }
        all
    }
}

fn merge(into: &mut Copies, from: impl IntoIterator<Item = (Cell, Kept)>) {
    for (cell, kept) in from {
        match into.get(&cell) {
            Some(stands) if *stands >= kept => {}
            _ => drop(into.insert(cell, kept)),
        }
    }
}

fn state(kept: Option<&Kept>) -> Option<&State> {
    match kept?.value.as_ref()? {
        Value::State(state) => Some(state),
        Value::Ver(_) => None,
    }
}

fn ver(kept: Option<&Kept>) -> Option<i64> {
    match kept?.value.as_ref()? {
        Value::Ver(ver) => Some(*ver),
        Value::State(_) => None,
    }
}

fn live(value: Value, at: i64) -> Kept {
    let expires = matches!(&value, Value::State(state) if !state.active);
    Kept { at, deleted: false, expires, value: Some(value) }
}

fn deleted(at: i64) -> Kept {
    Kept { at, deleted: true, expires: false, value: None }
}

// === impl Handler ===

impl Handler {
    /// Lets others run.
    async fn turn(&self) {
        let mut turns = self.world.lock().unwrap().random.random_range(1..=2);
        std::future::poll_fn(|_| {
            turns -= 1;
            if turns < 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    async fn write(&self, cell: Cell, kept: Kept) {
        self.turn().await;
        let second = {
            let mut world = self.world.lock().unwrap();
            let [first, second, third] = world.order();
            world.write(first, &cell, &kept);
            // On their way, whatever becomes of the handler.
            world.late.push((second, cell.clone(), kept.clone()));
            world.late.push((third, cell.clone(), kept.clone()));
            second
        };
        self.turn().await;
        self.world.lock().unwrap().write(second, &cell, &kept);
    }

    async fn read(&self, wanted: impl Fn(&Cell) -> bool) -> Copies {
        let mut found = Copies::new();
        let [first, second, _] = self.world.lock().unwrap().order();
        for copy in [first, second] {
            self.turn().await;
            let world = self.world.lock().unwrap();
            merge(&mut found, world.copies[copy].iter().filter(|(cell, _)| wanted(cell)).map(|(cell, kept)| (cell.clone(), kept.clone())));
        }
        found
    }

    async fn hints_now(&self, of: Of<'_>) -> Vec<Hint> {
        let token = |cell: &Cell| match (cell, of) {
            (Cell::OfUser(user, token), Of::User(name)) if user == name => Some(token.clone()),
            (Cell::OfDevice(device, token), Of::Device(name)) if device == name => Some(token.clone()),
            _ => None,
        };
        let found = self.read(|cell| token(cell).is_some()).await;
        found.iter().filter_map(|(cell, kept)| Some(Hint { token: token(cell)?, ver: ver(Some(kept))? })).collect()
    }

    async fn mark_now(&self, user: &str) -> Option<i64> {
        let cell = Cell::Deleted(user.to_owned());
        let found = self.read(|other| *other == cell).await;
        ver(found.get(&cell))
    }
}

fn hint_cell(of: Of<'_>, token: &str) -> Cell {
    match of {
        Of::User(user) => Cell::OfUser(user.to_owned(), token.to_owned()),
        Of::Device(device) => Cell::OfDevice(device.to_owned(), token.to_owned()),
    }
}

/// Later than everything.
const FAR: i64 = i64::MAX - 2;

impl Cells for Handler {
    /// The next page begins after this token.
    type Place = String;

    async fn row(&self, token: &str) -> Result<Option<State>, Unavailable> {
        let cell = Cell::Row(token.to_owned());
        let found = self.read(|other| *other == cell).await;
        let mut found = state(found.get(&cell)).cloned();
        if self.broken == Broken::KindIgnored && self.role == Role::Registering {
            found = found.map(|state| State { kind: self.kind.clone(), ..state });
        }
        if self.broken == Broken::ReaderDeletesUnproven && self.role == Role::Reading {
            found = Some(found.filter(|state| state.active).unwrap_or_else(|| State::blank(FAR, "e", "")));
        }
        Ok(found)
    }

    async fn put_row(&self, token: &str, state: &State) -> Result<(), Unavailable> {
        let mut state = state.clone();
        let replaced = state.reason.as_deref() == Some("replaced");
        match (self.broken, self.role) {
            (Broken::ReplacedAtTheEvent, Role::Registering) if replaced => state.ver = state.ver.max(self.ver),
            (Broken::DeletedAtTheEvent, Role::Deleting) | (Broken::RevokedByClock, Role::Revoking) => state.ver = self.ver,
            _ => {}
        }
        let at = state.ver;
        self.write(Cell::Row(token.to_owned()), live(Value::State(state), at)).await;
        if self.broken == Broken::RowBeforeHints {
            let later = std::mem::take(&mut self.early.lock().unwrap().writes);
            for (cell, kept) in later {
                self.write(cell, kept).await;
            }
        }
        Ok(())
    }

    async fn hints(&self, of: Of<'_>, from: Option<String>) -> Result<(Vec<Hint>, Option<String>), Unavailable> {
        let early = match of {
            Of::Device(_) => self.early.lock().unwrap().device.clone(),
            Of::User(_) => None,
        };
        let all = match early {
            Some(early) => early,
            None => self.hints_now(of).await,
        };
        // Pages of one hint.
        let mut rest = all.into_iter().filter(|hint| from.as_ref().is_none_or(|from| hint.token > *from));
        let page: Vec<Hint> = rest.next().into_iter().collect();
        let next = page.last().map(|last| last.token.clone()).filter(|_| rest.next().is_some());
        Ok((page, next))
    }

    async fn put_hint(&self, of: Of<'_>, token: &str, ver: i64) -> Result<(), Unavailable> {
        let (cell, kept) = (hint_cell(of, token), live(Value::Ver(ver), ver));
        if self.broken == Broken::RowBeforeHints {
            self.early.lock().unwrap().writes.push((cell, kept));
        } else {
            self.write(cell, kept).await;
        }
        Ok(())
    }

    async fn delete_hint(&self, of: Of<'_>, token: &str, at: i64) -> Result<(), Unavailable> {
        let at = if self.broken == Broken::HintsDeletedAtTheEvent { at.max(self.ver) } else { at };
        self.write(hint_cell(of, token), deleted(at)).await;
        Ok(())
    }

    async fn deleted_at(&self, user: &str) -> Result<Option<i64>, Unavailable> {
        let early = self.early.lock().unwrap().mark;
        Ok(match early {
            _ if self.broken == Broken::NoMark => None,
            Some(early) => early,
            None => self.mark_now(user).await,
        })
    }

    async fn put_deleted(&self, user: &str, ver: i64) -> Result<(), Unavailable> {
        let (cell, kept) = (Cell::Deleted(user.to_owned()), live(Value::Ver(ver), ver));
        if self.broken == Broken::WalkBeforeMark {
            self.early.lock().unwrap().writes.push((cell, kept));
        } else {
            self.write(cell, kept).await;
        }
        Ok(())
    }
}

// === impl Schedule ===

impl Schedule {
    /// Runs the schedule of this seed to its end; says what is wrong then, or at a death.
    fn run(seed: u64, broken: Broken) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(seed);
        let (kinds, events) = scenario(&mut random);
        let world = World { copies: Default::default(), late: Vec::new(), random: StdRng::seed_from_u64(seed ^ 0x5eed) };
        let clock = events.iter().map(Event::ver).max().unwrap_or(0) + 101;
        let schedule = Self { world: Arc::new(Mutex::new(world)), broken, kinds, events, sent: Arc::default(), clock };
        let mut lanes = schedule.lanes(&mut random);
        while !lanes.is_empty() {
            let late = schedule.world.lock().unwrap().late.len();
            let which = random.random_range(0..lanes.len());
            if late > 0 && random.random_bool(0.1) {
                let mut world = schedule.world.lock().unwrap();
                let (copy, cell, kept) = world.late.swap_remove(random.random_range(0..late));
                world.write(copy, &cell, &kept);
                continue;
            }
            let lane = &mut lanes[which];
            if lane.deaths > 0 && lane.running.is_some() && random.random_bool(0.02) {
                (lane.deaths, lane.running) = (lane.deaths - 1, None);
                schedule.check_at_a_death()?;
                continue;
            }
            let Some(task) = lane.tasks.front() else {
                lanes.swap_remove(which);
                continue;
            };
            let step = lane.running.get_or_insert_with(|| schedule.handle(task.clone()));
            if let Poll::Ready(done) = step.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                done.unwrap();
                lane.running = None;
                lane.tasks.pop_front();
            }
        }
        schedule.check()
    }

    /// Records of one key follow each other, or all are dealt out at random; some come once more as if from the dead.
    fn lanes(&self, random: &mut StdRng) -> Vec<Lane> {
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
        let lane = |tasks, deaths| Lane { tasks, deaths, running: None };
        let mut lanes: Vec<Lane> = keyed.into_values().map(|tasks| lane(tasks, *[0, 0, 1, 2].choose(random).unwrap())).collect();
        for event in &self.events {
            if random.random_bool(0.15) {
                lanes.push(lane(VecDeque::from([Task::Event(event.clone())]), 0));
            }
        }
        for _ in 0..random.random_range(0..3) {
            lanes.push(lane(VecDeque::from([Task::Read(user(random))]), 0));
            lanes.push(lane(VecDeque::from([Task::Send(user(random))]), *[0, 1].choose(random).unwrap()));
        }
        lanes
    }

    fn handler(&self, role: Role, ver: i64, kind: &str) -> Handler {
        Handler { world: Arc::clone(&self.world), broken: self.broken, role, ver, kind: kind.to_owned(), early: Mutex::default() }
    }

    fn handle(&self, task: Task) -> Step {
        let kinds = self.kinds.clone();
        match task {
            Task::Event(Event::Registered { token, user, device, previous, ver }) => {
                let kind = kinds[&token];
                let cells = self.handler(Role::Registering, ver, kind);
                Box::pin(async move {
                    if let (Broken::MarkReadFirst, Some(user)) = (cells.broken, &user) {
                        let mark = cells.mark_now(user).await;
                        cells.early.lock().unwrap().mark = Some(mark);
                    }
                    if let (Broken::DeviceReadFirst, Some(device)) = (cells.broken, &device) {
                        let mut hints = cells.hints_now(Of::Device(device)).await;
                        hints.push(Hint { token: token.clone(), ver });
                        cells.early.lock().unwrap().device = Some(hints);
                    }
                    let state = State { active: true, user_id: user, device_id: device, reason: None, ..State::blank(ver, kind, "") };
                    let previous = previous.as_deref().filter(|previous| *previous != token).map(|previous| (previous, kinds[previous]));
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
                    protocol::user_deleted(&cells, &user, ver).await?;
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
                let (cells, sent) = (self.handler(Role::Revoking, self.clock, ""), Arc::clone(&self.sent));
                Box::pin(async move {
                    let Some((token, state)) = protocol::tokens_of(&cells, &user).await?.pop() else { return Ok(()) };
                    sent.lock().unwrap().insert((token.clone(), state.ver));
                    for _ in 0..12 {
                        cells.turn().await;
                    }
                    protocol::revoke(&cells, &token, Judged::Registration(Version::from_i64(state.ver)), "dead").await.map(drop)
                })
            }
        }
    }

    /// While a handler is dead: a registration that a majority has is found by its user.
    fn check_at_a_death(&self) -> Result<(), String> {
        let world = self.world.lock().unwrap();
        for token in self.kinds.keys() {
            let latest = self.events.iter().filter(|event| event.concerns(token)).max_by_key(|event| event.ver());
            let Some(Event::Registered { token: registered, user: Some(user), ver: at, .. }) = latest else { continue };
            let rows = world.copies.iter().filter_map(|copy| copy.get(&Cell::Row(token.clone())));
            let versions: Vec<i64> = rows.map(|kept| kept.at).collect();
            let hint = Cell::OfUser(user.clone(), token.clone());
            let hinted = world.copies.iter().filter(|copy| copy.get(&hint).is_some_and(|kept| kept.at >= *at)).count();
            let stands = versions.iter().filter(|version| *version == at).count() >= 2 && versions.iter().all(|version| version <= at);
            if registered == token && stands && hinted < 2 {
                return Err(format!("{token} is not found by {user} while a handler is dead"));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let all = self.world.lock().unwrap().settle();
        let row = |token: &str| state(all.get(&Cell::Row(token.to_owned())));
        for token in self.kinds.keys() {
            let (found, expected) = (row(token), self.expected(token));
            let owner = |state: &State| (state.user_id.clone(), state.device_id.clone());
            let same = match (&expected, found) {
                (None, None) => true,
                (Some((ver, None)), Some(found)) => found.ver == *ver && !found.active,
                (Some((ver, Some(named))), Some(found)) => {
                    let lives = found.ver == *ver && found.active && owner(found) == *named;
                    lives || (found.ver == ver + 1 && !found.active && self.may_be_struck_out(token, *ver, named.1.as_deref()))
                }
                _ => false,
            };
            if !same {
                return Err(format!("{token} is {found:?}, expected {expected:?} of {:?}", self.events));
            }
            let Some(found) = found else { continue };
            let hinted = |of| ver(all.get(&hint_cell(of, token))).is_some();
            if found.active && found.user_id.as_deref().is_some_and(|user| !hinted(Of::User(user))) {
                return Err(format!("{token} is not found by its user"));
            }
            if found.active && found.device_id.as_deref().is_some_and(|device| !hinted(Of::Device(device))) {
                return Err(format!("{token} is not found by its device"));
            }
            let rival = |other: &&String| {
                *other != token
                    && row(other).is_some_and(|row| row.active && (&row.device_id, &row.kind) == (&found.device_id, &found.kind))
            };
            if found.active && found.device_id.is_some() && self.kinds.keys().any(|other| rival(&other)) {
                return Err(format!("{token} is not the only one on its device"));
            }
        }
        Ok(())
    }

    /// What the events make of a token in the order of their versions: the last one's version, and whose it is.
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

    /// By a verdict on the very registration, or by a later one of its kind on its device.
    fn may_be_struck_out(&self, token: &str, than: i64, on: Option<&str>) -> bool {
        let sent = self.sent.lock().unwrap().contains(&(token.to_owned(), than));
        let replaced = self.events.iter().any(|event| match event {
            Event::Registered { token: other, device, ver, .. } => {
                other != token && on.is_some() && device.as_deref() == on && self.kinds[other] == self.kinds[token] && *ver > than
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
            Self::Registered { ver, .. } | Self::Unregistered { ver, .. } | Self::UserDeleted { ver, .. } => *ver,
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Registered { token, .. } | Self::Unregistered { token, .. } => token,
            Self::UserDeleted { user, .. } => user,
        }
    }

    /// Whether it speaks of this token by name.
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

/// A few names, so that they meet; versions side by side or far apart.
fn scenario(random: &mut StdRng) -> (BTreeMap<String, &'static str>, Vec<Event>) {
    let tokens: Vec<String> = (1..=random.random_range(1..=3)).map(|n| format!("t{n}")).collect();
    let kinds = tokens.iter().map(|token| (token.clone(), if random.random_bool(0.2) { "f" } else { "e" })).collect();
    let devices = [Some("D1"), Some("D2"), None];
    let dense = random.random_bool(0.3);
    let (step, number) = (*[2, 100].choose(random).unwrap(), if dense { random.random_range(4..=7) } else { random.random_range(2..=6) });
    let events = (1..=number).map(|n| {
        let (token, ver) = (tokens.choose(random).unwrap().clone(), 1_000 + n * step);
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
    let events = events.collect();
    (kinds, events)
}
