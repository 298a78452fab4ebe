//! Tokens: how registrations, replacements and deletions are applied.
//!
//! A token's state is a function of the *set* of events that were applied, whatever their order. The event
//! with the highest version wins. If it names a user or a device it may still be revoked, at the odd version
//! above it: by the deletion of that user, if that is later, and by a later registration on that device. Both
//! leave markers (`users_deleted`, `devices`), which an event that arrives late finds, and both read the rows
//! that are there already. For the latter it does not matter that the later registration's own token may have
//! moved to another device since: `devices` keeps it.
//!
//! A device id that many tokens take from each other ("unknown", an emulator) identifies no device: its
//! tokens do not replace each other.

use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    EmbeddedStore,
    ring::{position, positions},
    values::{label, micros, parse_label, timestamp_if_any, unreadable},
};
use crate::{
    domain::{
        DeviceId, Judged, Platform, ProviderId, Registration, Timestamp, Token, TokenChange, TokenHash,
        TokenKind, UserId, Version, limits::DEVICE_TOKENS_MAX,
    },
    store::{Census, Registry, StoreResult, TokenRow},
};

const HOLDERS_MAX: i64 = DEVICE_TOKENS_MAX as i64;

/// The state that an event leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TokenState {
    version: Version,
    standing: TokenStanding,
}

/// In this order: of two events with the same version the greater state wins, and a message that is sent in
/// vain is better than one that is not sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TokenStanding {
    Inactive { reason: String },
    Active(Owner),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    user: Option<UserId>,
    platform: Option<&'static str>,
    device: Option<DeviceId>,
    device_info: Option<String>,
}

/// A row as it is before an event.
struct KnownToken {
    /// `None` = only seen, never registered.
    state: Option<TokenState>,
    created: Option<Timestamp>,
}

impl Registry for EmbeddedStore {
    async fn apply(&self, change: &TokenChange, version: Version) -> StoreResult<()> {
        let change = change.clone();
        self.write("apply a token event", move |db, now| match &change {
            TokenChange::Registered { token, user, platform, device, device_info, previous } => {
                let owner = Owner {
                    user: user.clone(),
                    platform: platform.map(Platform::label),
                    device: device.clone(),
                    device_info: device_info.clone(),
                };
                if let Some(device) = device {
                    take_device(db, device, token, version, now)?;
                }
                register(db, token, version, owner, now)?;
                match previous {
                    Some(previous) if previous != token => deactivate(db, previous, version, "replaced", now),
                    _ => Ok(()),
                }
            }
            TokenChange::Seen(token) => record_seen(db, token, version, now),
            TokenChange::Unregistered(token) => deactivate(db, token, version, "unregistered", now),
            TokenChange::UserDeleted(user) => delete_user(db, user, version, now),
        })
        .await
    }

    async fn tokens_of(&self, user: &UserId) -> StoreResult<Vec<Registration>> {
        let user = user.clone();
        self.read("read a user's tokens", move |db| {
            db.prepare_cached(&format!("SELECT {REGISTRATION} FROM tokens WHERE user_id = ?1 AND active"))?
                .query_and_then([user.as_str()], |row| registration(row, 0))?
                .collect()
        })
        .await
    }

    async fn revoke(&self, token: &Token, judged: Judged, reason: &str) -> StoreResult<bool> {
        let token = token.clone();
        let reason = reason.to_owned();
        self.write("revoke a token", move |db, now| {
            let current = known(db, &token)?.and_then(|known| known.state);
            match current {
                Some(TokenState { version, standing: TokenStanding::Active(_) }) if judged.names(version) => {
                    revoke_current(db, &token, &reason, now)?;
                    Ok(true)
                }
                _ => Ok(false),
            }
        })
        .await
    }

    async fn inspect(&self, token: &Token) -> StoreResult<Option<TokenRow>> {
        let token = token.clone();
        self.read("inspect a token", move |db| {
            db.prepare_cached(&format!(
                "SELECT {TOKEN_ROW} FROM tokens
                 WHERE position = ?1 AND push_token = ?2 AND version IS NOT NULL"
            ))?
            .query_row((position(&token), token.as_str()), token_row)
            .optional()
        })
        .await
    }

