//! Every statement, prepared once at the start.
//!
//! A statement has a kind, a name and a text. The kind decides how it is executed, and whether it may be
//! executed twice: all may but the conditional ones, because every other write carries its timestamp.

use std::collections::HashMap;

use scylla::{client::session::Session, errors::PrepareError, statement::prepared::PreparedStatement};

use super::{dialect::Server, session::Profiles};

/// How a statement is executed.
enum StatementKind {
    Read,
    Write,
    Scan,
    /// A conditional write.
    Cas,
    /// A read that sees every conditional write that was done.
    Serial,
}

macro_rules! statements {
    ($($kind:ident $name:ident = $text:literal;)+) => {
        /// The statements.
        pub(super) struct Statements {
            $(pub $name: PreparedStatement,)+
        }

        impl Statements {
            /// Prepares all of them.
            ///
            /// # Errors
            /// The cluster is unreachable, or a table is not as this release knows it.
            pub(super) async fn prepare(
                session: &Session,
                profiles: &Profiles,
                placeholders: &HashMap<&str, String>,
            ) -> Result<Self, PrepareError> {
                Ok(Self {$(
                    $name: prepare(session, profiles, StatementKind::$kind, &fill(placeholders, $text))
                        .await?,
                )+})
            }
        }
    };
}

statements! {
    // --- tokens
    Read   token = "SELECT st, seen_at FROM $push.tokens WHERE push_token = ?";
    Write  put_token = "INSERT INTO $push.tokens (push_token, st) VALUES (?, ?) USING TIMESTAMP ?";
    Write  put_token_for =
        "INSERT INTO $push.tokens (push_token, st) VALUES (?, ?) USING TIMESTAMP ? AND TTL ?";
    Write  put_seen =
        "UPDATE $push.tokens USING TIMESTAMP ? AND TTL ? SET seen_at = ? WHERE push_token = ?";
    Scan   tokens_between =
        "SELECT token(push_token), push_token, st FROM $push.tokens
         WHERE token(push_token) >= ? AND token(push_token) <= ?$scan";
    Scan   rows_between =
        "SELECT push_token, st, seen_at FROM $push.tokens
         WHERE token(push_token) >= ? AND token(push_token) <= ?$scan";
    Read   hints_of_user = "SELECT push_token, ver FROM $push.tokens_by_user WHERE user_id = ?";
    Write  put_hint_of_user =
        "INSERT INTO $push.tokens_by_user (user_id, push_token, ver) VALUES (?, ?, ?) USING TIMESTAMP ?";
    Write  delete_hint_of_user =
        "DELETE FROM $push.tokens_by_user USING TIMESTAMP ? WHERE user_id = ? AND push_token = ?";
    Read   hints_of_device = "SELECT push_token, ver FROM $push.tokens_by_device WHERE device_id = ?";
    Write  put_hint_of_device =
        "INSERT INTO $push.tokens_by_device (device_id, push_token, ver) VALUES (?, ?, ?) USING TIMESTAMP ?";
    Write  delete_hint_of_device =
        "DELETE FROM $push.tokens_by_device USING TIMESTAMP ? WHERE device_id = ? AND push_token = ?";
    Read   user_deleted = "SELECT ver FROM $push.users_deleted WHERE user_id = ?";
    Write  put_user_deleted =
        "INSERT INTO $push.users_deleted (user_id, ver) VALUES (?, ?) USING TIMESTAMP ?";

    // --- broadcasts
    Read   broadcast = "SELECT state, reason FROM $push.broadcasts WHERE broadcast_id = ?";
    Write  put_state =
        "UPDATE $push.broadcasts USING TIMESTAMP ? AND TTL ? SET state = ? WHERE broadcast_id = ?";
    Write  put_state_and_reason =
        "UPDATE $push.broadcasts USING TIMESTAMP ? AND TTL ? SET state = ?, reason = ?
         WHERE broadcast_id = ?";
    Read   plan = "SELECT spec, parts FROM $lwt.broadcast_plans WHERE broadcast_id = ?";
    Serial plan_now = "SELECT spec, parts FROM $lwt.broadcast_plans WHERE broadcast_id = ?";
    Cas    insert_plan =
        "INSERT INTO $lwt.broadcast_plans (broadcast_id, spec, parts, created_at) VALUES (?, ?, ?, ?)
         IF NOT EXISTS USING TTL ?";
    Serial part_now =
        "SELECT epoch, cursor, open_tokens, done, sent, dead, refused, failed, expired
         FROM $lwt.broadcast_parts WHERE broadcast_id = ? AND provider = ? AND part = ?";
    Read   part =
        "SELECT sent, dead, refused, failed, expired FROM $lwt.broadcast_parts
         WHERE broadcast_id = ? AND provider = ? AND part = ?";
    Cas    insert_part =
        "INSERT INTO $lwt.broadcast_parts
         (broadcast_id, provider, part, epoch, cursor, done, sent, dead, refused, failed, expired)
         VALUES (?, ?, ?, 1, ?, false, 0, 0, 0, 0, 0) IF NOT EXISTS USING TTL ?";
    Cas    take_over =
        "UPDATE $lwt.broadcast_parts USING TTL ? SET epoch = ?
         WHERE broadcast_id = ? AND provider = ? AND part = ?
         IF epoch = ? AND done = false AND cursor = ?
         AND sent = ? AND dead = ? AND refused = ? AND failed = ? AND expired = ?";
    Cas    checkpoint =
        "UPDATE $lwt.broadcast_parts USING TTL ?
         SET cursor = ?, open_tokens = ?, done = ?, sent = ?, dead = ?, refused = ?, failed = ?, expired = ?
         WHERE broadcast_id = ? AND provider = ? AND part = ?
         IF epoch = ? AND done = false AND cursor <= ? AND sent <= ? AND dead <= ?";
    Write  put_finished =
        "INSERT INTO $push.broadcast_done (broadcast_id, provider, part) VALUES (?, ?, ?)
         USING TIMESTAMP 1 AND TTL ?";
    Read   count_finished = "SELECT count(*) FROM $push.broadcast_done WHERE broadcast_id = ?";
    Read   finished = "SELECT provider, part FROM $push.broadcast_done WHERE broadcast_id = ?";
    Serial total_now = "SELECT totalled_at FROM $lwt.broadcast_totals WHERE broadcast_id = ?";
    Cas    insert_total =
        "INSERT INTO $lwt.broadcast_totals (broadcast_id, totalled_at) VALUES (?, ?)
         IF NOT EXISTS USING TTL ?";

    // --- doses
    Read   regimen = "SELECT st FROM $push.regimens WHERE regimen_id = ?";
    Write  put_regimen = "INSERT INTO $push.regimens (regimen_id, st) VALUES (?, ?) USING TIMESTAMP ?";
    Scan   all_regimens = "SELECT token(regimen_id), regimen_id, st FROM $push.regimens";
    Scan   regimens_from =
        "SELECT token(regimen_id), regimen_id, st FROM $push.regimens WHERE token(regimen_id) >= token(?)";
    Write  put_due =
        "INSERT INTO $push.regimen_due (shard, hour, due_at, regimen_id, payload_hash, payload)
         VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP 1 AND TTL ?";
    Read   due_after =
        "SELECT due_at, regimen_id, payload FROM $push.regimen_due
         WHERE shard = ? AND hour = ? AND due_at > ? AND due_at <= ? LIMIT ?";
    Read   due_past =
        "SELECT due_at, regimen_id, payload FROM $push.regimen_due
         WHERE shard = ? AND hour = ? AND (due_at, regimen_id, payload_hash) > (?, ?, ?)
         AND (due_at) <= (?) LIMIT ?";
    Read   watermarks = "SELECT opened, handed FROM $push.due_marks WHERE shard = ?";
    Write  put_read = "UPDATE $push.due_marks USING TIMESTAMP ? SET opened = ? WHERE shard = ?";
    Write  put_dispatched = "UPDATE $push.due_marks USING TIMESTAMP ? SET handed = ? WHERE shard = ?";
    Serial dose_now =
        "SELECT owner, attempt, lease_until, outcome, marked_at, sent, dead, refused, failed, expired
         FROM $lwt.dose_log
         WHERE profile_id = ? AND regimen_id = ? AND schedule_time = ? AND provider = ?";
    Cas    insert_claim =
        "INSERT INTO $lwt.dose_log
         (profile_id, regimen_id, schedule_time, provider, owner, attempt, lease_until, created_at)
         VALUES (?, ?, ?, ?, ?, 1, ?, ?) IF NOT EXISTS USING TTL ?";
    Cas    take_claim =
        "UPDATE $lwt.dose_log USING TTL ? SET owner = ?, attempt = ?, lease_until = ?
         WHERE profile_id = ? AND regimen_id = ? AND schedule_time = ? AND provider = ?
         IF owner = ? AND attempt = ? AND marked_at = null";
    Cas    mark_claim =
        "UPDATE $lwt.dose_log USING TTL ?
         SET outcome = ?, marked_at = ?, sent = ?, dead = ?, refused = ?, failed = ?, expired = ?
         WHERE profile_id = ? AND regimen_id = ? AND schedule_time = ? AND provider = ?
         IF owner = ? AND attempt = ? AND marked_at = null";

    // --- routes, and the ping
    Read   route =
        "SELECT state, since, set_by, detail, writetime(state) FROM $push.routes WHERE provider = ?";
    Write  put_route =
        "INSERT INTO $push.routes (provider, state, since, set_by, detail) VALUES (?, ?, ?, ?, ?)
         USING TIMESTAMP ?";
    Read   ping = "SELECT version FROM $push.schema_versions WHERE version = ?";
}

