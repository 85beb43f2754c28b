"""Bits that flip in the file: what is damaged is seen, and named, and costs nothing else."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from sekali.delivery import Change, Create, DeadLetter, Definition, LaneState, Open, Progress, Subscription
from sekali.errors import SekaliError, StoreBroken
from sekali.ports import Query, StoredEvent, Unreadable, no_progress
from sekali.stores.checksum import row_checksums
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.testing import FakeClock
from stored import contents, fill

ROW: dict[str, Any] = {
    "seqs": [7],
    "topics": ["app/a"],
    "event_ids": ["id-1"],
    "timestamps_ns": [1_800_000_000_000_000_000],
    "processed_at_ns": [1_800_000_000_000_000_001],
    "sources": ["host"],
    "source_seqs": [3],
    "payloads": [b'{"n":1}'],
}
FLIPS = 600


def open_store(path: Path) -> SqliteStore:
    return SqliteStore(path, FakeClock(), topics_max=100)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("whole") / "store.db"
    store = open_store(path)
    store.recover()
    fill(store)
    add_subscriptions(store)
    seen = everything(store)
    store.close()
    return path, seen


def add_subscriptions(store: SqliteStore) -> None:
    definition = Definition("app/**", "earliest")
    changes: list[Change] = [
        Create(Subscription("billing", definition, 0, 5)),
        Create(Subscription("mail", Definition("sensor"), 4, 6)),
        Progress("billing", [LaneState("app/a", 4, (Open(1, 2, 77),))], [DeadLetter(2, "app/a", 3, "no", 9)]),
    ]
    store.commit([store.prepare_changes(changes)])


def everything(store: SqliteStore) -> Any:
    """Return all that readers can see. The number of a dead letter is for paging only; nothing else is told by it."""
    kept = {
        one.name: {
            "subscription": one,
            "pending": store.pending(one.name),
            "figures": store.figures(one.name, 100),
            "dead": [{**msgspec.structs.asdict(dead), "number": 0} for dead in store.dead_letters(one.name, 0, 100)],
        }
        for one in store.subscriptions()
    }
    return contents(store) | {"subscriptions": msgspec.to_builtins(kept)}


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("seqs", 6),
        ("topics", "app/b"),
        ("event_ids", "id-2"),
        ("timestamps_ns", 1_800_000_000_000_000_002),
        ("processed_at_ns", 1_800_000_000_000_000_000),
        ("sources", "hosu"),
        ("source_seqs", 2),
        ("source_seqs", None),
        ("payloads", b'{"n":2}'),
    ],
)
def test_every_column_has_a_part_in_the_checksum(column: str, other: object) -> None:
    assert row_checksums(**ROW) != row_checksums(**(ROW | {column: [other]}))


def test_texts_do_not_flow_into_one_another() -> None:
    moved = ROW | {"sources": ["hos"], "event_ids": ["tid-1"]}
    assert row_checksums(**ROW) != row_checksums(**moved)


def test_the_checksum_of_a_row_is_the_same_alone_and_among_others_and_for_ever() -> None:
    alone = row_checksums(**ROW)
    among = row_checksums(**{name: [*column, *column] for name, column in ROW.items()})
    assert among == alone * 2
    # As it is in files that exist: to change this is to change the schema.
    assert alone == [-280261708]
    assert row_checksums(**(ROW | {"processed_at_ns": ROW["processed_at_ns"][0]})) == alone


def test_no_flipped_bit_of_a_row_goes_unseen() -> None:
    """Each of all bits of each field, at a fixed length: 32 bits cannot promise more than one miss in 2 ** 32."""
    alone = row_checksums(**ROW)
    tried = 0
    for column in ("seqs", "timestamps_ns", "processed_at_ns", "source_seqs"):
        for bit in range(63):
            assert row_checksums(**(ROW | {column: [ROW[column][0] ^ (1 << bit)]})) != alone
            tried += 1
    payload = ROW["payloads"][0]
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        assert row_checksums(**(ROW | {"payloads": [bytes(flipped)]})) != alone
        tried += 1
    assert tried == 4 * 63 + 8 * len(payload)


def test_a_log_whose_name_is_damaged_is_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = apsw.Connection(str(shutil.copy(whole[0], path)))
    connection.execute("UPDATE log SET log_id = CAST(x'31ff32' AS TEXT)")
    connection.close()
    with pytest.raises(StoreBroken, match="utf-8"):
        open_store(path)


def test_a_flipped_bit_is_an_error_for_its_row_only_or_refused_and_verify_sees_it(
    whole: tuple[Path, Any], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    original, before = whole
    data = original.read_bytes()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    report = pytestconfig.getoption("--every-flip")
    places = range(len(data)) if report else chance.sample(range(len(data)), FLIPS)
    outcomes = {"refused": 0, "row named": 0, "seen by verify": 0, "no effect": 0}
    for place in places:
        path = tmp_path / str(place) / "store.db"
        path.parent.mkdir()
        bit = chance.randrange(8)
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        shutil.copy(original.with_name("store.db.mark"), path.parent)
        outcomes[_outcome(path, before, f"seed {seed}, byte {place}, bit {bit}")] += 1
        shutil.rmtree(path.parent)
    assert all(outcomes.values()), (seed, outcomes)
    if report:
        command = "python -m pytest tests/unit/test_sqlite_damage.py --every-flip bench/results/flips.json"
        document = {"command": command, "seed": seed, "flips": len(places), "wrong": 0, "outcomes": outcomes}
        Path(report).write_text(json.dumps(document, indent=1) + "\n")


def _as_stored(event: dict[str, Any]) -> dict[str, Any]:
    """Without the counts of duplicates, which are kept apart and change."""
    return {name: value for name, value in event.items() if "duplicate" not in name}


def _without_times(seen: Any) -> Any:
    """Leave out what no checksum covers: when an event was last sent again, when a variant came and how often.

    Neither the name of the log: with another one it is another log, and positions in the old one are refused.
    """
    if isinstance(seen, dict):
        variant = "number" in seen
        return {
            name: _without_times(value)
            for name, value in seen.items()
            if name not in {"last_duplicate_at_ns", "first_at_ns", "last_at_ns", "log_id"}
            and not (variant and name == "count")
        }
    return list(map(_without_times, seen)) if isinstance(seen, list) else seen


def _outcome(path: Path, before: Any, place: str) -> str:
    stored = {event["seq"]: event for event in before["events"]}
    try:
        store = open_store(path)
    except SekaliError:
        return "refused"
    try:
        store.recover()
        page = store.read(Query())
        for event in page.events:
            if isinstance(event, StoredEvent):
                assert _as_stored(msgspec.to_builtins(event)) == _as_stored(stored[event.seq]), place
        if any(isinstance(event, Unreadable) for event in page.events):
            damaged = [event.seq for event in page.events if isinstance(event, Unreadable)]
            after = None
        else:
            damaged, after = [], everything(store)
    except SekaliError:
        return "refused"
    finally:
        store.close()
    try:
        report = audit(path, no_progress)
    except SekaliError:
        return "seen by verify"
    failures = [failure for check in report.checks for failure in check.failures]
    for seq in damaged:
        assert any(f"seq {seq}:" in failure for failure in failures), (place, failures)
    if damaged:
        return "row named"
    if report.ok:
        assert _without_times(after) == _without_times(before), place
        return "no effect"
    return "seen by verify"
