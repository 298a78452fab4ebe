//! Tokens: how registrations, replacements and deletions are applied without transactions.
//!
//! The token's row is the authority: everything that events change is in one cell, written with the event's
//! version as its timestamp, so the latest event wins in whatever order they arrive. A revocation of version
//! v is written at v + 1, the odd number that no event has: it overwrites that registration and is
//! overwritten by every later one. Rows of users and devices are hints of where to look. A hint is written
//! *before* the row that it leads to, checked against the row whenever it is read, and deleted only when the
//! row shows it to be wrong, at the version after its own.
//!
//! Two handlers may race: each writes its own first and reads the other's *then* (the row before the device's
//! hints, the row before the marker of a deleted user, that marker before the user's hints are read), so with
//! majorities at least one of the two sees both. The order of the steps is the protocol, and each of them is
//! needed: the schedules of `tests.rs` find the violations when one is left out or swapped.
//!
//! We accept that two tokens of one device may both be active for the moments between two handlers, and that
//! a late event leaves a wrong hint until it is read.
//!
//! A device id that many tokens share ("unknown", an emulator) identifies no device: its tokens do not
//! replace each other.

mod protocol;

#[cfg(test)]
mod tests;

use std::{sync::PoisonError, time::Duration};

use scylla::statement::prepared::PreparedStatement;
use tokio::time::Instant;

pub(super) use self::protocol::TokenCell;
use self::protocol::{Cells, DeviceState, Hint, HintOwner};
use super::{
    CqlInner, CqlStore,
    errors::{corrupt, row_name},
    execute::{Next, PAGE_OF_HINTS, all, first, micros, timestamp},
};
use crate::{
    domain::{
        DeviceId, Judged, Platform, Registration, Token, TokenChange, TokenHash, UserId, Version,
        limits::{self, DEVICE_TOKENS_MAX},
    },
    store::{Census, Registry, StoreResult, TokenRow},
};

const INACTIVE_SECONDS: i32 = limits::INACTIVE_TOKENS_KEPT.as_secs() as i32;
const SEEN_SECONDS: i32 = limits::SEEN_KEPT.as_secs() as i32;
/// Device ids that too many tokens share are logged at most once in this time.
const SHARED_DEVICE_LOGGED_EVERY: Duration = Duration::from_secs(60);

impl Registry for CqlStore {
    async fn apply(&self, change: &TokenChange, version: Version) -> StoreResult<()> {
        let store = &*self.inner;
        let ver = version.as_i64();
        match change {
            TokenChange::Registered { token, user, platform, device, device_info, previous } => {
                let state = TokenCell {
                    active: true,
                    user_id: user.as_ref().map(|user| user.as_str().to_owned()),
                    platform: platform.map(|platform| platform.label().to_owned()),
                    device_id: device.as_ref().map(|device| device.as_str().to_owned()),
                    device_info: device_info.clone(),
                    created_at: Some(micros(version.happened_at())),
                    reason: None,
                    ..TokenCell::inactive(ver, token.kind().label(), "")
                };
                let previous = previous.as_ref().filter(|previous| *previous != token);
                let previous = previous.map(|previous| (previous.as_str(), previous.kind().label()));
                let found = protocol::registered(store, token.as_str(), state, previous).await?;
                if let (DeviceState::Shared, Some(device)) = (found, device) {
                    store.log_shared_device(device);
                }
                Ok(())
            }
            TokenChange::Seen(token) => {
                let values = (ver, SEEN_SECONDS, micros(version.happened_at()), token.as_str());
                store.write("record that a token was seen", &store.statements.put_seen, values).await
            }
            TokenChange::Unregistered(token) => {
                protocol::unregistered(store, token.as_str(), token.kind().label(), ver).await
            }
            TokenChange::UserDeleted(user) => protocol::user_deleted(store, user.as_str(), ver).await,
        }
    }

    async fn tokens_of(&self, user: &UserId) -> StoreResult<Vec<Registration>> {
        let found = protocol::tokens_of(&*self.inner, user.as_str()).await?;
        found.into_iter().filter_map(|(token, state)| state.registration(&token).transpose()).collect()
    }

    async fn revoke(&self, token: &Token, judged: Judged, reason: &str) -> StoreResult<bool> {
        protocol::revoke(&*self.inner, token.as_str(), judged, reason).await
    }

    async fn inspect(&self, token: &Token) -> StoreResult<Option<TokenRow>> {
        const CONTEXT: &str = "inspect a token";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.token, (token.as_str(),)).await?;
        match first::<(Option<TokenCell>, Option<i64>)>(&rows, || row_name("tokens", token))? {
            Some((Some(state), seen_at)) => state.token_row(token.clone(), seen_at).map(Some),
            _ => Ok(None),
        }
    }

    async fn inspect_hash(&self, hash: TokenHash) -> StoreResult<Option<TokenRow>> {
        self.inner.find(hash).await
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        self.inner.census().await
    }
}

impl Cells for CqlInner {
    type PageState = Next;

    async fn row(&self, token: &str) -> StoreResult<Option<TokenCell>> {
        const CONTEXT: &str = "read a token";
        let rows = self.rows(CONTEXT, &self.statements.token, (token,)).await?;
        let found = first::<(Option<TokenCell>, Option<i64>)>(&rows, || token_row_name(token))?;
        Ok(found.and_then(|(state, _)| state))
    }

