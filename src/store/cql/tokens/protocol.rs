//! The protocol of a token's life, step by step, over cells that keep the latest write.
//!
//! It knows no statement: the cells are the server's, or those of a test that lets handlers race, die and
//! come back.

use std::future::Future;

use futures::future::try_join_all;
use scylla::{DeserializeValue, SerializeValue};

use crate::{
    domain::{Judged, Version, limits::DEVICE_TOKENS_MAX},
    store::StoreError,
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

/// Whose hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of<'a> {
    User(&'a str),
    Device(&'a str),
}

/// A hint: this token, as of this version.
#[derive(Clone, Debug)]
pub(super) struct Hint {
    pub token: String,
    pub ver: i64,
}

type StoreResult<T> = Result<T, StoreError>;

/// Cells of which the write with the highest timestamp stands, read and written by majorities. Each operation
/// may be repeated.
pub(super) trait Cells: Sync {
    /// A place between two pages of hints.
    type Place: Send;

    /// What a token's row says now; `None` too where the token was only seen.
    fn row(&self, token: &str) -> impl Future<Output = StoreResult<Option<TokenCell>>> + Send;
    /// Writes a row at its version. Inactive ones expire.
    fn put_row(&self, token: &str, state: &TokenCell) -> impl Future<Output = StoreResult<()>> + Send;
    /// A page of hints. It may be short or empty and yet have a next one.
    fn hints(
        &self,
        of: Of<'_>,
        from: Option<Self::Place>,
    ) -> impl Future<Output = StoreResult<(Vec<Hint>, Option<Self::Place>)>> + Send;
    /// Writes a hint at this version.
    fn put_hint(&self, of: Of<'_>, token: &str, ver: i64) -> impl Future<Output = StoreResult<()>> + Send;
    /// Deletes a hint as of this version.
    fn delete_hint(&self, of: Of<'_>, token: &str, at: i64) -> impl Future<Output = StoreResult<()>> + Send;
    /// When a user was deleted.
    fn deleted_at(&self, user: &str) -> impl Future<Output = StoreResult<Option<i64>>> + Send;
    /// Watermarks a user as deleted at this version.
    fn put_deleted(&self, user: &str, ver: i64) -> impl Future<Output = StoreResult<()>> + Send;
}

/// What a registration found on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// At most one token of its kind is active on it now.
    Settled,
    /// More than [`DEVICE_TOKENS_MAX`]: it is no device, and all of them stay.
    Crowded,
}

/// The token is alive and belongs to whom `state` names. `previous` is another token, of this kind, that it
/// takes the place of.
pub(super) async fn registered(
    cells: &impl Cells,
    token: &str,
    state: TokenCell,
    previous: Option<(&str, &str)>,
) -> StoreResult<Device> {
    let ver = state.ver;
    // 1. Our own first.
    let written = put(cells, token, state).await?;
    // 2. Only then who else is on the device.
    let device = match &written.device_id {
        Some(device) => one_of_a_kind(cells, token, &written, device).await?,
        None => Device::Settled,
    };
    // 3. What it takes the place of ended in the same moment.
    if let Some((previous, kind)) = previous {
        put(cells, previous, TokenCell::blank(ver, kind, "replaced")).await?;
    }
    // 4. Only now whether the user was deleted later than this.
    if let Some(user) = &written.user_id
        && cells.deleted_at(user).await?.is_some_and(|deleted| deleted > ver)
    {
        kill(cells, token, &written, "userDeleted").await?;
    }
    Ok(device)
}

/// The token is nobody's from this version on.
pub(super) async fn unregistered(cells: &impl Cells, token: &str, kind: &str, ver: i64) -> StoreResult<()> {
    put(cells, token, TokenCell::blank(ver, kind, "unregistered")).await.map(drop)
}

/// Leaves the mark and strikes out what is there; what was registered later stays.
pub(super) async fn user_deleted(cells: &impl Cells, user: &str, ver: i64) -> StoreResult<()> {
    cells.put_deleted(user, ver).await?;
    // Only then who is there: what registers from now on finds the mark.
    let mut from = None;
    loop {
        let (page, next) = hinted(cells, Of::User(user), from).await?;
        let older = page.iter().filter(|(_, state)| state.ver < ver);
        try_join_all(older.map(|(token, state)| kill(cells, token, state, "userDeleted"))).await?;
        if next.is_none() {
            return Ok(());
        }
        from = next;
    }
}

/// Takes a token out if the verdict names the registration that is current. Says whether it did.
pub(super) async fn revoke(
    cells: &impl Cells,
    token: &str,
    judged: Judged,
    reason: &str,
) -> StoreResult<bool> {
    match cells.row(token).await? {
        Some(state) if state.active && judged.names(Version::from_i64(state.ver)) => {
            kill(cells, token, &state, reason).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The active tokens of a user.
pub(super) async fn tokens_of(cells: &impl Cells, user: &str) -> StoreResult<Vec<(String, TokenCell)>> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let (page, next) = hinted(cells, Of::User(user), from).await?;
        found.extend(page);
        if next.is_none() {
            return Ok(found);
        }
        from = next;
    }
}

/// Writes a state with its hints, and clears those of the state that it takes the place of. Answers with what
/// was written; a later state stays.
async fn put(cells: &impl Cells, token: &str, mut new: TokenCell) -> StoreResult<TokenCell> {
    try_join_all(new.names().map(|of| cells.put_hint(of, token, new.ver))).await?;
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

/// Strikes an active state out: in the odd slot above it, and never anything later.
async fn kill(cells: &impl Cells, token: &str, state: &TokenCell, reason: &str) -> StoreResult<()> {
    let at = state.ver | 1;
    let ended = TokenCell { created_at: state.created_at, ..TokenCell::blank(at, &state.kind, reason) };
    cells.put_row(token, &ended).await?;
    delete_hints(cells, token, state, at, None).await
}

/// Of the tokens of one kind on a device the latest stays. Equal versions: the greater token, for everybody.
async fn one_of_a_kind(
    cells: &impl Cells,
    token: &str,
    own: &TokenCell,
    device: &str,
) -> StoreResult<Device> {
    let mut rivals: Vec<(String, TokenCell)> = Vec::new();
    let mut from = None;
    loop {
        let (page, next) = hinted(cells, Of::Device(device), from).await?;
        rivals.extend(page.into_iter().filter(|(_, state)| state.kind == own.kind));
        if rivals.len() > DEVICE_TOKENS_MAX {
            return Ok(Device::Crowded);
        }
        if next.is_none() {
            break;
        }
        from = next;
    }
    let winner =
        rivals.iter().map(|(rival, state)| (state.ver, rival.as_str())).fold((own.ver, token), Ord::max);
    let losers = rivals.iter().filter(|(rival, state)| (state.ver, rival.as_str()) < winner);
    try_join_all(losers.map(|(loser, state)| kill(cells, loser, state, "replaced"))).await?;
    Ok(Device::Settled)
}

/// The active rows that a page of hints leads to, and where the next page begins. A hint that its row proves
/// wrong is deleted: the row is newer, and inactive or somebody else's. One without a row stays, and so does
/// one that is newer than its row: a registration is on its way.
async fn hinted<C: Cells>(
    cells: &C,
    of: Of<'_>,
    from: Option<C::Place>,
) -> StoreResult<(Vec<(String, TokenCell)>, Option<C::Place>)> {
    let (hints, next) = cells.hints(of, from).await?;
    let states = try_join_all(hints.iter().map(|hint| cells.row(&hint.token))).await?;
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for (hint, state) in hints.into_iter().zip(states) {
        match state {
            Some(state) if state.active && of.names(&state) => right.push((hint.token, state)),
            Some(state) if state.ver > hint.ver => wrong.push(hint),
            _ => {}
        }
    }
    try_join_all(wrong.iter().map(|hint| cells.delete_hint(of, &hint.token, hint.ver + 1))).await?;
    Ok((right, next))
}

/// Deletes the hints that belong to a state, unless `keep` has them too.
async fn delete_hints(
    cells: &impl Cells,
    token: &str,
    state: &TokenCell,
    at: i64,
    keep: Option<&TokenCell>,
) -> StoreResult<()> {
    let gone = state.names().filter(|of| !keep.is_some_and(|keep| of.names(keep)));
    try_join_all(gone.map(|of| cells.delete_hint(of, token, at))).await.map(drop)
}

// === impl Of ===

impl<'a> Of<'a> {
    /// The user or the device.
    pub(super) fn name(self) -> &'a str {
        match self {
            Self::User(name) | Self::Device(name) => name,
        }
    }

    /// Whether a state belongs here.
    pub(super) fn names(self, state: &TokenCell) -> bool {
        match self {
            Self::User(user) => state.user_id.as_deref() == Some(user),
            Self::Device(device) => state.device_id.as_deref() == Some(device),
        }
    }
}

// === impl TokenCell ===

impl TokenCell {
    /// Inactive, and nobody's.
    pub(super) fn blank(ver: i64, kind: &str, reason: &str) -> Self {
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

    /// What it leaves hints for.
    fn names(&self) -> impl Iterator<Item = Of<'_>> {
        self.user_id.as_deref().map(Of::User).into_iter().chain(self.device_id.as_deref().map(Of::Device))
    }
}
