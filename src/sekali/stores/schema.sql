-- The log is append only and is the truth: a row of events never changes, and seq has no gaps.

CREATE TABLE log (
    only         INTEGER PRIMARY KEY CHECK (only = 1),
    log_id       TEXT    NOT NULL,  -- names this log; empty in a backup, which gets a new one when it is opened
    received     INTEGER NOT NULL DEFAULT 0,  -- counts of all time, committed with the events
    stored       INTEGER NOT NULL DEFAULT 0,
    duplicate    INTEGER NOT NULL DEFAULT 0,
    conflict     INTEGER NOT NULL DEFAULT 0,
    commits      INTEGER NOT NULL DEFAULT 0  -- one with nothing in it changes this, so that it reaches the disk
) STRICT;

CREATE TABLE topics (
    topic_id          INTEGER PRIMARY KEY,
    topic             TEXT    NOT NULL UNIQUE,
    stored            INTEGER NOT NULL,
    duplicates        INTEGER NOT NULL,
    conflicts         INTEGER NOT NULL,
    first_seq         INTEGER NOT NULL,
    last_seq          INTEGER NOT NULL,
    last_timestamp_ns INTEGER NOT NULL  -- the latest event time
) STRICT;

CREATE TABLE events (
    seq             INTEGER PRIMARY KEY,
    topic_id        INTEGER NOT NULL REFERENCES topics,
    event_id        TEXT    NOT NULL,
    timestamp_ns    INTEGER NOT NULL,
    processed_at_ns INTEGER NOT NULL,
    source          TEXT    NOT NULL,
    source_seq      INTEGER,
    payload         BLOB    NOT NULL, -- JSON in UTF-8, the bytes that were sent
    checksum        INTEGER NOT NULL DEFAULT 0  -- of the other columns, see checksum.py
) STRICT;

-- Each index ends with seq, because seq is the row's own key. Identities are found through the dedup index, which is
-- no part of this file: a B-tree over random ids would make every insert touch a page that is not in memory.
CREATE INDEX events_by_topic ON events (topic_id);
CREATE INDEX events_by_time ON events (timestamp_ns);
CREATE INDEX events_by_topic_time ON events (topic_id, timestamp_ns);

CREATE TABLE duplicates (
    seq        INTEGER PRIMARY KEY REFERENCES events,
    count      INTEGER NOT NULL,
    last_at_ns INTEGER NOT NULL
) STRICT;

CREATE TABLE conflicts (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,  -- a number is never used again, so that readers can page by it
    seq          INTEGER NOT NULL REFERENCES events,
    content_hash BLOB    NOT NULL,
    source       TEXT    NOT NULL,
    payload      BLOB    NOT NULL,
    count        INTEGER NOT NULL,
    first_at_ns  INTEGER NOT NULL,
    last_at_ns   INTEGER NOT NULL,
    UNIQUE (seq, content_hash)
) STRICT;

-- Sources that number their events (source_seq), counted by each commit that has such events. What came of the numbers
-- is kept as ranges without gaps; where they come in order there is one.
CREATE TABLE sources (
    topic_id   INTEGER NOT NULL REFERENCES topics,
    source     TEXT    NOT NULL,
    numbered   INTEGER NOT NULL,  -- events with a number
    unnumbered INTEGER NOT NULL,  -- events without, after the first with one
    received   INTEGER NOT NULL,  -- different numbers: all that the ranges hold
    ranges     INTEGER NOT NULL,
    PRIMARY KEY (topic_id, source)
) STRICT, WITHOUT ROWID;

CREATE TABLE source_ranges (
    topic_id INTEGER NOT NULL,
    source   TEXT    NOT NULL,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    PRIMARY KEY (topic_id, source, first)
) STRICT, WITHOUT ROWID;
