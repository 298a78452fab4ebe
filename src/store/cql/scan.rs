//! The token ring, read in order of position: a position is the server's partitioner hash of a token.
//!
//! A cursor is a position, never the server's paging state: it stays valid when the process, the node or the
//! release changes. Pages end between positions only, because two tokens may share one and a cursor could not
//! tell them apart.

use futures::future::try_join_all;
use scylla::statement::prepared::PreparedStatement;

use super::{
    CqlInner, CqlStore,
    errors::{corrupt, row_name},
    execute::all,
    tokens::TokenCell,
};
use crate::{
    domain::{Cursor, Listeners, ProviderId, Slice, Token, TokenHash, TokenKind, UserId},
    store::{Audience, Census, Page, StoreResult, TokenRow},
};

/// Rows in a page of the server's.
const PAGE_MIN: usize = 100;
const PAGE_MAX: usize = 1_000;
/// The most rows that are read for a page of an audience, so that it is returned in time where few tokens
/// belong to the audience.
const ROWS_READ_MAX: usize = 20_000;
/// The whole table is read in pieces, several concurrently.
const PIECES: u32 = 256;
const PIECES_AT_ONCE: usize = 8;

impl Audience for CqlStore {
    async fn page_of_slice(
        &self,
        provider: ProviderId,
        slice: Slice,
        to: &Listeners,
        after: Option<Cursor>,
        limit: usize,
    ) -> StoreResult<Page> {
        const CONTEXT: &str = "read a page of tokens";
        let mut page =
            Page { recipients: Vec::new(), positions: Vec::new(), end: Cursor(slice.bounds().1), last: true };
        let Some((start, high)) = slice.after(after) else { return Ok(page) };
        let limit = limit.max(1);
        // One more than the limit: the next one's position tells whether the page may end before it.
        let mut statement = self.inner.statements.tokens_between.clone();
        set_page(&mut statement, limit + 1);
        let mut end = start;
        let mut rows_read = 0;
        let mut from = None;
        loop {
            let (rows, next) = self.inner.page(CONTEXT, &statement, (start, high), from).await?;
            let rows = rows
                .rows::<(i64, &str, Option<TokenCell>)>()
                .map_err(|err| corrupt(|| row_after(end), err))?;
            for row in rows {
                let (position, token, state) = row.map_err(|err| corrupt(|| row_after(end), err))?;
                let full = page.recipients.len() >= limit || rows_read >= ROWS_READ_MAX;
                if full && position != end {
                    let end =
                        if page.recipients.len() >= limit { page.positions.last().copied() } else { None };
                    return Ok(Page { end: end.unwrap_or(Cursor(position - 1)), last: false, ..page });
                }
                end = position;
                rows_read += 1;
                let Some(state) = state.filter(|state| state.provider() == Some(provider)) else { continue };
                if let Some(registration) = state.registration(token)?
                    && to.include(registration.user.as_ref().map(UserId::as_str))
                {
                    page.recipients.push(registration.into());
                    page.positions.push(Cursor(position));
                }
            }
            if next.is_none() {
                return Ok(page);
            }
            from = next;
            let found = page.recipients.len();
            set_page(&mut statement, rows_for(limit - found.min(limit), found, rows_read) + 1);
        }
    }
}

/// Names the next row after a position.
fn row_after(position: i64) -> String {
    row_name("tokens", format_args!("after position {position}"))
}

/// How many rows are likely to hold `wanted` more recipients, when `rows_read` held `found`.
fn rows_for(wanted: usize, found: usize, rows_read: usize) -> usize {
    wanted * rows_read / found.max(1)
}

impl CqlInner {
    /// The token of which only the hash is known. Rows are not found by hashes, so all of them are read.
    pub(super) async fn find(&self, hash: TokenHash) -> StoreResult<Option<TokenRow>> {
        let found = self
            .scan("inspect a token by its hash", |found: &mut Option<TokenRow>, token, state, seen_at| {
                if let Ok(token) = Token::parse(token)
                    && token.hash() == hash
                {
                    *found = Some(state.token_row(token, seen_at)?);
                }
                Ok(())
            })
            .await?;
        Ok(found.into_iter().flatten().next())
    }

    /// Counts all tokens.
    pub(super) async fn census(&self) -> StoreResult<Vec<Census>> {
        let pieces = self
            .scan("count the tokens", |counted: &mut [(u64, u64); ProviderId::ALL.len()], _, state, _| {
                for (provider, (active, inactive)) in ProviderId::ALL.into_iter().zip(counted) {
                    if state.provider() == Some(provider) {
                        *if state.active { active } else { inactive } += 1;
                    }
                }
                Ok(())
            })
            .await?;
        let sum =
            |of: usize| pieces.iter().fold((0, 0), |sum, piece| (sum.0 + piece[of].0, sum.1 + piece[of].1));
        let census = ProviderId::ALL.into_iter().enumerate().map(|(of, provider)| {
            let (active, inactive) = sum(of);
            Census { provider, active, inactive }
        });
        Ok(census.collect())
    }

    /// Calls `collect` with every row; returns what it collected, a value for each piece of the table.
    async fn scan<T: Default + Send>(
        &self,
        context: &'static str,
        collect: impl Fn(&mut T, &str, TokenCell, Option<i64>) -> StoreResult<()> + Sync,
    ) -> StoreResult<Vec<T>> {
        let mut collected = Vec::new();
        let pieces: Vec<u32> = (0..PIECES).collect();
        for at_once in pieces.chunks(PIECES_AT_ONCE) {
            let reads = at_once.iter().map(|index| self.scan_piece(context, *index, &collect));
            collected.extend(try_join_all(reads).await?);
        }
        Ok(collected)
    }

    async fn scan_piece<T: Default + Send>(
        &self,
        context: &'static str,
        index: u32,
        collect: &(impl Fn(&mut T, &str, TokenCell, Option<i64>) -> StoreResult<()> + Sync),
    ) -> StoreResult<T> {
        let mut statement = self.statements.rows_between.clone();
        set_page(&mut statement, PAGE_MAX);
        let name = || row_name("tokens", format_args!("in piece {index} of {PIECES}"));
        let mut collected = T::default();
        let mut from = None;
        loop {
            let (rows, next) =
                self.page(context, &statement, Slice { index, of: PIECES }.bounds(), from).await?;
            for (token, state, seen_at) in all::<(&str, Option<TokenCell>, Option<i64>)>(&rows, name)? {
                if let Some(state) = state {
                    collect(&mut collected, token, state, seen_at)?;
                }
            }
            if next.is_none() {
                return Ok(collected);
            }
            from = next;
        }
    }
}

impl TokenCell {
    /// The provider that delivers to this token; `None` = its kind is not known.
    fn provider(&self) -> Option<ProviderId> {
        TokenKind::from_label(&self.kind).map(TokenKind::provider)
    }
}

fn set_page(statement: &mut PreparedStatement, rows: usize) {
    statement.set_page_size(i32::try_from(rows.clamp(PAGE_MIN, PAGE_MAX)).unwrap_or(i32::MAX));
}
