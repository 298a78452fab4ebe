//! Tokens: the protocol of their life, without transactions.
//!
//! The token's row is the authority: everything that events change lies in one cell, written with the event's version as
//! its timestamp, so the latest event stands whatever came when. A revocation of version v is written at v + 1, the odd
//! slot that no event has: it beats that registration and loses to every later one. Rows of users and devices are hints
//! of where to look. A hint is written *before* the row that it leads to, checked against the row whenever it is met, and
//! deleted only when the row shows it to be wrong, at the version after its own.
//!
//! Two handlers may race: each writes its own first and reads the other's *then* (the row before the device's hints, the
//! row before the mark of a deleted user, that mark before the walk over the user's hints), so with majorities at least
//! one of the two sees both. The order of the steps is the protocol, and each of them is needed: a model of it and the
//! schedules of `tests/contract` find the violations when one is left out or swapped.
//!
//! We accept that two tokens of one device may both be active for the moments between two handlers, and that a late event
//! leaves a wrong hint until somebody reads it.
//!
//! A device id that many tokens share is no device's ("unknown", an emulator): it is then left alone.

use std::{sync::PoisonError, time::Duration};

use futures::future::try_join_all;
use scylla::{DeserializeValue, SerializeValue, statement::prepared::PreparedStatement};
use tokio::time::Instant;

use super::{
    CqlStore, Inner,
    execute::{Next, PAGE_OF_HINTS, all, first, micros, timestamp, unreadable},
};
use crate::{
    domain::{DeviceId, Judged, Platform, Registration, Token, TokenChange, TokenHash, Unavailable, UserId, Version},
    store::{Census, Registry, TokenRow},
};

/// A device that more active tokens than that name is no device.
const HOLDERS_MAX: usize = 20;
/// Longer than Kafka keeps `device-tokens`: a replay must not find the way free to revive a revoked token.
const INACTIVE_SECONDS: i32 = 90 * 24 * 60 * 60;
/// When the app was last opened is kept that long.
const SEEN_SECONDS: i32 = 400 * 24 * 60 * 60;
/// A device of very many tokens is spoken of that often.
const CROWD_TOLD_EVERY: Duration = Duration::from_secs(60);

/// The one cell of a token. Inactive ones name no user and no device.
#[derive(Clone, Debug, PartialEq, SerializeValue, DeserializeValue)]
pub(super) struct State {
    /// The cell's timestamp.
    pub ver: i64,
    pub active: bool,
    user_id: Option<String>,
    kind: String,
    platform: Option<String>,
    device_id: Option<String>,
    device_info: Option<String>,
    created_at: Option<i64>,
    reason: Option<String>,
}

