//! A store in memory that can be unavailable, and a push service in memory that gives the verdicts of the
//! test.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use backoff::Backoff;

use crate::{
    dispatch::{PayloadRefused, Provider, ProviderBackoff, PushMessage, Reply, Verdict},
    domain::{
        BroadcastId, BroadcastState, Counts, Cursor, DoseKey, DueRow, Judged, Listeners, Notification,
        PartId, Plan, Progress, ProviderId, Recipient, Regimen, RegimenId, Registration, Slice, StopReason,
        Timestamp, Token, TokenChange, TokenHash, UserId, Version,
    },
    store::{
        Audience, Broadcasts, Census, Checkpoint, Claim, Claimed, DoseMark, Doses, Lease, Marked, Page,
        Registry, RouteRow, RouteState, Routes, Shard, Store, StoreError, TokenRow, Total, Watermark,
        Watermarks,
    },
};

type StoreResult<T> = Result<T, StoreError>;

/// Like Expo's.
pub const BACKOFF: ProviderBackoff = ProviderBackoff {
    first: Duration::from_secs(1),
    urgent_cap: Duration::from_secs(5),
    throttled: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
};

/// A token of that name.
pub fn registration(name: &str) -> Registration {
    let token = Token::parse(&format!("ExponentPushToken[{name}]")).unwrap();
    Registration {
        token,
        version: Version::from_i64(2),
        user: None,
        platform: None,
        device: None,
        device_info: None,
    }
}

// === The store ===

/// What delivery uses of a store.
#[derive(Clone, Default)]
pub struct FakeStore(Arc<Mutex<StoreState>>);

#[derive(Default)]
pub struct StoreState {
    /// How many of the next calls of each operation fail.
    pub unavailable: HashMap<&'static str, usize>,
    /// How long it takes to look a token up.
    pub inspect_takes: Duration,
    /// How often each operation was called.
    pub calls: HashMap<&'static str, usize>,
    pub users: BTreeMap<UserId, Vec<Registration>>,
    /// The tokens of the broadcast: every slice has all of them.
    pub audience: Vec<Registration>,
    pub plan: Option<Plan>,
    pub broadcast: Option<BroadcastState>,
    pub parts: BTreeMap<u32, Progress>,
    pub finished: BTreeSet<u32>,
    /// When the total was first asked for.
    pub total_at: Option<Timestamp>,
    pub claim: Option<(Lease, Option<DoseMark>)>,
    pub route: Option<RouteRow>,
}

impl FakeStore {
    pub fn state(&self) -> MutexGuard<'_, StoreState> {
        self.0.lock().unwrap()
    }

    fn call(&self, operation: &'static str) -> StoreResult<MutexGuard<'_, StoreState>> {
        let mut state = self.state();
        *state.calls.entry(operation).or_default() += 1;
        match state.unavailable.get_mut(operation) {
            Some(times @ 1..) => {
                *times -= 1;
                Err(StoreError::unavailable(operation, "the test makes it fail"))
            }
            _ => Ok(state),
        }
    }
}

impl Registry for FakeStore {
    async fn apply(&self, _: &TokenChange, _: Version) -> StoreResult<()> {
        unreachable!("delivery applies nothing")
    }

    async fn tokens_of(&self, user: &UserId) -> StoreResult<Vec<Registration>> {
        Ok(self.call("tokens_of")?.users.get(user).cloned().unwrap_or_default())
    }

    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> StoreResult<bool> {
        unreachable!("delivery revokes nothing")
    }

    async fn inspect(&self, token: &Token) -> StoreResult<Option<TokenRow>> {
        let takes = self.state().inspect_takes;
        tokio::time::sleep(takes).await;
        let state = self.call("inspect")?;
        let registration = state
            .audience
            .iter()
            .chain(state.users.values().flatten())
            .find(|registration| registration.token == *token);
        Ok(registration.map(|registration| TokenRow {
            token: token.clone(),
            registration: Some(registration.clone()),
            version: registration.version,
            reason: None,
            created_at: None,
            seen_at: None,
        }))
    }

    async fn inspect_hash(&self, _: TokenHash) -> StoreResult<Option<TokenRow>> {
        unreachable!("delivery inspects nothing")
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        unreachable!("delivery counts no tokens")
    }
}

