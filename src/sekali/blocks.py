"""Who wants what of the log, and the bytes that each gets of a part of it: encoded once, however many want it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import structlog

from sekali.errors import SekaliError
from sekali.ports import EventStore, Query, Readable, StoredEvent, Unreadable
from sekali.topics import compile_pattern

BLOCK_EVENTS_MAX = 1000
BLOCK_BYTES_MAX = 64 * 1024  # of payloads; each follower that takes it slowly has a copy
TOPICS_ASKED_MAX = 100  # by name in one read; beyond, everything is read
TOPICS_KNOWN_MAX = 10_000

Frames = Callable[[Sequence[StoredEvent]], list[bytes]]

log = structlog.get_logger("sekali.feed")


class Group:
    """Those who ask for the same topics and may read the same: they get the same bytes."""

    def __init__(self, pattern: str | None, readable: Readable) -> None:
        self.key = pattern, readable
        self.members = 0
        # Compiled here, because strangers' patterns may push them out of the cache of those compiled.
        self._asked = None if pattern is None else compile_pattern(pattern).fullmatch
        self._readable = None if readable is None else [compile_pattern(one).fullmatch for one in readable]

    def wants(self, topic: str) -> bool:
        """Whether the events of a topic are for it."""
        path = "/" + topic
        return (self._asked is None or self._asked(path) is not None) and (
            self._readable is None or any(match(path) for match in self._readable)
        )


class Groups:
    """All groups, and for each topic those that want it. Safe for many threads."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str | None, Readable], Group] = {}
        self._wanting: dict[str, tuple[Group, ...]] = {}  # as far as it is known
        self._changing = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def join(self, pattern: str | None, readable: Readable) -> Group:
        """Count one more member of a group, and return that."""
        pattern = None if pattern == "**" else pattern
        with self._changing:
            group = self._by_key.get((pattern, readable))
            if group is None:
                group = self._by_key[pattern, readable] = Group(pattern, readable)
                for topic, found in self._wanting.items():
                    if group.wants(topic):
                        self._wanting[topic] = (*found, group)
            group.members += 1
            return group

    def leave(self, group: Group) -> None:
        """Count one member less."""
        with self._changing:
            group.members -= 1
            if not group.members:
                del self._by_key[group.key]
                for topic, found in self._wanting.items():
                    if group in found:
                        self._wanting[topic] = tuple(one for one in found if one is not group)

    def wanting(self, topic: str) -> tuple[Group, ...]:
        """Return the groups that want the events of a topic."""
        found = self._wanting.get(topic)
        if found is None:
            with self._changing:
                if len(self._wanting) >= TOPICS_KNOWN_MAX:
                    self._wanting.clear()
                found = self._wanting[topic] = tuple(group for group in self._by_key.values() if group.wants(topic))
        return found


@dataclass(frozen=True, slots=True)
class Block:
    """What came up to the seq ``end``: the bytes that each group gets. Without ``chunks`` everybody has to read it."""

    end: int
    chunks: Mapping[Group, bytes] | None
    size: int = 0


class BlockMaker:
    """Makes blocks of what a store holds; ``frames`` encodes events, one for one.

    Where the groups want so many different things of a block that it would be over ``bytes_max``, it has no chunks.
    """

    def __init__(self, store: EventStore, groups: Groups, frames: Frames, bytes_max: int) -> None:
        self._store = store
        self._groups = groups
        self._frames = frames
        self._bytes_max = bytes_max

    def make(self, after: int, up_to: int, topics: set[str] | None) -> Block:
        """Return a block of what lies above one seq and up to another, or of the first part of it.

        ``topics`` are those to read, None: all. If it cannot be read, the block has no chunks.
        """
        asked = None if topics is None or len(topics) > TOPICS_ASKED_MAX else tuple(topics)
        query = Query(after=after, up_to=up_to, readable=asked, limit=BLOCK_EVENTS_MAX, bytes_max=BLOCK_BYTES_MAX)
        try:
            page = self._store.read(query)
            return self._block(up_to if page.next is None else page.next.seq, page.events)
        except SekaliError as error:
            log.warning("cannot read for all followers what was committed", reason=str(error))
        except Exception:  # a defect of ours: without a block nobody would get anything any more
            log.exception("a block for the followers failed")
        return Block(up_to, None)

    def _block(self, end: int, events: Sequence[StoredEvent | Unreadable]) -> Block:
        topics_of: dict[Group, list[str]] = {}
        for topic in {event.topic for event in events if type(event) is StoredEvent}:
            for group in self._groups.wanting(topic):
                topics_of.setdefault(group, []).append(topic)
        wanted = set(chain.from_iterable(topics_of.values()))
        rows_of: dict[str, list[int]] = {topic: [] for topic in wanted}
        kept: list[StoredEvent] = []
        for event in events:
            if type(event) is not StoredEvent:  # only the store can tell whose it is
                return Block(end, None)
            if event.topic in wanted:
                rows_of[event.topic].append(len(kept))
                kept.append(event)
        frames = self._frames(kept)
        joined: dict[frozenset[str], bytes] = {}
        size = 0
        chunks: dict[Group, bytes] = {}
        for group, topics in topics_of.items():
            names = frozenset(topics)
            if names not in joined:
                rows = sorted(chain.from_iterable(rows_of[topic] for topic in topics))
                joined[names] = b"".join([frames[row] for row in rows])
                size += len(joined[names])
                if size > self._bytes_max:
                    return Block(end, None)
            chunks[group] = joined[names]
        return Block(end, chunks, size)
