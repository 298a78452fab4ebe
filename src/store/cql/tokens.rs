//! Tokens: the protocol of their life, without transactions.
//!
//! The token's row is the authority: everything that events change lies in one cell, written with the event's
//! version as its timestamp, so the latest event stands whatever came when. A revocation of version v is
//! written at v + 1, the odd slot that no event has: it beats that registration and loses to every later one.
//! Rows of users and devices are hints of where to look. A hint is written *before* the row that it leads to,
//! checked against the row whenever it is met, and deleted only when the row shows it to be wrong, at the
//! version after its own.
//!
//! Two handlers may race: each writes its own first and reads the other's *then* (the row before the device's
//! hints, the row before the mark of a deleted user, that mark before the walk over the user's hints), so
//! with majorities at least one of the two sees both. The order of the steps is the protocol, and each of
//! them is needed: a model of it and the schedules of `tests.rs` find the violations when one is left out or
//! swapped.
//!
//! We accept that two tokens of one device may both be active for the moments between two handlers, and that
//! a late event leaves a wrong hint until somebody reads it.
//!
//! A device id that many tokens share is no device's ("unknown", an emulator): it is then left alone.

mod protocol;

#[cfg(test)]
mod tests;

use std::{sync::PoisonError, time::Duration};

use scylla::statement::prepared::PreparedStatement;
use tokio::time::Instant;

pub(super) use self::protocol::TokenCell;
use self::protocol::{Cells, Device, Hint, Of};
use super::{
    CqlInner, CqlStore,
    execute::{Next, PAGE_OF_HINTS, all, first, micros, timestamp, unreadable},
};
use crate::{
    domain::{
        DeviceId, Judged, Platform, Registration, Token, TokenChange, TokenHash, UserId, Version,
        limits::{self, DEVICE_TOKENS_MAX},
    },
    store::{Census, Registry, StoreError, TokenRow},
};

const INACTIVE_SECONDS: i32 = limits::INACTIVE_TOKENS_KEPT.as_secs() as i32;
const SEEN_SECONDS: i32 = limits::SEEN_KEPT.as_secs() as i32;
/// A device of very many tokens is spoken of that often.
const CROWD_TOLD_EVERY: Duration = Duration::from_secs(60);

impl Registry for CqlStore {
    async fn apply(&self, change: &TokenChange, version: Version) -> Result<(), StoreError> {
        let (store, ver) = (&*self.inner, version.as_i64());
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
                    ..TokenCell::blank(ver, token.kind().label(), "")
                };
                let previous = previous.as_ref().filter(|previous| *previous != token);
                let previous = previous.map(|previous| (previous.as_str(), previous.kind().label()));
                let found = protocol::registered(store, token.as_str(), state, previous).await?;
                if let (Device::Crowded, Some(device)) = (found, device) {
                    store.tell_of_a_crowd(device);
                }
                Ok(())
            }
            TokenChange::Seen(token) => {
                let values = (ver, SEEN_SECONDS, micros(version.happened_at()), token.as_str());
                store.write("note that a token was seen", &store.statements.put_seen, values).await
            }
            TokenChange::Unregistered(token) => {
                protocol::unregistered(store, token.as_str(), token.kind().label(), ver).await
            }
            TokenChange::UserDeleted(user) => protocol::user_deleted(store, user.as_str(), ver).await,
        }
    }

    async fn tokens_of(&self, user: &UserId) -> Result<Vec<Registration>, StoreError> {
        let found = protocol::tokens_of(&*self.inner, user.as_str()).await?;
        found.into_iter().filter_map(|(token, state)| state.registration(&token).transpose()).collect()
    }

    async fn revoke(&self, token: &Token, judged: Judged, reason: &str) -> Result<bool, StoreError> {
        protocol::revoke(&*self.inner, token.as_str(), judged, reason).await
    }

    async fn inspect(&self, token: &Token) -> Result<Option<TokenRow>, StoreError> {
        const CONTEXT: &str = "inspect a token";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.token, (token.as_str(),)).await?;
        match first::<(Option<TokenCell>, Option<i64>)>(CONTEXT, &rows)? {
            Some((Some(state), seen_at)) => state.token_row(token.clone(), seen_at).map(Some),
            _ => Ok(None),
        }
    }

    async fn inspect_hash(&self, hash: TokenHash) -> Result<Option<TokenRow>, StoreError> {
        self.inner.find(hash).await
    }

    async fn census(&self) -> Result<Vec<Census>, StoreError> {
        self.inner.census().await
    }
}

