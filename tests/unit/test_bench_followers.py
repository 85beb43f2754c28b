"""The followers and consumers of the benchmarks notice what is not as it must be."""

import socket

import pytest

from sekali.bench.consumers import _Account
from sekali.bench.followers import FollowStream, Wrong

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BEGIN = b"retry: 2000\nid: %b-0\n\n" % (b"a" * 32)


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


def event(seq: int) -> bytes:
    processed_at = b"2026-11-23T10:15:30.123456789Z"
    return b'id: %b-%d\ndata: {"processed_at":"%b","seq":%d}\n\n' % (b"a" * 32, seq, processed_at, seq)


def followed(*pieces: bytes) -> FollowStream:
    """Return a follower that got these pieces, one at a time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = FollowStream(ours, is_timed=True)
        for piece in pieces:
            theirs.sendall(piece)
            stream.receive()
    return stream


def test_a_stream_is_counted_in_whatever_pieces_it_comes() -> None:
    data = HEAD + chunk(BEGIN) + chunk(event(5) + event(6)) + chunk(b":\n\n") + chunk(event(7))
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        stream = followed(*pieces)
        assert (stream.is_open, stream.events, stream.last_seq) == (True, 3, 7)
        assert sum(len(committed) for _, committed in stream.timed) == 3


@pytest.mark.parametrize("second", [5, 7, 4])
def test_a_gap_or_a_repeat_is_noticed(second: int) -> None:
    with pytest.raises(Wrong, match=f"after 5 came {second}"):
        followed(HEAD + chunk(BEGIN) + chunk(event(5)), chunk(event(second)))


def test_a_stream_that_is_refused_or_ends_is_noticed() -> None:
    with pytest.raises(Wrong, match=r"refused: HTTP/1\.1 503"):
        followed(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(Wrong, match="ended"):
        FollowStream(ours, is_timed=False).receive()


@pytest.mark.parametrize("numbers", [[3], [1], [2, 4], [2, 2]])
def test_a_consumer_that_skips_or_repeats_is_noticed(numbers: list[int]) -> None:
    account = _Account()
    account.take([0, 1])
    with pytest.raises(Wrong, match="after 1 came"):
        account.take(numbers)
