-- What is kept of subscriptions. All of it changes in the same transactions as the log. The checksums are those of
-- sqlite_subscription_rows.py.

CREATE TABLE subscriptions (
    subscription_id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: what is left of one is not another's
    name            TEXT    NOT NULL UNIQUE,
    definition      TEXT    NOT NULL,  -- JSON, with the secret of a webhook in clear: it signs with it
    position        INTEGER NOT NULL,  -- events up to here are no part of it, where no lane says otherwise
    created_at_ns   INTEGER NOT NULL,
    pause           TEXT    NOT NULL,  -- JSON, [reason, at in ns] where the server itself paused it, else null
    checksum        INTEGER NOT NULL
) STRICT;

-- A topic of a subscription. Every event of it up to cursor is settled, but for those in open: [seq, attempts failed,
-- not due before, in ns] of each. No event above the cursor is.
CREATE TABLE subscription_lanes (
    subscription_id INTEGER NOT NULL REFERENCES subscriptions,
    topic_id        INTEGER NOT NULL REFERENCES topics,
    cursor          INTEGER NOT NULL,
    open            TEXT    NOT NULL,
    checksum        INTEGER NOT NULL,
    PRIMARY KEY (subscription_id, topic_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letters (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, so that readers can page by it
    subscription_id INTEGER NOT NULL REFERENCES subscriptions,
    seq             INTEGER NOT NULL REFERENCES events,
    attempts        INTEGER NOT NULL,
    error           TEXT    NOT NULL,
    at_ns           INTEGER NOT NULL,
    checksum        INTEGER NOT NULL,
    UNIQUE (subscription_id, seq)
) STRICT;