impl Audience for FakeStore {
    async fn page_of_slice(
        &self,
        _: ProviderId,
        _: Slice,
        _: &Listeners,
        after: Option<Cursor>,
        limit: usize,
    ) -> StoreResult<Page> {
        let state = self.call("page_of_slice")?;
        let from = after.map_or(0, |Cursor(at)| usize::try_from(at).unwrap());
        let to = state.audience.len().min(from + limit);
        let positions = (from..to).map(|at| Cursor(i64::try_from(at).unwrap() + 1)).collect();
        let end = Cursor(i64::try_from(to).unwrap());
        Ok(Page {
            recipients: state.audience[from..to].iter().cloned().map(Recipient::from).collect(),
            positions,
            end,
            last: to == state.audience.len(),
        })
    }
}

impl Broadcasts for FakeStore {
    async fn plan(&self, _: &BroadcastId, _: &Plan, _: Timestamp) -> StoreResult<Plan> {
        unreachable!("delivery plans nothing")
    }

    async fn broadcast(&self, _: &BroadcastId) -> StoreResult<(Option<Plan>, Option<BroadcastState>)> {
        let state = self.call("broadcast")?;
        Ok((state.plan.clone(), state.broadcast.clone()))
    }

    async fn stop(&self, _: &BroadcastId, reason: &StopReason) -> StoreResult<()> {
        self.call("stop")?.broadcast = Some(BroadcastState::Stopped { reason: reason.clone() });
        Ok(())
    }

    async fn close(&self, _: &BroadcastId) -> StoreResult<()> {
        self.call("close")?.broadcast = Some(BroadcastState::Done);
        Ok(())
    }

    async fn take_over(&self, part: &PartId) -> StoreResult<Progress> {
        let mut state = self.call("take_over")?;
        let progress = state.parts.entry(part.part).or_default();
        progress.epoch += i32::from(!progress.done);
        Ok(progress.clone())
    }

    async fn checkpoint(&self, part: &PartId, progress: &Progress) -> StoreResult<Checkpoint> {
        let mut state = self.call("checkpoint")?;
        match state.parts.get_mut(&part.part) {
            Some(current) if current.epoch == progress.epoch => {
                current.clone_from(progress);
                Ok(Checkpoint::Kept)
            }
            _ => Ok(Checkpoint::Lost),
        }
    }

    async fn finish_part(&self, part: &PartId) -> StoreResult<u32> {
        let mut state = self.call("finish_part")?;
        state.finished.insert(part.part);
        Ok(u32::try_from(state.finished.len()).unwrap())
    }

    async fn progress(&self, _: &PartId) -> StoreResult<Option<Progress>> {
        unreachable!("delivery reads progress by taking a part over")
    }

    async fn total(&self, _: &BroadcastId, now: Timestamp) -> StoreResult<Total> {
        let mut state = self.call("total")?;
        let mut counts = Counts::default();
        state.parts.values().for_each(|part| counts += part.counts);
        Ok(Total { counts, at: *state.total_at.get_or_insert(now) })
    }
}

impl Doses for FakeStore {
    async fn put_regimen(&self, _: &RegimenId, _: Option<&Regimen>, _: Version) -> StoreResult<()> {
        unreachable!("delivery knows no regimen")
    }

    async fn regimen(&self, _: &RegimenId) -> StoreResult<Option<Regimen>> {
        unreachable!("delivery knows no regimen")
    }