    async fn inspect_hash(&self, hash: TokenHash) -> StoreResult<Option<TokenRow>> {
        self.read("inspect a token by its hash", move |db| {
            let (low, high) = positions(hash);
            db.prepare_cached(&format!(
                "SELECT {TOKEN_ROW} FROM tokens WHERE position BETWEEN ?1 AND ?2 AND version IS NOT NULL"
            ))?
            .query_map((low, high), token_row)?
            .find(|row| row.as_ref().map_or(true, |row| row.token.hash() == hash))
            .transpose()
        })
        .await
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        self.read("count the tokens", |db| {
            let mut census = ProviderId::ALL.map(|provider| Census { provider, active: 0, inactive: 0 });
            let mut count = db.prepare(
                "SELECT kind, active, count(*) FROM tokens WHERE version IS NOT NULL GROUP BY kind, active",
            )?;
            let mut rows = count.query([])?;
            while let Some(row) = rows.next()? {
                let provider = label(row, 0, TokenKind::from_label)?.provider();
                let tokens = row.get::<_, i64>(2)?.unsigned_abs();
                for of in census.iter_mut().filter(|of| of.provider == provider) {
                    *if row.get(1)? { &mut of.active } else { &mut of.inactive } += tokens;
                }
            }
            Ok(census.to_vec())
        })
        .await
    }
}

// === events ===

/// Makes this token the holder of the device, unless a later registration holds it, and revokes the token
/// that held it.
fn take_device(
    db: &Connection,
    device: &DeviceId,
    token: &Token,
    version: Version,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let holder = holder(db, device, token.kind())?;
    if holder.as_ref().is_some_and(|holder| !holder.is_before(version, token)) {
        return Ok(());
    }
    let held_by_another = holder.as_ref().filter(|holder| holder.token != token.as_str());
    let holders = holder.as_ref().map_or(1, |holder| holder.holders) + i64::from(held_by_another.is_some());
    db.prepare_cached(
        "INSERT INTO devices (device_id, kind, version, position, push_token, holders)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET version = excluded.version, position = excluded.position,
             push_token = excluded.push_token, holders = excluded.holders",
    )?
    .execute((
        device.as_str(),
        token.kind().label(),
        version.as_i64(),
        position(token),
        token.as_str(),
        holders,
    ))?;
    let Some(before) = held_by_another else { return Ok(()) };
    if holders > HOLDERS_MAX {
        if before.holders == HOLDERS_MAX {
            tracing::warn!(
                device.id = %device,
                "Device {device} was held by {holders} tokens, so it is no single device: from now on they \
                 do not replace each other"
            );
        }
        return Ok(());
    }
    let before = Token::parse(&before.token).map_err(|error| unreadable(1, error))?;
    // It may have moved to another device since; then it stays active.
    match known(db, &before)?.and_then(|known| known.state) {
        Some(TokenState { standing: TokenStanding::Active(owner), .. })
            if owner.device.as_ref() == Some(device) =>
        {
            revoke_current(db, &before, "replaced", now)
        }
        _ => Ok(()),
    }
}

/// The token is this owner's, unless a later event was applied, or revoked at once if there is a marker that
/// is later.
fn register(
    db: &Connection,
    token: &Token,
    version: Version,
    owner: Owner,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let known = known(db, token)?;
    let created = version.happened_at();
    let first = known.as_ref().and_then(|known| known.created).map_or(created, |known| known.min(created));
    let registered = TokenState { version, standing: TokenStanding::Active(owner) };
    if supersedes(&registered, known.as_ref()) {
        let state = match revoked_because(db, token, &registered)? {
            Some(reason) => TokenState {
                version: version.revocation(),
                standing: TokenStanding::Inactive { reason: reason.to_owned() },
            },
            None => registered,
        };
        put(db, token, &state, Some(first), now)
    } else if known.is_some_and(|known| known.created != Some(first)) {
        db.prepare_cached("UPDATE tokens SET created_at = ?3 WHERE position = ?1 AND push_token = ?2")?
            .execute((position(token), token.as_str(), micros(first)))
            .map(drop)
    } else {
        Ok(())
    }
}

