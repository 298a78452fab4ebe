//! The ring of tokens, read in order of position: a position is what the server's partitioner makes of a
//! token.
//!
//! A cursor is a position, never the server's paging state: it outlives a process, a node and a release.
//! Pages are cut between positions only, because two tokens may share one and a cursor could not tell them
//! apart.

use futures::future::try_join_all;
use scylla::statement::prepared::PreparedStatement;

use super::{
    CqlInner, CqlStore,
    execute::{all, unreadable},
    tokens::TokenCell,
};
use crate::{
    domain::{Cursor, Listeners, ProviderId, Slice, Token, TokenHash, TokenKind, UserId},
    store::{Audience, Census, Page, StoreError, TokenRow},
};

/// Rows that the server is asked for at once.
const PAGE_MIN: usize = 100;
const PAGE_MAX: usize = 1_000;
/// A page of an audience looks at that many rows at most, so that it ends in time where hardly anybody is
/// meant.
const LOOKED_AT_MAX: usize = 20_000;
/// The whole table is read in pieces, so many at once.
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
    ) -> Result<Page, StoreError> {
        const CONTEXT: &str = "read a page of tokens";
        let mut page =
            Page { recipients: Vec::new(), positions: Vec::new(), end: Cursor(slice.bounds().1), last: true };
        let Some((start, high)) = slice.after(after) else { return Ok(page) };
        let limit = limit.max(1);
        // One more than are wanted: the next one's position says whether the page may end before it.
        let mut statement = self.inner.statements.tokens_between.clone();
        set_page(&mut statement, limit + 1);
        let (mut end, mut looked_at, mut from) = (start, 0, None);
        loop {
            let (rows, next) = self.inner.page(CONTEXT, &statement, (start, high), from).await?;
            let rows =
                rows.rows::<(i64, &str, Option<TokenCell>)>().map_err(|err| unreadable(CONTEXT, err))?;
            for row in rows {
                let (position, token, state) = row.map_err(|err| unreadable(CONTEXT, err))?;
                let full = page.recipients.len() >= limit || looked_at >= LOOKED_AT_MAX;
                if full && position != end {
                    let end =
                        if page.recipients.len() >= limit { page.positions.last().copied() } else { None };
                    return Ok(Page { end: end.unwrap_or(Cursor(position - 1)), last: false, ..page });
                }
                (end, looked_at) = (position, looked_at + 1);
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
            set_page(
                &mut statement,
                rows_for(limit - page.recipients.len().min(limit), page.recipients.len(), looked_at) + 1,
            );
        }
    }
}

/// How many rows hold as many recipients as are still wanted, after so many in the rows that were looked at.
fn rows_for(wanted: usize, found: usize, looked_at: usize) -> usize {
    wanted * looked_at / found.max(1)
}

impl CqlInner {
    /// The token of which only the hash is known. The ring does not know hashes, so all of it is read.
    pub(super) async fn find(&self, hash: TokenHash) -> Result<Option<TokenRow>, StoreError> {
        let found = self
            .everywhere(
                "inspect a token by its hash",
                |found: &mut Option<TokenRow>, token, state, seen_at| {
                    if let Ok(token) = Token::parse(token)
                        && token.hash() == hash
                    {
                        *found = Some(state.token_row(token, seen_at)?);
                    }
                    Ok(())
                },
            )
            .await?;
        Ok(found.into_iter().flatten().next())
    }

    /// Counts all tokens.
    pub(super) async fn census(&self) -> Result<Vec<Census>, StoreError> {
        let pieces = self
            .everywhere(
                "count the tokens",
                |counted: &mut [(u64, u64); ProviderId::ALL.len()], _, state, _| {
                    for (provider, (active, inactive)) in ProviderId::ALL.into_iter().zip(counted) {
                        if state.provider() == Some(provider) {
                            *if state.active { active } else { inactive } += 1;
                        }
                    }
                    Ok(())
                },
            )
            .await?;
        let sum =
            |of: usize| pieces.iter().fold((0, 0), |sum, piece| (sum.0 + piece[of].0, sum.1 + piece[of].1));
        let census = ProviderId::ALL.into_iter().enumerate().map(|(of, provider)| {
            let (active, inactive) = sum(of);
            Census { provider, active, inactive }
        });
        Ok(census.collect())
    }

    /// Shows every row to `look`, which collects; answers with what it collected, piece by piece.
    async fn everywhere<T: Default + Send>(
        &self,
        context: &'static str,
        look: impl Fn(&mut T, &str, TokenCell, Option<i64>) -> Result<(), StoreError> + Sync,
    ) -> Result<Vec<T>, StoreError> {
        let mut collected = Vec::new();
        let pieces: Vec<u32> = (0..PIECES).collect();
        for at_once in pieces.chunks(PIECES_AT_ONCE) {
            collected
                .extend(try_join_all(at_once.iter().map(|index| self.piece(context, *index, &look))).await?);
        }
        Ok(collected)
    }

    async fn piece<T: Default + Send>(
        &self,
        context: &'static str,
        index: u32,
        look: &(impl Fn(&mut T, &str, TokenCell, Option<i64>) -> Result<(), StoreError> + Sync),
    ) -> Result<T, StoreError> {
        let mut statement = self.statements.rows_between.clone();
        set_page(&mut statement, PAGE_MAX);
        let (mut collected, mut from) = (T::default(), None);
        loop {
            let (rows, next) =
                self.page(context, &statement, Slice { index, of: PIECES }.bounds(), from).await?;
            for (token, state, seen_at) in all::<(&str, Option<TokenCell>, Option<i64>)>(context, &rows)? {
                if let Some(state) = state {
                    look(&mut collected, token, state, seen_at)?;
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
    /// Who delivers to it.
    fn provider(&self) -> Option<ProviderId> {
        TokenKind::from_label(&self.kind).map(TokenKind::provider)
    }
}

fn set_page(statement: &mut PreparedStatement, rows: usize) {
    statement.set_page_size(i32::try_from(rows.clamp(PAGE_MIN, PAGE_MAX)).unwrap_or(i32::MAX));
}