/// Whose hints.
#[derive(Clone, Copy)]
enum Of<'a> {
    User(&'a str),
    Device(&'a str),
}

/// A hint: this token, as of this version.
struct Hint {
    token: String,
    ver: i64,
}

impl Registry for CqlStore {
    async fn apply(&self, change: &TokenChange, version: Version) -> Result<(), Unavailable> {
        let (store, ver) = (&self.inner, version.as_i64());
        match change {
            TokenChange::Registered { token, user, platform, device, device_info, previous } => {
                let state = State {
                    user_id: user.as_ref().map(|user| user.as_str().to_owned()),
                    platform: platform.map(|platform| platform.label().to_owned()),
                    device_id: device.as_ref().map(|device| device.as_str().to_owned()),
                    device_info: device_info.clone(),
                    active: true,
                    created_at: Some(micros(version.happened_at())),
                    reason: None,
                    ..State::blank(ver, token.kind().label(), "")
                };
                store
                    .registered(token, state, user.as_ref(), device.as_ref(), previous.as_ref().filter(|previous| *previous != token))
                    .await
            }
            TokenChange::Seen(token) => {
                let values = (ver, SEEN_SECONDS, micros(version.happened_at()), token.as_str());
                store.write("note that a token was seen", &store.statements.put_seen, values).await
            }
            TokenChange::Unregistered(token) => {
                store.put(token.as_str(), State::blank(ver, token.kind().label(), "unregistered")).await.map(drop)
            }
            TokenChange::UserDeleted(user) => store.user_deleted(user, ver).await,
        }
    }

    async fn tokens_of(&self, user: &UserId) -> Result<Vec<Registration>, Unavailable> {
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let (page, next) = self.inner.hinted(Of::User(user.as_str()), from).await?;
            for (token, state) in page {
                found.extend(state.registration(&token)?);
            }
            if next.is_none() {
                return Ok(found);
            }
            from = next;
        }
    }

    async fn revoke(&self, token: &Token, judged: Judged, reason: &str) -> Result<bool, Unavailable> {
        match self.inner.row(token.as_str()).await? {
            Some(state) if state.active && judged.names(Version::from_i64(state.ver)) => {
                self.inner.kill(token.as_str(), &state, reason).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn inspect(&self, token: &Token) -> Result<Option<TokenRow>, Unavailable> {
        const CONTEXT: &str = "inspect a token";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.token, (token.as_str(),)).await?;
        match first::<(Option<State>, Option<i64>)>(CONTEXT, &rows)? {
            Some((Some(state), seen_at)) => state.token_row(token.clone(), seen_at).map(Some),
            _ => Ok(None),
        }
    }

    async fn inspect_hash(&self, hash: TokenHash) -> Result<Option<TokenRow>, Unavailable> {
        self.inner.find(hash).await
    }

    async fn census(&self) -> Result<Vec<Census>, Unavailable> {
        self.inner.census().await
    }
}

// === the protocol ===

impl Inner {
    async fn registered(
        &self,
        token: &Token,
        state: State,
        user: Option<&UserId>,
        device: Option<&DeviceId>,
        previous: Option<&Token>,
    ) -> Result<(), Unavailable> {
        let ver = state.ver;
        // 1. Our own first.
        let written = self.put(token.as_str(), state).await?;
        // 2. Only then who else is on the device.
        if let Some(device) = device {
            self.one_of_a_kind(token, ver, device).await?;
        }
        // 3. What it takes the place of ended in the same moment.
        if let Some(previous) = previous {
            self.put(previous.as_str(), State::blank(ver, previous.kind().label(), "replaced")).await?;
        }
        // 4. Only now whether the user was deleted later than this.
        if let Some(user) = user
            && self.deleted_at(user).await?.is_some_and(|deleted| deleted > ver)
        {
            self.kill(token.as_str(), &written, "userDeleted").await?;
        }
        Ok(())
    }

    /// Writes a state with its hints, and clears those of the state that it takes the place of. Answers with what was
    /// written; a later state stays.
    async fn put(&self, token: &str, mut new: State) -> Result<State, Unavailable> {
        self.put_hints(token, &new).await?;
        let old = self.row(token).await?;
        if let Some(old) = &old {
            if old.ver < new.ver {
                self.delete_hints(token, old, old.ver + 1, Some(&new)).await?;
            }
            new.created_at = new.created_at.into_iter().chain(old.created_at).min();
        }
        self.put_row(token, &new).await?;
        if let Some(current) = self.row(token).await?
            && current.ver > new.ver
        {
            self.delete_hints(token, &new, new.ver + 1, Some(&current)).await?;
        }
        Ok(new)
    }

    /// Strikes an active state out: in the odd slot above it, and never anything later.
    async fn kill(&self, token: &str, state: &State, reason: &str) -> Result<(), Unavailable> {
        let at = state.ver | 1;
        let ended = State { created_at: state.created_at, ..State::blank(at, &state.kind, reason) };
        self.put_row(token, &ended).await?;
        self.delete_hints(token, state, at, None).await
    }

    /// Of the tokens of one kind on a device the latest stays. Equal versions: the greater token, for everybody.
    async fn one_of_a_kind(&self, token: &Token, ver: i64, device: &DeviceId) -> Result<(), Unavailable> {
        let mut rivals: Vec<(String, State)> = Vec::new();
        let mut from = None;
        loop {
            let (page, next) = self.hinted(Of::Device(device.as_str()), from).await?;
            rivals.extend(page.into_iter().filter(|(_, state)| state.kind == token.kind().label()));
            if rivals.len() > HOLDERS_MAX {
                self.tell_of_a_crowd(device);
                return Ok(());
            }
            if next.is_none() {
                break;
            }
            from = next;
        }
        let winner = rivals.iter().map(|(rival, state)| (state.ver, rival.as_str())).fold((ver, token.as_str()), Ord::max);
        let losers = rivals.iter().filter(|(rival, state)| (state.ver, rival.as_str()) < winner);
        try_join_all(losers.map(|(loser, state)| self.kill(loser, state, "replaced"))).await.map(drop)
    }

    async fn user_deleted(&self, user: &UserId, ver: i64) -> Result<(), Unavailable> {
        self.write("mark a user as deleted", &self.statements.put_user_deleted, (user.as_str(), ver, ver)).await?;
        // Only then who is there: what registers from now on finds the mark.
        let mut from = None;
        loop {
            let (page, next) = self.hinted(Of::User(user.as_str()), from).await?;
            let older = page.iter().filter(|(_, state)| state.ver < ver);
            try_join_all(older.map(|(token, state)| self.kill(token, state, "userDeleted"))).await?;
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    // --- rows

    /// What a token's row says now; `None` too where the token was only seen.
    async fn row(&self, token: &str) -> Result<Option<State>, Unavailable> {
        const CONTEXT: &str = "read a token";
        let rows = self.rows(CONTEXT, &self.statements.token, (token,)).await?;
        Ok(first::<(Option<State>, Option<i64>)>(CONTEXT, &rows)?.and_then(|(state, _)| state))
    }

    async fn put_row(&self, token: &str, state: &State) -> Result<(), Unavailable> {
        const CONTEXT: &str = "write a token";
        if state.active {
            self.write(CONTEXT, &self.statements.put_token, (token, state, state.ver)).await
        } else {
            self.write(CONTEXT, &self.statements.put_token_for, (token, state, state.ver, INACTIVE_SECONDS)).await
        }
    }

    async fn deleted_at(&self, user: &UserId) -> Result<Option<i64>, Unavailable> {
        const CONTEXT: &str = "look for a user's deletion";
        let rows = self.rows(CONTEXT, &self.statements.user_deleted, (user.as_str(),)).await?;
        Ok(first::<(i64,)>(CONTEXT, &rows)?.map(|(ver,)| ver))
    }

    // --- hints

    /// The active rows that a page of hints leads to, and where the next page begins. A hint that its row proves wrong is
    /// deleted: the row is newer, and inactive or somebody else's. One without a row stays, and so does one that is newer
    /// than its row: a registration is on its way.
    async fn hinted(&self, of: Of<'_>, from: Option<Next>) -> Result<(Vec<(String, State)>, Option<Next>), Unavailable> {
        const CONTEXT: &str = "read hints";
        let mut statement = of.reading(self).clone();
        statement.set_page_size(PAGE_OF_HINTS);
        let (rows, next) = self.page(CONTEXT, &statement, (of.name(),), from).await?;
        let hints: Vec<Hint> = all::<(String, i64)>(CONTEXT, &rows)?.into_iter().map(|(token, ver)| Hint { token, ver }).collect();
        let states = try_join_all(hints.iter().map(|hint| self.row(&hint.token))).await?;

        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        for (hint, state) in hints.into_iter().zip(states) {
            match state {
                Some(state) if state.active && of.names(&state) => right.push((hint.token, state)),
                Some(state) if state.ver > hint.ver => wrong.push(hint),
                _ => {}
            }
        }
        try_join_all(wrong.iter().map(|hint| self.delete_hint(of, &hint.token, hint.ver + 1))).await?;
        Ok((right, next))
    }

    async fn put_hints(&self, token: &str, state: &State) -> Result<(), Unavailable> {
        try_join_all(state.names().map(|of| async move {
            let (statement, name) = (of.writing(self), of.name());
            self.write("write a hint", statement, (name, token, state.ver, state.ver)).await
        }))
        .await
        .map(drop)
    }

    /// Deletes the hints that belong to a state, unless `keep` has them too.
    async fn delete_hints(&self, token: &str, state: &State, at: i64, keep: Option<&State>) -> Result<(), Unavailable> {
        let gone = state.names().filter(|of| !keep.is_some_and(|keep| of.names(keep)));
        try_join_all(gone.map(|of| self.delete_hint(of, token, at))).await.map(drop)
    }

    async fn delete_hint(&self, of: Of<'_>, token: &str, at: i64) -> Result<(), Unavailable> {
        self.write("delete a hint", of.deleting(self), (at, of.name(), token)).await
    }

    fn tell_of_a_crowd(&self, device: &DeviceId) {
        let mut told_at = self.crowd_told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|told_at| told_at.elapsed() >= CROWD_TOLD_EVERY) {
            *told_at = Some(Instant::now());
            tracing::warn!(
                device.id = %device,
                "Device {device} is named by more than {HOLDERS_MAX} active tokens, so it is no single device: they do not replace each other"
            );
        }
    }
}

// === impl Of ===

impl<'a> Of<'a> {
    fn name(self) -> &'a str {
        match self {
            Self::User(name) | Self::Device(name) => name,
        }
    }

    /// Whether a state belongs here.
    fn names(self, state: &State) -> bool {
        match self {
            Self::User(user) => state.user_id.as_deref() == Some(user),
            Self::Device(device) => state.device_id.as_deref() == Some(device),
        }
    }

    fn reading(self, store: &Inner) -> &PreparedStatement {
        match self {
            Self::User(_) => &store.statements.hints_of_user,
            Self::Device(_) => &store.statements.hints_of_device,
        }
    }

    fn writing(self, store: &Inner) -> &PreparedStatement {
        match self {
            Self::User(_) => &store.statements.put_hint_of_user,
            Self::Device(_) => &store.statements.put_hint_of_device,
        }
    }

    fn deleting(self, store: &Inner) -> &PreparedStatement {
        match self {
            Self::User(_) => &store.statements.delete_hint_of_user,
            Self::Device(_) => &store.statements.delete_hint_of_device,
        }
    }
}

// === impl State ===

impl State {
    /// Inactive, and nobody's.
    fn blank(ver: i64, kind: &str, reason: &str) -> Self {
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

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// What it leaves hints for.
    fn names(&self) -> impl Iterator<Item = Of<'_>> {
        self.user_id.as_deref().map(Of::User).into_iter().chain(self.device_id.as_deref().map(Of::Device))
    }

    /// The registration, while it is active.
    pub(super) fn registration(self, token: &str) -> Result<Option<Registration>, Unavailable> {
        const CONTEXT: &str = "read a registration";
        if !self.active {
            return Ok(None);
        }
        let platform = match self.platform {
            Some(word) => {
                Some(Platform::from_label(&word).ok_or_else(|| unreadable(CONTEXT, format!("the platform {word:?} is not known")))?)
            }
            None => None,
        };
        Ok(Some(Registration {
            token: Token::parse(token).map_err(|err| unreadable(CONTEXT, err))?,
            version: Version::from_i64(self.ver),
            user: self.user_id.map(UserId::new),
            platform,
            device: self.device_id.map(DeviceId::new),
            device_info: self.device_info,
        }))
    }

    pub(super) fn token_row(self, token: Token, seen_at: Option<i64>) -> Result<TokenRow, Unavailable> {
        let time = |micros: Option<i64>| micros.map(|micros| timestamp("read a token's times", micros)).transpose();
        Ok(TokenRow {
            version: Version::from_i64(self.ver),
            created_at: time(self.created_at)?,
            seen_at: time(seen_at)?,
            reason: self.reason.clone(),
            registration: self.registration(token.as_str())?,
            token,
        })
    }
}
