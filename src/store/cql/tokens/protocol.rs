//! How token events are applied, step by step, over cells that keep the latest write.
//!
//! It knows no statement: the cells are the server's, or those of a test in which handlers race, end half-way
//! and start again.

use std::future::Future;

use futures::future::try_join_all;
use scylla::{DeserializeValue, SerializeValue};

use crate::{
    domain::{Judged, Version, limits::DEVICE_TOKENS_MAX},
    store::StoreResult,
};

/// The one cell of a token. Inactive ones name no user and no device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SerializeValue, DeserializeValue)]
pub(in crate::store::cql) struct TokenCell {
    /// The cell's timestamp.
    pub ver: i64,
    pub active: bool,
    pub user_id: Option<String>,
    pub kind: String,
    pub platform: Option<String>,
    pub device_id: Option<String>,
    pub device_info: Option<String>,
    pub created_at: Option<i64>,
    pub reason: Option<String>,
}

/// The user or the device whose tokens hints lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HintOwner<'a> {
    User(&'a str),
    Device(&'a str),
}

/// A hint: this token, as of this version.
#[derive(Clone, Debug)]
pub(super) struct Hint {
    pub token: String,
    pub ver: i64,
}

/// Cells that keep the write with the highest timestamp, read and written by majorities. Each operation may
/// be repeated.
pub(super) trait Cells: Sync {
    /// Where the next page of hints begins.
    type PageState: Send;

    /// The state in a token's row; `None` also where the token was only seen.
    fn row(&self, token: &str) -> impl Future<Output = StoreResult<Option<TokenCell>>> + Send;
    /// Writes a row at its version. Inactive ones expire.
    fn put_row(&self, token: &str, state: &TokenCell) -> impl Future<Output = StoreResult<()>> + Send;
    /// A page of hints. It may be short or empty and yet have a next one.
    fn hints(
        &self,
        owner: HintOwner<'_>,
        from: Option<Self::PageState>,
    ) -> impl Future<Output = StoreResult<(Vec<Hint>, Option<Self::PageState>)>> + Send;
    /// Writes a hint at this version.
    fn put_hint(
        &self,
        owner: HintOwner<'_>,
        token: &str,
        ver: i64,
    ) -> impl Future<Output = StoreResult<()>> + Send;
    /// Deletes a hint as of this version.
    fn delete_hint(
        &self,
        owner: HintOwner<'_>,
        token: &str,
        at: i64,
    ) -> impl Future<Output = StoreResult<()>> + Send;
    /// The version at which a user was deleted.
    fn deleted_at(&self, user: &str) -> impl Future<Output = StoreResult<Option<i64>>> + Send;
    /// Marks a user as deleted at this version.
    fn put_deleted(&self, user: &str, ver: i64) -> impl Future<Output = StoreResult<()>> + Send;
}

/// What a registration found on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceState {
    /// At most one token of its kind is active on it now.
    Exclusive,
    /// More than [`DEVICE_TOKENS_MAX`] are: the id identifies no device, and all of them stay active.
    Shared,
}

/// The token is active and belongs to the user that `state` names. `previous` is another token and its kind,
/// which this one replaces.
pub(super) async fn registered(
    cells: &impl Cells,
    token: &str,
    state: TokenCell,
    previous: Option<(&str, &str)>,
) -> StoreResult<DeviceState> {
    let ver = state.ver;
    // 1. First the token's own row.
    let written = put(cells, token, state).await?;
    // 2. Only then the other tokens of the device.
    let device = match &written.device_id {
        Some(device) => deactivate_rivals(cells, token, &written, device).await?,
        None => DeviceState::Exclusive,
    };
    // 3. The token that it replaces is inactive from the same version on.
    if let Some((previous, kind)) = previous {
        put(cells, previous, TokenCell::inactive(ver, kind, "replaced")).await?;
    }
    // 4. Only now whether the user was deleted later than this.
    if let Some(user) = &written.user_id
        && cells.deleted_at(user).await?.is_some_and(|deleted| deleted > ver)
    {
        deactivate(cells, token, &written, "userDeleted").await?;
    }
    Ok(device)
}

/// The token is inactive from this version on.
pub(super) async fn unregistered(cells: &impl Cells, token: &str, kind: &str, ver: i64) -> StoreResult<()> {
    put(cells, token, TokenCell::inactive(ver, kind, "unregistered")).await.map(drop)
}

/// Marks the user as deleted and deactivates the user's tokens; those that were registered later stay.
pub(super) async fn user_deleted(cells: &impl Cells, user: &str, ver: i64) -> StoreResult<()> {
    cells.put_deleted(user, ver).await?;
    // Only then the user's tokens: a registration that is not seen here sees the marker.
    let mut from = None;
    loop {
        let (page, next) = rows_by_hint(cells, HintOwner::User(user), from).await?;
        let older = page.iter().filter(|(_, state)| state.ver < ver);
        try_join_all(older.map(|(token, state)| deactivate(cells, token, state, "userDeleted"))).await?;
        if next.is_none() {
            return Ok(());
        }
        from = next;
    }
}

