"""Keyed 64-bit hashes of identities, for the dedup index.

XXH3 (https://xxhash.com) with a seed that each index draws for itself: publishers cannot choose ids that collide, and
the hashes are the same in every process and version. A hash is only a hint; the row it leads to decides.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]
# From topics and event ids, of equal length, and a key of 64 bits.
HashIdentities = Callable[[Sequence[str], Sequence[str], int], Hashes]


def hash_identities(topics: Sequence[str], event_ids: Sequence[str], key: int) -> Hashes:
    """Return the hash of each (topic, event_id)."""
    seeds = {topic: _topic_seed(topic, key) for topic in set(topics)}
    digests = map(xxhash.xxh3_64_digest, map(str.encode, event_ids), map(seeds.__getitem__, topics))
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


@lru_cache(maxsize=4096)
def _topic_seed(topic: str, key: int) -> int:
    return xxhash.xxh3_64_intdigest(topic.encode(), key)