/// The token is inactive from this version on.
fn deactivate(
    db: &Connection,
    token: &Token,
    version: Version,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let known = known(db, token)?;
    let ended = TokenState { version, standing: TokenStanding::Inactive { reason: reason.to_owned() } };
    if supersedes(&ended, known.as_ref()) {
        put(db, token, &ended, known.and_then(|known| known.created), now)?;
    }
    Ok(())
}

/// Records when the app was opened, independently of the other columns. A token that was never registered is
/// removed after the same time as an inactive one.
fn record_seen(db: &Connection, token: &Token, version: Version, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO tokens (position, push_token, kind, active, seen_at, inactive_since)
         VALUES (?1, ?2, ?3, 0, ?4, ?5)
         ON CONFLICT DO UPDATE SET seen_at = excluded.seen_at
             WHERE seen_at IS NULL OR seen_at < excluded.seen_at",
    )?
    .execute((
        position(token),
        token.as_str(),
        token.kind().label(),
        micros(version.happened_at()),
        micros(now),
    ))
    .map(drop)
}

/// Marks the user as deleted and revokes the user's tokens; those that were registered later stay.
fn delete_user(db: &Connection, user: &UserId, version: Version, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO users_deleted (user_id, version) VALUES (?1, ?2)
         ON CONFLICT DO UPDATE SET version = max(version, excluded.version)",
    )?
    .execute((user.as_str(), version.as_i64()))?;
    db.prepare_cached(&format!("UPDATE tokens SET {REVOKED} WHERE user_id = ?3 AND active AND version < ?4"))?
        .execute(("userDeleted", micros(now), user.as_str(), version.as_i64()))
        .map(drop)
}

/// Whether an event's state replaces the one in the row.
fn supersedes(new: &TokenState, known: Option<&KnownToken>) -> bool {
    known.and_then(|known| known.state.as_ref()).is_none_or(|old| new > old)
}

/// Why a marker revokes a registration, if one does.
fn revoked_because(
    db: &Connection,
    token: &Token,
    registered: &TokenState,
) -> rusqlite::Result<Option<&'static str>> {
    let TokenStanding::Active(owner) = &registered.standing else { return Ok(None) };
    if let Some(user) = &owner.user {
        let deleted: Option<i64> = db
            .prepare_cached("SELECT version FROM users_deleted WHERE user_id = ?1")?
            .query_row([user.as_str()], |row| row.get(0))
            .optional()?;
        if deleted.is_some_and(|deleted| deleted > registered.version.as_i64()) {
            return Ok(Some("userDeleted"));
        }
    }
    if let Some(device) = &owner.device
        && let Some(holder) = holder(db, device, token.kind())?
        && holder.holders <= HOLDERS_MAX
        && !holder.is_before(registered.version, token)
        && holder.token != token.as_str()
    {
        return Ok(Some("replaced"));
    }
    Ok(None)
}

// === rows ===

struct Holder {
    version: i64,
    token: String,
    holders: i64,
}

impl Holder {
    /// Versions of different tokens may be equal; then the tokens are compared, so that the order of arrival
    /// makes no difference.
    fn is_before(&self, version: Version, token: &Token) -> bool {
        (self.version, self.token.as_str()) < (version.as_i64(), token.as_str())
    }
}

fn holder(db: &Connection, device: &DeviceId, kind: TokenKind) -> rusqlite::Result<Option<Holder>> {
    db.prepare_cached("SELECT version, push_token, holders FROM devices WHERE device_id = ?1 AND kind = ?2")?
        .query_row((device.as_str(), kind.label()), |row| {
            Ok(Holder { version: row.get(0)?, token: row.get(1)?, holders: row.get(2)? })
        })
        .optional()
}

