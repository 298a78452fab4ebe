-- The tables of the embedded store. Times are microseconds since 1970 (UTC), versions those of the domain.
-- A migration that has been released is never edited: the next change is file 0002.

-- One row per token, the authority. position is the token's place on the ring: a 64-bit hash of it.
-- A row with no version has only been seen, never registered. Inactive rows name no user and no device.
-- inactive_since is our clock's time, not an event's: rows are forgotten by it.
CREATE TABLE tokens (
    position    INTEGER NOT NULL,
    push_token  TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    version     INTEGER,
    active      INTEGER NOT NULL,
    user_id     TEXT,
    platform    TEXT,
    device_id   TEXT,
    device_info TEXT,
    created_at  INTEGER,
    seen_at     INTEGER,
    reason      TEXT,
    inactive_since INTEGER,
    PRIMARY KEY (position, push_token)
) WITHOUT ROWID;
CREATE INDEX tokens_by_user ON tokens (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX tokens_by_age ON tokens (inactive_since) WHERE inactive_since IS NOT NULL;

-- Who holds a device: of all registrations that ever named it, with this kind of token, the latest one.
-- holders counts how many tokens held it so far, one after the other.
CREATE TABLE devices (
    device_id  TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    push_token TEXT    NOT NULL,
    holders    INTEGER NOT NULL,
    PRIMARY KEY (device_id, kind)
) WITHOUT ROWID;

-- Marks of deleted users: they catch registrations that arrive late.
CREATE TABLE users_deleted (user_id TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;

-- A broadcast that was stopped before it was planned has no spec.
CREATE TABLE broadcasts (
    broadcast_id TEXT PRIMARY KEY,
    spec         TEXT,
    parts        INTEGER,
    state        TEXT    NOT NULL,
    reason       TEXT,
    created_at   INTEGER NOT NULL,
    totalled_at  INTEGER
) WITHOUT ROWID;
CREATE INDEX broadcasts_by_age ON broadcasts (created_at);

-- open_tokens lie before the cursor and have no outcome yet: a JSON array, or nothing.
CREATE TABLE broadcast_parts (
    broadcast_id TEXT    NOT NULL,
    provider     TEXT    NOT NULL,
    part         INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    cursor       INTEGER,
    open_tokens  TEXT,
    done         INTEGER NOT NULL,
    finished     INTEGER NOT NULL,
    sent         INTEGER NOT NULL,
    dead         INTEGER NOT NULL,
    refused      INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    expired      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (broadcast_id, provider, part)
) WITHOUT ROWID;
CREATE INDEX broadcast_parts_by_age ON broadcast_parts (created_at);

-- A regimen that was removed keeps its row: the version holds off older definitions.
CREATE TABLE regimens (
    regimen_id    TEXT PRIMARY KEY,
    version       INTEGER NOT NULL,
    removed       INTEGER NOT NULL,
    profile_id    TEXT NOT NULL,
    user_id       TEXT NOT NULL,
    medicine_name TEXT NOT NULL,
    dosage        TEXT NOT NULL,
    timezone      TEXT NOT NULL,
    rule          TEXT NOT NULL,
    start_date    TEXT NOT NULL,
    end_date      TEXT,
    enabled       INTEGER NOT NULL
) WITHOUT ROWID;

-- Hints of when to look at a regimen. An empty payload = ask the regimen.
CREATE TABLE regimen_due (
    shard      INTEGER NOT NULL,
    due_at     INTEGER NOT NULL,
    regimen_id TEXT    NOT NULL,
    payload    TEXT    NOT NULL,
    PRIMARY KEY (shard, due_at, regimen_id, payload)
) WITHOUT ROWID;
CREATE INDEX regimen_due_by_age ON regimen_due (due_at);

CREATE TABLE due_marks (shard INTEGER PRIMARY KEY, opened INTEGER NOT NULL, handed INTEGER NOT NULL);

-- Who rings a dose, and what became of it.
CREATE TABLE dose_log (
    profile_id    TEXT    NOT NULL,
    regimen_id    TEXT    NOT NULL,
    schedule_time INTEGER NOT NULL,
    provider      TEXT    NOT NULL,
    owner         TEXT    NOT NULL,
    attempt       INTEGER NOT NULL,
    lease_until   INTEGER NOT NULL,
    outcome       TEXT,
    marked_at     INTEGER,
    sent          INTEGER NOT NULL DEFAULT 0,
    dead          INTEGER NOT NULL DEFAULT 0,
    refused       INTEGER NOT NULL DEFAULT 0,
    failed        INTEGER NOT NULL DEFAULT 0,
    expired       INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (profile_id, regimen_id, schedule_time, provider)
) WITHOUT ROWID;
CREATE INDEX dose_log_by_age ON dose_log (created_at);

CREATE TABLE routes (
    provider TEXT PRIMARY KEY,
    state    TEXT    NOT NULL,
    since    INTEGER NOT NULL,
    set_by   TEXT    NOT NULL,
    detail   TEXT    NOT NULL
) WITHOUT ROWID;
