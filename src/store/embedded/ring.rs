//! The token ring: the position of each token, and how a slice of it is read.

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::{
    EmbeddedStore,
    tokens::{platform, token},
};
use crate::{
    domain::{Cursor, Listeners, ProviderId, Recipient, Slice, Token, TokenHash, TokenKind, UserId, Version},
    store::{Audience, Page, StoreResult},
};

/// The most rows that memory is reserved for before a page is read.
const RESERVED_MAX: usize = 1_000;

impl Audience for EmbeddedStore {
    async fn page_of_slice(
        &self,
        provider: ProviderId,
        slice: Slice,
        to: &Listeners,
        after: Option<Cursor>,
        limit: usize,
    ) -> StoreResult<Page> {
        let to = to.clone();
        self.read("read a page of tokens", move |db| page(db, provider, slice, &to, after, limit.max(1)))
            .await
    }
}

/// A token's position on the ring: the first 8 bytes of its SHA-256. No token has the smallest number, as in
/// CQL.
pub(super) fn position(token: &Token) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(token.as_str().as_bytes())[..8]);
    i64::from_be_bytes(first).max(i64::MIN + 1)
}

/// The positions that tokens with this hash may have: hash and position begin with the same bits.
pub(super) fn positions(hash: TokenHash) -> (i64, i64) {
    let first = u64::from_str_radix(&hash.to_string(), 16).unwrap_or_default() << 16;
    (first.cast_signed(), (first | 0xffff).cast_signed())
}

fn page(
    db: &Connection,
    provider: ProviderId,
    slice: Slice,
    to: &Listeners,
    after: Option<Cursor>,
    limit: usize,
) -> rusqlite::Result<Page> {
    let mut page =
        Page { recipients: Vec::new(), positions: Vec::new(), end: Cursor(slice.bounds().1), last: true };
    let Some((start, high)) = slice.after(after) else { return Ok(page) };
    // Tokens that do not belong to the audience are filtered here: SQLite compares a column for a fraction of
    // what it costs to return it.
    let [kind, other_kind] = kinds(provider).map(TokenKind::label);
    let exclude = to.exclude.as_ref().map(UserId::as_str);
    let mut scan = db.prepare_cached(
        "SELECT position, push_token, version, platform FROM tokens
         WHERE position >= ?1 AND position <= ?2 AND active AND kind IN (?3, ?4)
           AND (?5 OR user_id IS NOT NULL) AND (?6 IS NULL OR user_id IS NOT ?6)
         ORDER BY position, push_token",
    )?;
    let mut rows = scan.query((start, high, kind, other_kind, to.include_anonymous, exclude))?;
    page.recipients.reserve(limit.min(RESERVED_MAX));
    page.positions.reserve(limit.min(RESERVED_MAX));
    let mut end = start;
    while let Some(row) = rows.next()? {
        let position = row.get(0)?;
        // Two tokens on one position stay together: the cursor could not tell them apart.
        if page.recipients.len() >= limit && position != end {
            return Ok(Page { end: Cursor(end), last: false, ..page });
        }
        page.recipients.push(Recipient {
            token: token(row, 1)?,
            version: Version::from_i64(row.get(2)?),
            platform: platform(row, 3)?,
        });
        page.positions.push(Cursor(position));
        end = position;
    }
    Ok(page)
}

/// The kinds of tokens that this provider delivers to; a single one is repeated.
fn kinds(provider: ProviderId) -> [TokenKind; 2] {
    match provider {
        ProviderId::Expo => [TokenKind::Expo; 2],
        ProviderId::Fcm => [TokenKind::Fcm, TokenKind::Fid],
    }
}
