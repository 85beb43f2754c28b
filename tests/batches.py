"""Small builders that tests share."""

from sekali.event import Batch, Outcome, Verdict
from sekali.ports import EventStore, Page, Query, StoredEvent

STORED, DUPLICATE, CONFLICT, INVALID = Outcome.STORED, Outcome.DUPLICATE, Outcome.CONFLICT, Outcome.INVALID


def batch(
    *events: tuple[str, str] | tuple[str, str, bytes] | tuple[str, str, bytes, str], strict: bool = False
) -> Batch:
    """Build a batch from (topic, event_id[, payload[, source]]); event times count up from 1000 ns."""
    made = Batch(all_or_nothing=strict)
    for position, (topic, event_id, *rest) in enumerate(events):
        made.topics.append(topic)
        made.event_ids.append(event_id)
        made.timestamps_ns.append(1000 + position)
        made.payloads.append(rest[0] if rest else b"{}")  # type: ignore[arg-type]
        made.sources.append(rest[1] if len(rest) > 1 else "")  # type: ignore[arg-type]
        made.source_seqs.append(None)
    return made


def commit(store: EventStore, *batches: Batch) -> list[list[Verdict]]:
    """Prepare and commit batches as the consumer does."""
    return store.commit([store.prepare([batch]) for batch in batches])


def publish(
    store: EventStore, *events: tuple[str, str] | tuple[str, str, bytes] | tuple[str, str, bytes, str]
) -> list[tuple[Outcome, int | None]]:
    """Commit one batch and return (outcome, seq) of each event."""
    return [(verdict.outcome, verdict.seq) for verdict in commit(store, batch(*events))[0]]


def read_all(store: EventStore, query: Query) -> list[StoredEvent]:
    """Follow the pages to the end; every one of them must be readable."""
    events: list[StoredEvent] = []
    pages = 0
    while True:
        page: Page = store.read(query)
        for event in page.events:
            assert isinstance(event, StoredEvent)
            events.append(event)
        if page.next is None:
            return events
        pages += 1
        assert pages < 10_000, "the pages have no end"
        query = Query(**{name: getattr(query, name) for name in Query.__slots__} | {"position": page.next})
