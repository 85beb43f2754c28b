"""gzip bodies: undone exactly, in bounded pieces, and refused where they are anything else."""

import gzip
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekali.api import encoding
from sekali.api.body import Body, ByteBudget
from sekali.api.encoding import MEMBERS_MAX, PIECE_BYTES, Gunzip, is_gzip
from sekali.api.problems import Kind, Problem
from sekali.errors import NotJson, QueueFull

MIB = 1024 * 1024


def pieces_of(parts: list[bytes]) -> list[bytes]:
    """Undo a body that comes in parts, and return the pieces it came out in."""
    gunzip = Gunzip()
    pieces = []
    for part in parts:
        gunzip.feed(part)
        while gunzip.has_more:
            pieces.append(gunzip.take())
    gunzip.finish()
    return pieces


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# Some is long, so that a member does not end where a piece does.
_members = st.lists(st.binary(max_size=50) | st.integers(0, 3 * PIECE_BYTES).map(bytes), min_size=1, max_size=4)


@given(_members, st.lists(st.integers(0, 10**6), max_size=6), st.integers(0, 9))
def test_any_members_in_any_parts(members: list[bytes], places: list[int], level: int) -> None:
    body = b"".join(gzip.compress(member, level) for member in members)
    pieces = pieces_of(cut_at(body, places))
    assert b"".join(pieces) == b"".join(members)
    assert max(map(len, pieces)) <= PIECE_BYTES


@pytest.mark.parametrize("size", [PIECE_BYTES + by for by in (-1, 0, 1)] + [2 * PIECE_BYTES + by for by in (-1, 0, 1)])
def test_pieces_that_end_where_the_body_does(size: int) -> None:
    for data in (bytes(size), random.Random(size).randbytes(size)):
        assert b"".join(pieces_of([gzip.compress(data, 1)])) == data


def test_a_body_one_byte_at_a_time() -> None:
    data = random.Random(1).randbytes(500)
    body = gzip.compress(data) + gzip.compress(b"") + gzip.compress(data[:7])
    assert b"".join(pieces_of([body[place : place + 1] for place in range(len(body))])) == data + data[:7]


_whole = gzip.compress(b'{"a": [1, 2, 3]}' * 9)


@pytest.mark.parametrize("end", range(len(_whole)))
def test_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(NotJson):
        pieces_of([_whole[:end]])
    with pytest.raises(NotJson):
        pieces_of([_whole, _whole[: end or 1]])


@pytest.mark.parametrize("behind", [b"\x00", b"\n", b"{}", b"\x1f", b"\x1f\x8b", _whole[1:]], ids=repr)
def test_anything_behind_the_last_member_is_refused(behind: bytes) -> None:
    for parts in ([_whole + behind], [_whole, behind], [_whole, b"", behind]):
        with pytest.raises(NotJson):
            pieces_of(parts)


@pytest.mark.parametrize("place", range(-8, 0))
def test_wrong_checksum_or_length_is_refused(place: int) -> None:
    damaged = bytearray(_whole)
    damaged[place] ^= 1
    with pytest.raises(NotJson):
        pieces_of([bytes(damaged)])


@pytest.mark.parametrize(
    "body", [b"{}", zlib.compress(b"{}"), b"\x28\xb5\x2f\xfd\x00", b"", b"\x1f\x8b\x07" + b"x" * 20]
)
def test_what_is_not_gzip_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson):
        pieces_of([body])


def test_members_are_counted() -> None:
    empty = gzip.compress(b"")
    assert b"".join(pieces_of([empty * MEMBERS_MAX])) == b""
    with pytest.raises(Problem) as refused:
        pieces_of([empty * (MEMBERS_MAX + 1)])
    assert refused.value.kind is Kind.TOO_LARGE and str(MEMBERS_MAX) in refused.value.detail


def test_a_bomb_is_undone_only_as_far_as_asked() -> None:
    gunzip = Gunzip()
    gunzip.feed(gzip.compress(bytes(100 * MIB)))
    for _ in range(3):
        assert len(gunzip.take()) == PIECE_BYTES and gunzip.has_more


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", False), ("identity", False), ("gzip", True), ("x-gzip", True), (" GZip ", True)],
)
def test_known_encodings(value: str, expected: bool) -> None:
    assert is_gzip(value) is expected


@pytest.mark.parametrize("value", ["deflate", "gzip, gzip", "gzip,identity", "br", "*", "gzip;q=1", "\xff"])
def test_unknown_encodings(value: str) -> None:
    with pytest.raises(Problem) as refused:
        is_gzip(value)
    assert refused.value.kind is Kind.MEDIA
    assert (b"accept-encoding", b"gzip, identity") in refused.value.headers


# A body: what it takes of the budget, and the limit on what it stands for.


def undo_all(body: Body) -> None:
    while body.undo():
        pass


def test_undone_bytes_are_reserved_as_they_come_and_given_back() -> None:
    budget = ByteBudget(10 * MIB)
    sent = gzip.compress(bytes(3 * MIB))
    body = Body(budget, 4 * MIB)
    body.begin(len(sent), gzip=True)
    assert budget.held == len(sent), "reserved before it is read"
    body.feed(sent)
    assert budget.held == len(sent)
    assert body.undo() and budget.held == len(sent) + PIECE_BYTES, "a piece at a time"
    undo_all(body)
    assert budget.held == len(sent) + 3 * MIB
    assert body.whole() == bytes(3 * MIB)
    body.release()
    body.release()
    assert budget.held == 0


def test_in_parts_of_no_declared_length_both_forms_are_reserved() -> None:
    budget = ByteBudget(10 * MIB)
    data = random.Random(2).randbytes(MIB)
    sent = gzip.compress(data, 1)
    body = Body(budget, 4 * MIB)
    body.begin(None, gzip=True)
    for start in range(0, len(sent), 100_000):
        body.feed(sent[start : start + 100_000])
        undo_all(body)
        assert budget.held >= min(start + 100_000, len(sent))
    assert budget.held == len(sent) + len(data)
    assert body.whole() == data


@pytest.mark.parametrize(("size", "fits"), [(MIB, True), (MIB + 1, False), (50 * MIB, False)])
def test_the_limit_is_on_what_a_body_stands_for(size: int, fits: bool) -> None:
    budget = ByteBudget(100 * MIB)
    sent = gzip.compress(bytes(size))
    body = Body(budget, MIB)
    body.begin(len(sent), gzip=True)
    body.feed(sent)
    if fits:
        undo_all(body)
        assert len(body.whole()) == size
        return
    with pytest.raises(Problem) as refused:
        undo_all(body)
    assert refused.value.kind is Kind.TOO_LARGE and "BODY_BYTES_MAX" in refused.value.detail
    assert budget.held <= len(sent) + MIB, "not a byte over the limit was kept"


def test_no_room_for_what_a_body_stands_for() -> None:
    budget = ByteBudget(MIB)
    sent = gzip.compress(bytes(2 * MIB))
    body = Body(budget, 4 * MIB)
    body.begin(len(sent), gzip=True)
    body.feed(sent)
    with pytest.raises(QueueFull):
        undo_all(body)
    body.release()
    assert budget.held == 0


def test_released_body_is_undone_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body(ByteBudget(10 * MIB), 4 * MIB)
    body.begin(None, gzip=True)
    body.feed(gzip.compress(bytes(2 * MIB)))
    assert body.undo()
    body.release()
    monkeypatch.delattr(encoding.Gunzip, "take")
    assert not body.undo()