/// The values of the placeholders in statements, which begin with a `$` there.
pub(super) fn placeholders(server: Server, push: &str, lwt: &str) -> HashMap<&'static str, String> {
    HashMap::from([("push", push.to_owned()), ("lwt", lwt.to_owned()), ("scan", server.scan().to_owned())])
}

/// Replaces the placeholders of a statement by their values. One without a value stays, for the server to
/// reject.
pub(super) fn fill(placeholders: &HashMap<&str, String>, text: &str) -> String {
    let mut pieces = text.split('$');
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        match placeholders.get(name) {
            Some(value) => filled.push_str(value),
            None => filled.extend(["$", name]),
        }
        filled.push_str(rest);
    }
    filled
}

async fn prepare(
    session: &Session,
    profiles: &Profiles,
    kind: StatementKind,
    text: &str,
) -> Result<PreparedStatement, PrepareError> {
    let mut statement = session.prepare(text).await?;
    let profile = match kind {
        StatementKind::Read => &profiles.read,
        StatementKind::Write => &profiles.write,
        StatementKind::Scan => &profiles.scan,
        StatementKind::Cas => &profiles.cas,
        StatementKind::Serial => &profiles.serial,
    };
    statement.set_execution_profile_handle(Some(profile.clone()));
    statement.set_is_idempotent(!matches!(kind, StatementKind::Cas));
    Ok(statement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced() {
        let placeholders = HashMap::from([("push", "p".to_owned()), ("scan", " Z".to_owned())]);
        assert_eq!(fill(&placeholders, "a $push.b = ?$scan"), "a p.b = ? Z");
        assert_eq!(fill(&placeholders, "$push$scan"), "p Z");
        assert_eq!(fill(&placeholders, "$pushed, no value"), "$pushed, no value");
    }
}
