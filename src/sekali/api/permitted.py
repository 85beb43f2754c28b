"""What of a publish request its sender may publish: decided by topic, before anything is looked up."""

from sekali.decode import Decoded
from sekali.keys import Grant


def only_permitted(decoded: Decoded, grant: Grant) -> Decoded:
    """Return a request without the events of topics that may not be published to; they are faults now."""
    batch = decoded.batch
    forbidden = frozenset(topic for topic in set(batch.topics) if not grant.may_publish(topic))
    if not forbidden:
        return decoded
    faults = dict(decoded.faults)
    permitted: list[int] = []
    sent_as = (position for position in range(decoded.item_count) if position not in decoded.faults)
    for row, (position, topic) in enumerate(zip(sent_as, batch.topics, strict=True)):
        if topic in forbidden:
            faults[position] = f"topic: the key may not publish to it; that needs the scope publish:{topic}"
        else:
            permitted.append(row)
    return Decoded(batch.chosen(permitted), faults, decoded.single, forbidden)