    async fn put_row(&self, token: &str, state: &TokenCell) -> StoreResult<()> {
        const CONTEXT: &str = "write a token";
        if state.active {
            self.write(CONTEXT, &self.statements.put_token, (token, state, state.ver)).await
        } else {
            self.write(CONTEXT, &self.statements.put_token_for, (token, state, state.ver, INACTIVE_SECONDS))
                .await
        }
    }

    async fn hints(
        &self,
        owner: HintOwner<'_>,
        from: Option<Next>,
    ) -> StoreResult<(Vec<Hint>, Option<Next>)> {
        const CONTEXT: &str = "read hints";
        let mut statement = owner.reading(self).clone();
        statement.set_page_size(PAGE_OF_HINTS);
        let (rows, next) = self.page(CONTEXT, &statement, (owner.id(),), from).await?;
        let hints = all::<(String, i64)>(&rows, || row_name(owner.table(), owner.id()))?;
        Ok((hints.into_iter().map(|(token, ver)| Hint { token, ver }).collect(), next))
    }

    async fn put_hint(&self, owner: HintOwner<'_>, token: &str, ver: i64) -> StoreResult<()> {
        self.write("write a hint", owner.writing(self), (owner.id(), token, ver, ver)).await
    }

    async fn delete_hint(&self, owner: HintOwner<'_>, token: &str, at: i64) -> StoreResult<()> {
        self.write("delete a hint", owner.deleting(self), (at, owner.id(), token)).await
    }

    async fn deleted_at(&self, user: &str) -> StoreResult<Option<i64>> {
        const CONTEXT: &str = "read whether a user was deleted";
        let rows = self.rows(CONTEXT, &self.statements.user_deleted, (user,)).await?;
        Ok(first::<(i64,)>(&rows, || row_name("users_deleted", user))?.map(|(ver,)| ver))
    }

    async fn put_deleted(&self, user: &str, ver: i64) -> StoreResult<()> {
        self.write("mark a user as deleted", &self.statements.put_user_deleted, (user, ver, ver)).await
    }
}

impl CqlInner {
    fn log_shared_device(&self, device: &DeviceId) {
        let mut logged_at = self.shared_device_logged_at.lock().unwrap_or_else(PoisonError::into_inner);
        if logged_at.is_none_or(|logged_at| logged_at.elapsed() >= SHARED_DEVICE_LOGGED_EVERY) {
            *logged_at = Some(Instant::now());
            tracing::warn!(
                device.id = %device,
                "Device {device} is named by more than {DEVICE_TOKENS_MAX} active tokens, so it is no single \
                 device: they do not replace each other"
            );
        }
    }
}

/// Names a row of `tokens` in an error, by the token's hash.
fn token_row_name(token: &str) -> String {
    match Token::parse(token) {
        Ok(token) => row_name("tokens", token),
        Err(_) => row_name("tokens", "(no token)"),
    }
}

// === impl HintOwner ===

impl HintOwner<'_> {
    fn table(self) -> &'static str {
        match self {
            Self::User(_) => "tokens_by_user",
            Self::Device(_) => "tokens_by_device",
        }
    }

    fn reading(self, store: &CqlInner) -> &PreparedStatement {
        match self {
            Self::User(_) => &store.statements.hints_of_user,
            Self::Device(_) => &store.statements.hints_of_device,
        }
    }

    fn writing(self, store: &CqlInner) -> &PreparedStatement {
        match self {
            Self::User(_) => &store.statements.put_hint_of_user,
            Self::Device(_) => &store.statements.put_hint_of_device,
        }
    }

    fn deleting(self, store: &CqlInner) -> &PreparedStatement {
        match self {
            Self::User(_) => &store.statements.delete_hint_of_user,
            Self::Device(_) => &store.statements.delete_hint_of_device,
        }
    }
}

// === impl TokenCell ===

impl TokenCell {
    /// The registration, while it is active.
    pub(super) fn registration(self, token: &str) -> StoreResult<Option<Registration>> {
        if !self.active {
            return Ok(None);
        }
        let row = || token_row_name(token);
        let platform = match self.platform {
            Some(label) => Some(
                Platform::from_label(&label)
                    .ok_or_else(|| corrupt(row, format!("the platform {label:?} is not known")))?,
            ),
            None => None,
        };
        Ok(Some(Registration {
            token: Token::parse(token).map_err(|err| corrupt(row, err))?,
            version: Version::from_i64(self.ver),
            user: self.user_id.map(UserId::new),
            platform,
            device: self.device_id.map(DeviceId::new),
            device_info: self.device_info,
        }))
    }

    pub(super) fn token_row(self, token: Token, seen_at: Option<i64>) -> StoreResult<TokenRow> {
        let row = || row_name("tokens", &token);
        let time = |micros: Option<i64>| micros.map(|micros| timestamp(micros, row)).transpose();
        let created_at = time(self.created_at)?;
        let seen_at = time(seen_at)?;
        Ok(TokenRow {
            version: Version::from_i64(self.ver),
            created_at,
            seen_at,
            reason: self.reason.clone(),
            registration: self.registration(token.as_str())?,
            token,
        })
    }
}
