"""What a store holds, as one document, to compare before and after."""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from batches import batch, commit, read_all
from sekali.ports import EventStore, Query, SourceQuery
from sekali.stores.high_water import mark_name


def fill(store: EventStore) -> None:
    """Put a little of everything into an empty store: topics, sources, odd payloads, numbers, duplicates, conflicts."""
    first = batch(
        ("app/a", "1", b'{"n":1}', "host-1"), ("app/a", "2", b'"caf\xc3\xa9"', "host-2"), ("app/b", "1", b"1e0")
    )
    second = batch(
        ("app/a", "3", b"[1, 2.50]"),
        ("sensor", "\u00e9", b"null", "caf\u00e9"),
        ("sensor", "z" * 512, b"{}", "caf\u00e9"),
    )
    first.source_seqs, second.source_seqs = [1, 2**63 - 1, None], [None, -3, 5]
    commit(store, first, second)
    commit(store, batch(("app/a", "1", b'{"n": 1}', "host-1"), ("app/b", "1", b"2"), ("app/b", "1", b"3")))
    commit(store, batch(("app/b", "1", b"1.0"), ("app/b", "1", b"2"), ("app/c", "1", b"true")))


def contents(store: EventStore) -> Any:
    """Return all that readers can see, as plain values."""
    seen = {
        "events": read_all(store, Query()),
        "by time": read_all(store, Query(topic="app/**")),
        "topics": store.topics("", 100),
        "conflicts": store.conflicts(0, 100),
        "sources": store.sources(SourceQuery()),
        "summary": store.summary(),
    }
    found = msgspec.to_builtins(seen)
    for conflict in found["conflicts"]:
        if not conflict["damaged"]:  # the first schema did not know of it
            del conflict["damaged"]
    return found


def put_back(saved: Path, path: Path) -> None:
    """Put an older file in the place of a closed store behind its back: without a trace but for the dedup index."""
    shutil.copy(saved, path)
    path.with_name(mark_name(path)).unlink(missing_ok=True)
