//! The limits of the contract, each in one place: how large records may be, and how long what is kept.
//!
//! The README lists those that its readers meet; `schemas/events/` is generated from them.

use std::time::Duration;

// === Records ===

/// How far ahead of our clock the timestamp of a record about tokens or regimens may lie, in milliseconds.
/// One from far ahead would win over everything that is yet to come.
pub const AHEAD_MAX_MS: i64 = 5 * 60 * 1000;

/// Bytes of an identifier of upstream's: it becomes a part of keys, in Kafka and in the store.
pub const ID_BYTES_MAX: usize = 256;
/// Bytes of an identifier that is put together from several of upstream's, such as a dose's notification.
pub const LONG_ID_BYTES_MAX: usize = 1024;
/// Bytes of a text. More than any provider takes; posts' texts are cut later.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of `data` and of `deviceInfo`, as compact JSON: no provider takes a larger payload.
pub const DATA_BYTES_MAX: usize = 4096;

// === Tokens ===

/// Characters of a token, all of them ASCII.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Tokens that may name the same device: active ones in the CQL store, one after the other in the embedded
/// one. An id that more of them name is not that of a single device, and its tokens do not replace each
/// other.
pub const DEVICE_TOKENS_MAX: usize = 20;

// === Broadcasts ===

/// Bytes of a broadcast's title, and of its text: longer ones are cut. A phone shows a line of title and a
/// few of text; a provider takes 4 KiB for everything.
pub const POST_TITLE_BYTES_MAX: usize = 256;
/// See [`POST_TITLE_BYTES_MAX`].
pub const POST_BODY_BYTES_MAX: usize = 1024;
/// Users that a post may name: they become one row of the store, the broadcast's plan.
pub const AUDIENCE_USERS_MAX: usize = 100_000;
/// Users in one part of a broadcast to named users: one record of `push.<provider>.bulk`.
pub const LIST_USERS_MAX: usize = 500;
/// Slices that the token ring may be cut into, in a record. The setting `posts.slices` allows fewer.
pub const SLICES_MAX: u32 = 65_536;
/// Tickets in one record: as many as one request to Expo may ask receipts for.
pub const BATCH_TICKETS_MAX: usize = 1000;

// === Regimens ===

/// Doses of a regimen a day: every quarter of an hour.
pub const TIMES_A_DAY_MAX: usize = 96;
/// The largest n of "every n-th day": ten years.
pub const EVERY_DAYS_MAX: u32 = 3660;
/// Characters of a recurrence rule, all of them ASCII.
pub const RRULE_BYTES_MAX: usize = 512;
/// The largest COUNT of a recurrence rule: such a rule is counted from its start at every search.
pub const RRULE_COUNT_MAX: u32 = 10_000;

// === Retention in the store ===

/// An inactive token, after it became inactive. Longer than [`DEVICE_TOKENS_RETENTION`]: a replay of the
/// topic must still find the revocation, or it would register the dead token again.
pub const INACTIVE_TOKENS_KEPT: Duration = days(90);
/// When the app was last opened.
pub const SEEN_KEPT: Duration = days(400);
/// A broadcast, its parts and its total: from their creation in the embedded store, from their last write in
/// the CQL store.
pub const BROADCASTS_KEPT: Duration = days(30);
/// A row of the due queue, after its time. Longer than an outage after which doses are still sent.
pub const DUE_ROWS_KEPT: Duration = days(7);
/// The claim and the outcome of a dose.
pub const DOSES_KEPT: Duration = days(400);

// === Retention in Kafka ===

/// `device-tokens`.
pub const DEVICE_TOKENS_RETENTION: Duration = days(30);
/// `posts-created`.
pub const POSTS_CREATED_RETENTION: Duration = days(7);
/// `medication-regimens`.
pub const MEDICATION_REGIMENS_RETENTION: Duration = days(30);
/// `medication-ticks`: an older tick is of no use, since a later one covers it.
pub const MEDICATION_TICKS_RETENTION: Duration = days(1);
/// `push.<provider>.<lane>`. A job must not be deleted before it expires: a longer `push.bulk_life` or
/// `push.urgent_life` needs a longer retention.
pub const PUSH_RETENTION: Duration = days(3);
/// `expo-receipts`: longer than Expo keeps receipts, which is a day.
pub const EXPO_RECEIPTS_RETENTION: Duration = days(3);
/// `invalid-tokens`.
pub const INVALID_TOKENS_RETENTION: Duration = days(7);
/// `push-outcomes`: how long its consumers may be down.
pub const PUSH_OUTCOMES_RETENTION: Duration = days(7);
/// `dead-letters`: how long an operator has to correct a mistake and replay its records.
pub const DEAD_LETTERS_RETENTION: Duration = days(30);

const _: () = assert!(INACTIVE_TOKENS_KEPT.as_secs() > DEVICE_TOKENS_RETENTION.as_secs());

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 60 * 60)
}
