"""Which events of one subscription may be given to whom now. No I/O; the time is passed in, in nanoseconds.

A subscription is a set of *lanes*, one for each topic. Of a lane the core knows seqs only: how far it has been taken,
and what below that is open, which means given to a consumer, or to be given again. The events stay in the store and are
read when somebody takes them: consumers that stall cost a few numbers each.

A consumer takes events in three steps: ``take`` chooses lanes, the caller reads what they ``Want``, ``lease`` gives it
out. With ``exclusive`` (order by topic) a lane is given to one consumer at a time: until the run is settled, given
back, or its lease runs out.

What settles events returns a ``Settlement``. It counts here at once; it is to be committed, and then told by
``committed``. If that fails, this object is of no use any more: another is made from what is stored.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from sekali.delivery import DELAY_S_MAX, DeadLetter, PendingLane
from sekali.subscriptions.lane import Counts, Found, Given, Lane, Lease, Settlement, Want

OPEN_OF_LANE_MAX = 10_000  # events of one topic that are given out or to be given again
OPEN_MAX = 100_000  # of all topics
LANES_LOOKED_AT_MAX = 1_000  # for one to take, where most have no room
LEASE_RAN_OUT = "the lease ran out"
_DELAY_NS_MAX = int(DELAY_S_MAX * 1e9)


class Lanes:
    """The lanes of one subscription. ``head`` and ``pending`` are as the store gives them, of one moment.

    ``max_attempts`` may be changed at any time.
    """

    def __init__(
        self,
        *,
        exclusive: bool,
        max_attempts: int,
        head: int,
        pending: Iterable[PendingLane],
        counts: Counts,
        now_ns: int,
    ) -> None:
        self.max_attempts = max_attempts
        self._exclusive = exclusive
        self._counts = counts
        self._seen = head  # what is stored up to here is settled, but for what the lanes say
        self._lanes: dict[str, Lane] = {}
        self._leases: dict[str, Lease] = {}
        self._open_count = 0
        self._committing = 0
        self.in_flight = 0  # events that leases hold
        self._ready: deque[Lane] = deque()
        self._expiries: list[tuple[int, str]] = []  # a heap; some are out of date
        self._dues: list[tuple[int, str]] = []  # a heap: when there may be something of a topic to be given again
        for one in pending:
            lane = self._lanes[one.state.topic] = Lane(one.state.topic, one.state.cursor, one.last_seq)
            for event in one.state.open:
                # The clock may have been put back since.
                self._open(lane, event.seq, Given(None, event.attempts, min(event.due_at_ns, now_ns + _DELAY_NS_MAX)))
            self._offer(lane, now_ns)

    @property
    def waiting(self) -> int:
        """Events to be given again."""
        return self._open_count - self.in_flight

    @property
    def is_committing(self) -> bool:
        """Whether a settlement is not durable yet."""
        return self._committing > 0

    def next_at_ns(self) -> int | None:
        """Return when ``tick`` has to come, or None."""
        return min((heap[0][0] for heap in (self._expiries, self._dues) if heap), default=None)

    def is_settled(self, topic: str, seq: int) -> bool:
        """Whether an event of the subscription is acknowledged or given up, though perhaps not durably yet."""
        lane = self._lanes.get(topic)
        return seq <= self._seen if lane is None else seq <= lane.taken_to and seq not in lane.open

    # What happens outside.

    def stored(self, head: int, topics: Iterable[str], now_ns: int) -> None:
        """Note that events of topics, all of the subscription, were stored, the newest with seq ``head``."""
        if head <= self._seen:
            return
        for topic in topics:
            lane = self._lanes.get(topic)
            if lane is None:
                lane = self._lanes[topic] = Lane(topic, self._seen, head)
            lane.head = head
            self._offer(lane, now_ns)
        self._seen = head

    def tick(self, now_ns: int) -> Settlement | None:
        """Take back what leases hold that ran out, and offer what is due."""
        while self._dues and self._dues[0][0] <= now_ns:
            _, topic = heapq.heappop(self._dues)
            if (lane := self._lanes.get(topic)) is not None:
                self._offer(lane, now_ns)
        settlement = Settlement()
        while self._expiries and self._expiries[0][0] <= now_ns:
            expires_at_ns, lease_id = heapq.heappop(self._expiries)
            lease = self._leases.get(lease_id)
            if lease is not None and lease.expires_at_ns == expires_at_ns:
                self._counts.expired += len(lease.held)
                self._fail(lease, sorted(lease.held), now_ns, LEASE_RAN_OUT, now_ns, settlement)
        return self._begun(settlement)

    # Taking.

    def take(self, lanes_max: int, events_max: int, now_ns: int) -> list[Want]:
        """Choose up to so many lanes to read up to so many events of, those that wait longest first.

        Each has to come back with ``lease`` or ``put_back``. Until then nobody else gets it.
        """
        wants: list[Want] = []
        for _ in range(min(len(self._ready), max(lanes_max, LANES_LOOKED_AT_MAX))):
            lane = self._ready.popleft()
            lane.is_queued = False
            want = self._want(lane, events_max, now_ns) if self._is_free(lane) else None
            if want is None:
                self._offer(lane, now_ns)
                continue
            is_alone = self._comes_alone(lane.open.get(want.seqs[0]) if want.seqs else None)
            if is_alone and wants:  # it is the first of the next
                self._offer(lane, now_ns, first=True)
                break
            lane.is_read = True
            wants.append(want)
            if is_alone or len(wants) == lanes_max:
                break
        return wants

    def _want(self, lane: Lane, events_max: int, now_ns: int) -> Want | None:
        seqs: list[int] = []
        is_fresh = lane.taken_to < lane.head
        for seq in sorted(lane.again):
            given = lane.open[seq]
            is_due = given.due_at_ns <= now_ns
            if not is_due and not self._exclusive:
                continue
            if not is_due or len(seqs) == events_max or self._comes_alone(given):  # nothing goes past it
                is_fresh = False
                if is_due and not seqs:
                    seqs.append(seq)
                break
            seqs.append(seq)
        if len(seqs) == events_max or len(lane.open) >= OPEN_OF_LANE_MAX or self._open_count >= OPEN_MAX:
            is_fresh = False
        if not seqs and not is_fresh:
            return None
        attempts = {seq: lane.open[seq].attempts + 1 for seq in seqs if lane.open[seq].attempts}
        return Want(lane, tuple(seqs), is_fresh, lane.taken_to, lane.head, attempts)

    def _comes_alone(self, given: Given | None) -> bool:
        """Whether an event is given by itself: what ends its consumers shall not make others fail with it."""
        return given is not None and given.attempts > 0 and given.attempts * 2 >= self.max_attempts

    def put_back(self, wants: Iterable[Want], now_ns: int) -> None:
        """Take back lanes that were not read after all."""
        for want in wants:
            want.lane.is_read = False
            self._offer(want.lane, now_ns, first=True)

    def lease(self, lease_id: str, found: Sequence[Found], expires_at_ns: int, now_ns: int) -> Lease | None:
        """Give out what was read; None where that is nothing."""
        lease = Lease(lease_id, expires_at_ns)
        for one in found:
            self._give(lease, one)
            one.want.lane.is_read = False
            self._offer(one.want.lane, now_ns)
        if not lease.held:
            return None
        self.in_flight += len(lease.held)
        self._leases[lease_id] = lease
        self._expire_at(lease, expires_at_ns)
        return lease

    def _give(self, lease: Lease, found: Found) -> None:
        lane = found.want.lane
        for seq in found.seqs:
            given = lane.open.get(seq)
            if given is None:
                given = Given()
                self._open(lane, seq, given)
            given.lease = lease
            lane.again.discard(seq)
            lease.held[seq] = lane
            self._counts.delivered += 1
            self._counts.redelivered += given.attempts > 0
        taken_to = found.want.head if found.want.is_fresh and found.is_all else max(found.seqs, default=0)
        lane.taken_to = max(lane.taken_to, taken_to)
        if self._exclusive and found.seqs:
            lane.holder = lease

    # What consumers say.

    def acknowledge(self, lease_id: str, seqs: Iterable[int]) -> tuple[list[int], Settlement | None]:
        """Settle events; return those that the lease holds no more."""
        lease = self._leases.get(lease_id) or _NO_LEASE
        settlement = Settlement()
        lost: list[int] = []
        for seq in dict.fromkeys(seqs):
            lane = lease.held.get(seq)
            if lane is None:
                lost.append(seq)
            else:
                self._settle(lease, lane, seq, settlement)
                self._counts.acknowledged += 1
        self._end_if_empty(lease)
        return lost, self._begun(settlement)

    def give_back(
        self, lease_id: str, seqs: Iterable[int], due_at_ns: int, error: str, now_ns: int
    ) -> tuple[list[int], Settlement | None]:
        """Count a failed attempt for events; return those that the lease holds no more.

        They are given again when they are due, or are dead letters after the last attempt. In an exclusive lane what
        follows them goes back too, because it has to come after them; for that it is no attempt.
        """
        lease = self._leases.get(lease_id) or _NO_LEASE
        settlement = Settlement()
        wanted = sorted(set(seqs))
        held = [seq for seq in wanted if seq in lease.held]
        lost = [seq for seq in wanted if seq not in lease.held]
        self._counts.returned += len(held)
        self._fail(lease, held, due_at_ns, error, now_ns, settlement)
        return lost, self._begun(settlement)

    def extend(self, lease_id: str, expires_at_ns: int) -> list[int] | None:
        """Let a lease run out later, or sooner; return what it holds, or None where there is no such lease."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return None
        lease.expires_at_ns = expires_at_ns
        self._expire_at(lease, expires_at_ns)
        return sorted(lease.held)

    def release(self, lease_id: str, now_ns: int) -> None:
        """Take back what a lease holds as if it had not been given: nobody got it."""
        lease = self._leases.get(lease_id) or _NO_LEASE
        for seq, lane in list(lease.held.items()):
            self._return(lease, lane, seq, now_ns)
            self._offer(lane, now_ns)
        self._end_if_empty(lease)

    def reopen(self, seqs: Mapping[str, Sequence[int]]) -> Settlement | None:
        """Let settled events, by topic, be given again as if they were new; None where too many are open already."""
        for topic, some in seqs.items():
            lane = self._lanes.get(topic)
            if lane is not None and len(lane.open) + len(some) > OPEN_OF_LANE_MAX:
                return None
        if self._open_count + sum(map(len, seqs.values())) > OPEN_MAX:
            return None
        settlement = Settlement()
        for topic, some in seqs.items():
            lane = self._lanes.get(topic)
            if lane is None:
                lane = self._lanes[topic] = Lane(topic, self._seen, self._seen)
            for seq in set(some) - lane.open.keys():
                self._open(lane, seq, Given())
                lane.settled_to = max(lane.settled_to, seq)
            settlement.lanes[lane] = None
        return self._begun(settlement)

    def committed(self, settlement: Settlement, now_ns: int) -> None:
        """Note that what a settlement says is durable."""
        self._committing -= 1
        for lane in settlement.lanes:
            lane.committing -= 1
            self._offer(lane, now_ns)

    # Inside.

    def _offer(self, lane: Lane, now_ns: int, *, first: bool = False) -> None:
        """Put a lane in line if something of it may be given, and forget it where there is nothing left to know."""
        if lane.is_queued or lane.is_read or not self._is_free(lane):
            return
        if self._has_something(lane, now_ns):
            lane.is_queued = True
            if first:
                self._ready.appendleft(lane)
            else:
                self._ready.append(lane)
        elif lane.is_over:
            del self._lanes[lane.topic]

    def _is_free(self, lane: Lane) -> bool:
        return not (self._exclusive and (lane.holder is not None or lane.committing))

    def _has_something(self, lane: Lane, now_ns: int) -> bool:
        if not lane.again:
            return lane.taken_to < lane.head
        if self._exclusive:  # nothing goes past what comes first
            return lane.open[min(lane.again)].due_at_ns <= now_ns
        return lane.taken_to < lane.head or any(lane.open[seq].due_at_ns <= now_ns for seq in lane.again)

    def _open(self, lane: Lane, seq: int, given: Given) -> None:
        lane.open[seq] = given
        lane.again.add(seq)
        self._open_count += 1
        if given.due_at_ns:
            heapq.heappush(self._dues, (given.due_at_ns, lane.topic))

    def _return(self, lease: Lease, lane: Lane, seq: int, due_at_ns: int) -> None:
        """Take an event back, to be given again."""
        del lease.held[seq]
        self.in_flight -= 1
        given = lane.open[seq]
        given.lease, given.due_at_ns = None, due_at_ns
        lane.again.add(seq)
        self._free(lane)

    def _settle(self, lease: Lease, lane: Lane, seq: int, settlement: Settlement) -> None:
        del lease.held[seq]
        self.in_flight -= 1
        del lane.open[seq]
        self._open_count -= 1
        lane.settled_to = max(lane.settled_to, seq)
        settlement.lanes[lane] = None
        self._free(lane)

    def _free(self, lane: Lane) -> None:
        """Let go of an exclusive lane once its holder has nothing of it any more."""
        if len(lane.open) == len(lane.again):
            lane.holder = None

    def _fail(
        self, lease: Lease, seqs: Sequence[int], due_at_ns: int, error: str, now_ns: int, settlement: Settlement
    ) -> None:
        """Count a failed attempt for events of a lease, in order, and take them back with what may not come before."""
        first: dict[Lane, int] = {}
        for seq in seqs:
            lane = lease.held[seq]
            first.setdefault(lane, seq)
            given = lane.open[seq]
            given.attempts += 1
            if given.attempts >= self.max_attempts:
                self._settle(lease, lane, seq, settlement)
                settlement.dead.append(DeadLetter(seq, lane.topic, given.attempts, error, now_ns))
                self._counts.dead += 1
                continue
            self._return(lease, lane, seq, due_at_ns)
            lane.settled_to = max(lane.settled_to, seq)
            settlement.lanes[lane] = None
            if due_at_ns > now_ns:
                heapq.heappush(self._dues, (due_at_ns, lane.topic))
        if self._exclusive:
            for seq, lane in list(lease.held.items()):
                if lane in first and seq > first[lane]:
                    self._return(lease, lane, seq, now_ns)
        self._end_if_empty(lease)

    def _end_if_empty(self, lease: Lease) -> None:
        if not lease.held:
            self._leases.pop(lease.id, None)

    def _expire_at(self, lease: Lease, expires_at_ns: int) -> None:
        heapq.heappush(self._expiries, (expires_at_ns, lease.id))
        if len(self._expiries) > 2 * len(self._leases) + 100:  # leases that are extended again and again, or over
            self._expiries = [(one.expires_at_ns, one.id) for one in self._leases.values()]
            heapq.heapify(self._expiries)

    def _begun(self, settlement: Settlement) -> Settlement | None:
        """Let a settlement be under way; None where it changes nothing."""
        if not settlement.lanes:
            return None
        self._committing += 1
        for lane in settlement.lanes:
            lane.committing += 1
        return settlement


_NO_LEASE = Lease("", 0)
