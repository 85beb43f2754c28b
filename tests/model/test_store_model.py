"""The SQLite store against the specification: Hypothesis drives both with the same commands, crashes included."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from batches import commit, read_all
from sekali.event import Batch
from sekali.ports import EventStore, Order, Query, SourceQuery
from sekali.stores.identity import HashIdentities, hash_identities
from sekali.stores.memory import MemoryStore
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.testing import FakeClock

TOPICS_MAX = 4
RUN_KEYS = 2  # so that a few events already make runs, and merges of runs
CONFLICT_BYTES_MAX = 60

# Few of everything, so that identities meet again. "t5" and beyond run into TOPICS_MAX.
topics = st.sampled_from(["a", "a/b", "a/c", "b", "t5", "t6"])
event_ids = st.sampled_from(["1", "2", "é", "x y"])
payloads = st.sampled_from([b"1", b"1.0", b"true", b'{"a":1,"b":2}', b'{"b":2.0,"a":1}', b"[]", b'"%s"' % (b"x" * 30)])
sources = st.sampled_from(["", "host"])
times = st.integers(-3, 3)
readables = st.none() | st.lists(st.sampled_from(["a", "a/*", "a/**", "**/c", "b", "**", "t5"]), max_size=3).map(tuple)
numbers = st.integers(-2, 6) | st.integers(-(2**63), 2**63 - 1)
events = st.tuples(topics, event_ids, payloads, sources, times, st.none() | numbers)
batches = st.lists(events, max_size=6)


def make_batch(rows: list[tuple[str, str, bytes, str, int, int | None]], *, strict: bool) -> Batch:
    made = Batch(all_or_nothing=strict)
    for topic, event_id, payload, source, time, source_seq in rows:
        made.topics.append(topic)
        made.event_ids.append(event_id)
        made.payloads.append(payload)
        made.sources.append(source)
        made.timestamps_ns.append(time)
        made.source_seqs.append(source_seq)
    return made


def copy_if_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):  # the index's own thread replaces runs meanwhile
        shutil.copy2(source, target)


class StoreMachine(RuleBasedStateMachine):
    """Publishes, republishes, crashes and recovers; after every step both stores must tell the same story."""

    sent = Bundle("sent")
    hash_identities: HashIdentities = staticmethod(hash_identities)

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sekali-model-"))
        self.clock = FakeClock()
        self.generation = 0
        self.model: EventStore = MemoryStore(self.clock, topics_max=TOPICS_MAX, conflict_bytes_max=CONFLICT_BYTES_MAX)
        self.store = self.open(self.folder / "0" / "store.db")

    def open(self, path: Path) -> SqliteStore:
        self.path = path
        store = SqliteStore(
            path,
            self.clock,
            topics_max=TOPICS_MAX,
            conflict_bytes_max=CONFLICT_BYTES_MAX,
            run_keys=RUN_KEYS,
            hash_identities=self.hash_identities,
        )
        store.recover()
        return store

    def both(self, *made: Batch) -> None:
        assert commit(self.store, *made) == commit(self.model, *made)

    @rule(target=sent, rows=batches, strict=st.booleans())
    def publish(self, rows: list[tuple[str, str, bytes, str, int, int | None]], strict: bool) -> object:
        self.both(make_batch(rows, strict=strict))
        return multiple(*rows)

    @rule(requests=st.lists(batches, max_size=3))
    def publish_together(self, requests: list[list[tuple[str, str, bytes, str, int, int | None]]]) -> None:
        self.both(*[make_batch(rows, strict=False) for rows in requests])

    @rule(row=sent)
    def republish(self, row: tuple[str, str, bytes, str, int, int | None]) -> None:
        self.both(make_batch([row], strict=False))

    @rule(row=sent, payload=payloads, source=sources)
    def republish_changed(self, row: tuple[str, str, bytes, str, int, int | None], payload: bytes, source: str) -> None:
        topic, event_id, _, _, time, source_seq = row
        self.both(make_batch([(topic, event_id, payload, source, time, source_seq)], strict=False))

    @rule(row=sent, times=st.integers(2, 4))
    def repeat_in_one_batch(self, row: tuple[str, str, bytes, str, int, int | None], times: int) -> None:
        self.both(make_batch([row] * times, strict=False))

    @rule(seconds=st.integers(-1000, 1000))
    def clock_jumps(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def recover(self) -> None:
        self.store.close()
        self.store = self.open(self.path)

    @rule()
    def restart_after_failure(self) -> None:
        self.store.recover()

    @rule()
    def crash(self) -> None:
        """Go on with a copy of the files as they are in the middle of a run: what a killed process leaves behind."""
        self.generation += 1
        target = self.folder / str(self.generation)
        shutil.copytree(self.path.parent, target, copy_function=copy_if_there)
        self.store.close()
        self.store = self.open(target / "store.db")

    @rule(
        topic=st.none() | st.sampled_from(["a", "a/*", "**", "a/**", "t5", "nothing"]),
        source=st.none() | sources,
        since=st.none() | times,
        until=st.none() | times,
        after=st.integers(0, 5),
        order=st.sampled_from(Order),
        limit=st.integers(1, 4),
        readable=readables,
    )
    def query(
        self,
        topic: str | None,
        source: str | None,
        since: int | None,
        until: int | None,
        after: int,
        order: Order,
        limit: int,
        readable: tuple[str, ...] | None,
    ) -> None:
        query = Query(
            topic=topic,
            source=source,
            since_ns=since,
            until_ns=until,
            after=after,
            order=order,
            limit=limit,
            readable=readable,
        )
        assert read_all(self.store, query) == read_all(self.model, query)

    @rule(readable=readables, after=st.integers(0, 3))
    def what_some_may_read(self, readable: tuple[str, ...] | None, after: int) -> None:
        assert self.store.topics("a", 2, readable) == self.model.topics("a", 2, readable)
        assert self.store.conflicts(after, 3, readable) == self.model.conflicts(after, 3, readable)
        ours, theirs = self.store.summary(readable), self.model.summary(readable)
        assert (ours.head, ours.topics_count, ours.lifetime) == (theirs.head, theirs.topics_count, theirs.lifetime)

    @rule(
        topic=st.none() | st.sampled_from(["a", "a/*", "**"]),
        source=st.none() | sources,
        first=st.none() | numbers,
        last=st.none() | numbers,
        after=st.tuples(topics, sources),
        limit=st.integers(1, 4),
        readable=readables,
    )
    def sources(
        self,
        topic: str | None,
        source: str | None,
        first: int | None,
        last: int | None,
        after: tuple[str, str],
        limit: int,
        readable: tuple[str, ...] | None,
    ) -> None:
        if first is not None and last is not None:
            first, last = min(first, last), max(first, last)
        query = SourceQuery(topic, source, first, last, after, limit, readable)
        assert self.store.sources(query) == self.model.sources(query)

    @rule(topic=topics, asked=st.lists(event_ids, max_size=4))
    def missing(self, topic: str, asked: list[str]) -> None:
        assert self.store.missing(topic, asked) == self.model.missing(topic, asked)

    @invariant()
    def same_story(self) -> None:
        assert read_all(self.store, Query()) == read_all(self.model, Query())
        assert self.store.topics("", 10) == self.model.topics("", 10)
        assert self.store.conflicts(0, 100) == self.model.conflicts(0, 100)
        assert self.store.sources(SourceQuery()) == self.model.sources(SourceQuery())
        ours, theirs = self.store.summary(), self.model.summary()
        assert (ours.head, ours.topics_count, ours.lifetime) == (theirs.head, theirs.topics_count, theirs.lifetime)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            report = audit(self.path, lambda done, total: None)
            shutil.rmtree(self.folder)
            assert report.ok, report.document()


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, print_blob=True)