/// Deactivates a token if the verdict names the registration that is current. Returns whether it did.
pub(super) async fn revoke(
    cells: &impl Cells,
    token: &str,
    judged: Judged,
    reason: &str,
) -> StoreResult<bool> {
    match cells.row(token).await? {
        Some(state) if state.active && judged.names(Version::from_i64(state.ver)) => {
            deactivate(cells, token, &state, reason).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The active tokens of a user.
pub(super) async fn tokens_of(cells: &impl Cells, user: &str) -> StoreResult<Vec<(String, TokenCell)>> {
    let mut found = Vec::new();
    let mut from = None;
    loop {
        let (page, next) = rows_by_hint(cells, HintOwner::User(user), from).await?;
        found.extend(page);
        if next.is_none() {
            return Ok(found);
        }
        from = next;
    }
}

/// Writes a state with its hints, and deletes those of the state that it replaces. Returns what was written;
/// a later state stays.
async fn put(cells: &impl Cells, token: &str, mut new: TokenCell) -> StoreResult<TokenCell> {
    try_join_all(new.hint_owners().map(|owner| cells.put_hint(owner, token, new.ver))).await?;
    let old = cells.row(token).await?;
    if let Some(old) = &old {
        if old.ver < new.ver {
            delete_hints(cells, token, old, old.ver + 1, Some(&new)).await?;
        }
        new.created_at = new.created_at.into_iter().chain(old.created_at).min();
    }
    cells.put_row(token, &new).await?;
    if let Some(current) = cells.row(token).await?
        && current.ver > new.ver
    {
        delete_hints(cells, token, &new, new.ver + 1, Some(&current)).await?;
    }
    Ok(new)
}

/// Deactivates an active state, at the odd version above its own: nothing later is overwritten.
async fn deactivate(cells: &impl Cells, token: &str, state: &TokenCell, reason: &str) -> StoreResult<()> {
    let at = state.ver | 1;
    let ended = TokenCell { created_at: state.created_at, ..TokenCell::inactive(at, &state.kind, reason) };
    cells.put_row(token, &ended).await?;
    delete_hints(cells, token, state, at, None).await
}

/// Of the active tokens of one kind on a device only the latest stays; of equal versions that with the
/// greater token, whichever handler compares them.
async fn deactivate_rivals(
    cells: &impl Cells,
    token: &str,
    own: &TokenCell,
    device: &str,
) -> StoreResult<DeviceState> {
    let mut rivals: Vec<(String, TokenCell)> = Vec::new();
    let mut from = None;
    loop {
        let (page, next) = rows_by_hint(cells, HintOwner::Device(device), from).await?;
        rivals.extend(page.into_iter().filter(|(_, state)| state.kind == own.kind));
        if rivals.len() > DEVICE_TOKENS_MAX {
            return Ok(DeviceState::Shared);
        }
        if next.is_none() {
            break;
        }
        from = next;
    }
    let winner =
        rivals.iter().map(|(rival, state)| (state.ver, rival.as_str())).fold((own.ver, token), Ord::max);
    let losers = rivals.iter().filter(|(rival, state)| (state.ver, rival.as_str()) < winner);
    try_join_all(losers.map(|(loser, state)| deactivate(cells, loser, state, "replaced"))).await?;
    Ok(DeviceState::Exclusive)
}

/// The active rows that a page of hints leads to, and where the next page begins. A hint that its row proves
/// wrong is deleted: the row is newer, and inactive or of another owner. One without a row stays, and so does
/// one that is newer than its row: a registration is under way.
async fn rows_by_hint<C: Cells>(
    cells: &C,
    owner: HintOwner<'_>,
    from: Option<C::PageState>,
) -> StoreResult<(Vec<(String, TokenCell)>, Option<C::PageState>)> {
    let (hints, next) = cells.hints(owner, from).await?;
    let states = try_join_all(hints.iter().map(|hint| cells.row(&hint.token))).await?;
    let mut right = Vec::new();
    let mut wrong = Vec::new();
    for (hint, state) in hints.into_iter().zip(states) {
        match state {
            Some(state) if state.active && owner.owns(&state) => right.push((hint.token, state)),
            Some(state) if state.ver > hint.ver => wrong.push(hint),
            _ => {}
        }
    }
    try_join_all(wrong.iter().map(|hint| cells.delete_hint(owner, &hint.token, hint.ver + 1))).await?;
    Ok((right, next))
}

/// Deletes the hints that lead to a state, unless they lead to `keep` too.
async fn delete_hints(
    cells: &impl Cells,
    token: &str,
    state: &TokenCell,
    at: i64,
    keep: Option<&TokenCell>,
) -> StoreResult<()> {
    let obsolete = state.hint_owners().filter(|owner| !keep.is_some_and(|keep| owner.owns(keep)));
    try_join_all(obsolete.map(|owner| cells.delete_hint(owner, token, at))).await.map(drop)
}

// === impl HintOwner ===

impl<'a> HintOwner<'a> {
    pub(super) fn id(self) -> &'a str {
        match self {
            Self::User(id) | Self::Device(id) => id,
        }
    }

    /// Whether the state names this user or device.
    pub(super) fn owns(self, state: &TokenCell) -> bool {
        match self {
            Self::User(user) => state.user_id.as_deref() == Some(user),
            Self::Device(device) => state.device_id.as_deref() == Some(device),
        }
    }
}

// === impl TokenCell ===

impl TokenCell {
    /// An inactive state, which names no user and no device.
    pub(in crate::store::cql) fn inactive(ver: i64, kind: &str, reason: &str) -> Self {
        Self {
            ver,
            active: false,
            user_id: None,
            kind: kind.to_owned(),
            platform: None,
            device_id: None,
            device_info: None,
            created_at: None,
            reason: Some(reason.to_owned()),
        }
    }

    /// The owners whose hints lead to this state.
    fn hint_owners(&self) -> impl Iterator<Item = HintOwner<'_>> {
        let user = self.user_id.as_deref().map(HintOwner::User);
        let device = self.device_id.as_deref().map(HintOwner::Device);
        user.into_iter().chain(device)
    }
}