fn known(db: &Connection, token: &Token) -> rusqlite::Result<Option<KnownToken>> {
    db.prepare_cached(
        "SELECT version, active, reason, user_id, platform, device_id, device_info, created_at
         FROM tokens WHERE position = ?1 AND push_token = ?2",
    )?
    .query_row((position(token), token.as_str()), |row| {
        let standing = if row.get(1)? {
            TokenStanding::Active(Owner {
                user: row.get::<_, Option<String>>(3)?.map(UserId::new),
                platform: platform(row, 4)?.map(Platform::label),
                device: row.get::<_, Option<String>>(5)?.map(DeviceId::new),
                device_info: row.get(6)?,
            })
        } else {
            TokenStanding::Inactive { reason: row.get::<_, Option<String>>(2)?.unwrap_or_default() }
        };
        let version: Option<i64> = row.get(0)?;
        let state = version.map(|version| TokenState { version: Version::from_i64(version), standing });
        Ok(KnownToken { state, created: timestamp_if_any(row, 7)? })
    })
    .optional()
}

fn put(
    db: &Connection,
    token: &Token,
    state: &TokenState,
    created: Option<Timestamp>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let no_owner = Owner::default();
    let (owner, reason) = match &state.standing {
        TokenStanding::Active(owner) => (owner, None),
        TokenStanding::Inactive { reason } => (&no_owner, Some(reason)),
    };
    db.prepare_cached(
        "INSERT INTO tokens (position, push_token, kind, version, active, user_id, platform, device_id,
             device_info, created_at, reason, inactive_since)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT DO UPDATE SET version = excluded.version, active = excluded.active,
             user_id = excluded.user_id, platform = excluded.platform, device_id = excluded.device_id,
             device_info = excluded.device_info, created_at = excluded.created_at, reason = excluded.reason,
             inactive_since = excluded.inactive_since",
    )?
    .execute((
        position(token),
        token.as_str(),
        token.kind().label(),
        state.version.as_i64(),
        reason.is_none(),
        owner.user.as_ref().map(UserId::as_str),
        owner.platform,
        owner.device.as_ref().map(DeviceId::as_str),
        &owner.device_info,
        created.map(micros),
        reason,
        reason.map(|_| micros(now)),
    ))
    .map(drop)
}

/// What a revocation writes: ?1 = reason, ?2 = now.
const REVOKED: &str = "version = version | 1, active = 0, user_id = NULL, platform = NULL, \
                       device_id = NULL, device_info = NULL, reason = ?1, inactive_since = ?2";

/// Revokes the registration in the token's row.
fn revoke_current(db: &Connection, token: &Token, reason: &str, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached(&format!("UPDATE tokens SET {REVOKED} WHERE position = ?3 AND push_token = ?4"))?
        .execute((reason, micros(now), position(token), token.as_str()))
        .map(drop)
}

const REGISTRATION: &str = "push_token, version, user_id, platform, device_id, device_info";

fn registration(row: &Row<'_>, first: usize) -> rusqlite::Result<Registration> {
    Ok(Registration {
        token: token(row, first)?,
        version: Version::from_i64(row.get(first + 1)?),
        user: row.get::<_, Option<String>>(first + 2)?.map(UserId::new),
        platform: platform(row, first + 3)?,
        device: row.get::<_, Option<String>>(first + 4)?.map(DeviceId::new),
        device_info: row.get(first + 5)?,
    })
}

const TOKEN_ROW: &str =
    "push_token, version, user_id, platform, device_id, device_info, active, reason, created_at, seen_at";

fn token_row(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    let registration = registration(row, 0)?;
    Ok(TokenRow {
        token: registration.token.clone(),
        version: registration.version,
        reason: row.get(7)?,
        created_at: timestamp_if_any(row, 8)?,
        seen_at: timestamp_if_any(row, 9)?,
        registration: row.get::<_, bool>(6)?.then_some(registration),
    })
}

pub(super) fn token(row: &Row<'_>, column: usize) -> rusqlite::Result<Token> {
    Token::parse(row.get_ref(column)?.as_str()?).map_err(|error| unreadable(column, error))
}

pub(super) fn platform(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Platform>> {
    row.get_ref(column)?
        .as_str_or_null()?
        .map(|text| parse_label(column, text, Platform::from_label))
        .transpose()
}