impl Cells for CqlInner {
    type Place = Next;

    async fn row(&self, token: &str) -> Result<Option<TokenCell>, StoreError> {
        const CONTEXT: &str = "read a token";
        let rows = self.rows(CONTEXT, &self.statements.token, (token,)).await?;
        Ok(first::<(Option<TokenCell>, Option<i64>)>(CONTEXT, &rows)?.and_then(|(state, _)| state))
    }

    async fn put_row(&self, token: &str, state: &TokenCell) -> Result<(), StoreError> {
        const CONTEXT: &str = "write a token";
        if state.active {
            self.write(CONTEXT, &self.statements.put_token, (token, state, state.ver)).await
        } else {
            self.write(CONTEXT, &self.statements.put_token_for, (token, state, state.ver, INACTIVE_SECONDS))
                .await
        }
    }

    async fn hints(&self, of: Of<'_>, from: Option<Next>) -> Result<(Vec<Hint>, Option<Next>), StoreError> {
        const CONTEXT: &str = "read hints";
        let mut statement = of.reading(self).clone();
        statement.set_page_size(PAGE_OF_HINTS);
        let (rows, next) = self.page(CONTEXT, &statement, (of.name(),), from).await?;
        let hints = all::<(String, i64)>(CONTEXT, &rows)?.into_iter().map(|(token, ver)| Hint { token, ver });
        Ok((hints.collect(), next))
    }

    async fn put_hint(&self, of: Of<'_>, token: &str, ver: i64) -> Result<(), StoreError> {
        self.write("write a hint", of.writing(self), (of.name(), token, ver, ver)).await
    }

    async fn delete_hint(&self, of: Of<'_>, token: &str, at: i64) -> Result<(), StoreError> {
        self.write("delete a hint", of.deleting(self), (at, of.name(), token)).await
    }

    async fn deleted_at(&self, user: &str) -> Result<Option<i64>, StoreError> {
        const CONTEXT: &str = "look for a user's deletion";
        let rows = self.rows(CONTEXT, &self.statements.user_deleted, (user,)).await?;
        Ok(first::<(i64,)>(CONTEXT, &rows)?.map(|(ver,)| ver))
    }

    async fn put_deleted(&self, user: &str, ver: i64) -> Result<(), StoreError> {
        self.write("mark a user as deleted", &self.statements.put_user_deleted, (user, ver, ver)).await
    }
}

impl CqlInner {
    fn tell_of_a_crowd(&self, device: &DeviceId) {
        let mut told_at = self.crowd_told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|told_at| told_at.elapsed() >= CROWD_TOLD_EVERY) {
            *told_at = Some(Instant::now());
            tracing::warn!(
                device.id = %device,
                "Device {device} is named by more than {DEVICE_TOKENS_MAX} active tokens, so it is no single device: they do not replace each other"
            );
        }
    }
}

// === impl Of ===

impl Of<'_> {
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
    pub(super) fn registration(self, token: &str) -> Result<Option<Registration>, StoreError> {
        const CONTEXT: &str = "read a registration";
        if !self.active {
            return Ok(None);
        }
        let platform = match self.platform {
            Some(word) => Some(
                Platform::from_label(&word)
                    .ok_or_else(|| unreadable(CONTEXT, format!("the platform {word:?} is not known")))?,
            ),
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

    pub(super) fn token_row(self, token: Token, seen_at: Option<i64>) -> Result<TokenRow, StoreError> {
        let time =
            |micros: Option<i64>| micros.map(|micros| timestamp("read a token's times", micros)).transpose();
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
