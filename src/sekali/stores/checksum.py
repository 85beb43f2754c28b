"""A checksum for each row of events, so that a bit that flips on the disk is seen, and by its seq.

It covers all columns, and the topic by its name: 32 bits of a sum to which each number goes with an odd factor of its
own, and texts and payload as the XXH3 (https://xxhash.com) of all of them, chained. Damage goes unseen in one case in
four thousand million. It finds damage; it does not prove who wrote a row.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from sekali import jsonvalue

# What comes of values that cannot have been stored: texts that are not UTF-8, or of another type than their column.
DAMAGE = (UnicodeDecodeError, TypeError, AttributeError, OverflowError, ValueError)

_SEQ, _TIMESTAMP, _PROCESSED_AT, _SOURCE_SEQ = (  # odd, with about half of their bits set
    np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_NO_SOURCE_SEQ = -(2**63) + 1  # no other number may stand for "none", but a checksum need not tell the two apart


def row_checksums(
    seqs: Sequence[int] | npt.NDArray[np.int64],
    topics: Sequence[str],
    event_ids: Sequence[str],
    timestamps_ns: Sequence[int],
    processed_at_ns: Sequence[int] | int,
    sources: Sequence[str],
    source_seqs: Sequence[int | None],
    payloads: Sequence[bytes],
) -> list[int]:
    """Return the checksums of rows, as signed 32-bit numbers. The columns are of equal length."""
    names = list(zip(topics, sources, strict=True))
    seeds = {
        (topic, source): xxhash.xxh3_64_intdigest(source.encode(), xxhash.xxh3_64_intdigest(topic.encode()))
        for topic, source in set(names)
    }
    texts = map(xxhash.xxh3_64_intdigest, map(str.encode, event_ids), map(seeds.__getitem__, names))
    digests = b"".join(map(xxhash.xxh3_64_digest, payloads, texts))
    total = np.frombuffer(digests, ">u8").astype(np.uint64)
    total += np.asarray(seqs, np.int64).view(np.uint64) * _SEQ
    total += np.array(timestamps_ns, np.int64).view(np.uint64) * _TIMESTAMP
    total += np.asarray(processed_at_ns, np.int64).reshape(-1).view(np.uint64) * _PROCESSED_AT
    if source_seqs.count(None) < len(source_seqs):
        numbers = [_NO_SOURCE_SEQ if number is None else number for number in source_seqs]
        total += np.array(numbers, np.int64).view(np.uint64) * _SOURCE_SEQ
    else:
        total += np.array([_NO_SOURCE_SEQ], np.int64).view(np.uint64) * _SOURCE_SEQ
    total ^= total >> np.uint64(32)
    total *= _MIX
    checksums: list[int] = (total >> np.uint64(32)).astype(np.uint32).view(np.int32).tolist()
    return checksums


def content_hash(source: bytes, payload: bytes) -> bytes:
    """Return what is equal for two variants of an event exactly when their content is: it tells them apart.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: the payload is not JSON in UTF-8.

    """
    return hashlib.sha256(source + b"\0" + jsonvalue.canonical(payload)).digest()