    async fn regimens(&self, _: Option<&RegimenId>, _: usize) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        unreachable!("delivery knows no regimen")
    }

    async fn insert_due(&self, _: Shard, _: &DueRow) -> StoreResult<()> {
        unreachable!("delivery knows no due row")
    }

    async fn due_rows(
        &self,
        _: Shard,
        _: Timestamp,
        _: Timestamp,
        _: Option<&DueRow>,
        _: usize,
    ) -> StoreResult<Vec<DueRow>> {
        unreachable!("delivery knows no due row")
    }

    async fn marks(&self, _: Shard) -> StoreResult<Watermarks> {
        unreachable!("delivery knows no shard")
    }

    async fn init_marks(&self, _: Timestamp) -> StoreResult<()> {
        unreachable!("delivery knows no shard")
    }

    async fn raise(&self, _: Shard, _: Watermark, _: Timestamp) -> StoreResult<()> {
        unreachable!("delivery knows no shard")
    }

    /// The lease of another handling is over at once: leases go by the wall clock, which paused time does not
    /// move.
    async fn claim(&self, _: &DoseKey, owner: &str, _: Timestamp, until: Timestamp) -> StoreResult<Claim> {
        let mut state = self.call("claim")?;
        if let Some((_, Some(mark))) = &state.claim {
            return Ok(Claim::Marked(mark.clone()));
        }
        let attempt = state.claim.as_ref().map_or(1, |(lease, _)| lease.attempt + 1);
        let lease = Lease { owner: owner.to_owned(), attempt, until };
        state.claim = Some((lease.clone(), None));
        Ok(Claim::Mine(lease))
    }

    async fn claimed(&self, _: &DoseKey) -> StoreResult<Option<Claimed>> {
        unreachable!("only an operator asks for that")
    }

    async fn mark(&self, _: &DoseKey, lease: &Lease, mark: &DoseMark) -> StoreResult<Marked> {
        let mut state = self.call("mark")?;
        match &mut state.claim {
            Some((current, marked)) if (&current.owner, current.attempt) == (&lease.owner, lease.attempt) => {
                marked.get_or_insert_with(|| mark.clone());
                Ok(Marked::Kept)
            }
            _ => Ok(Marked::Lost),
        }
    }
}

impl Routes for FakeStore {
    async fn route(&self, _: ProviderId) -> StoreResult<RouteRow> {
        let running = || RouteRow {
            state: RouteState::Running,
            since: Timestamp::UNIX_EPOCH,
            set_by: String::new(),
            detail: String::new(),
        };
        Ok(self.call("route")?.route.clone().unwrap_or_else(running))
    }

    async fn set_route(&self, _: ProviderId, route: &RouteRow) -> StoreResult<()> {
        self.call("set_route")?.route = Some(route.clone());
        Ok(())
    }
}

impl Store for FakeStore {
    async fn ping(&self) -> StoreResult<()> {
        unreachable!("delivery does not ping")
    }
}

// === The push service ===

/// Accepts every message that the test gives no other verdict for, and counts what it has accepted.
#[derive(Clone, Default)]
pub struct FakeProvider(Arc<Mutex<ProviderState>>);

#[derive(Default)]
struct ProviderState {
    verdicts: HashMap<String, VecDeque<Verdict>>,
    sent: HashMap<String, usize>,
    refuses_all: bool,
}

impl FakeProvider {
    /// Sets the next verdicts for a token.
    pub fn answers(&self, name: &str, verdicts: impl IntoIterator<Item = Verdict>) {
        let token = registration(name).token;
        self.0.lock().unwrap().verdicts.entry(token.as_str().to_owned()).or_default().extend(verdicts);
    }

    /// Refuses every request as a whole from now on.
    pub fn refuses_all(&self) {
        self.0.lock().unwrap().refuses_all = true;
    }

    /// How often a message to the token was accepted.
    pub fn times_sent(&self, name: &str) -> usize {
        self.0.lock().unwrap().sent.get(registration(name).token.as_str()).copied().unwrap_or(0)
    }
}

impl Provider for FakeProvider {
    type Body = ();

    fn id(&self) -> ProviderId {
        ProviderId::Expo
    }

    fn batch_max(&self) -> usize {
        100
    }

    fn backoff(&self) -> ProviderBackoff {
        BACKOFF
    }

    fn body(&self, notification: &Notification) -> Result<(), PayloadRefused> {
        assert_ne!(notification.title, "a bug");
        if notification.title == "too large" {
            Err(PayloadRefused { reason: "5000 bytes".to_owned() })
        } else {
            Ok(())
        }
    }

    async fn send(&self, messages: &[PushMessage<'_, ()>]) -> Reply {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut state = self.0.lock().unwrap();
        let state = &mut *state;
        if state.refuses_all {
            return Reply::Refused { why: "HTTP 400".to_owned() };
        }
        let verdict = |message: &PushMessage<'_, ()>| {
            let token = message.token.as_str();
            let scripted = state.verdicts.get_mut(token).and_then(VecDeque::pop_front);
            let verdict = scripted.unwrap_or(Verdict::Accepted { ticket: Some(token.into()) });
            if matches!(verdict, Verdict::Accepted { .. }) {
                *state.sent.entry(token.to_owned()).or_default() += 1;
            }
            verdict
        };
        Reply::Each(messages.iter().map(verdict).collect())
    }
}
