"""A server that does nothing: it answers every request at once, to find out how fast the load generator is.

``python -m sekali.bench.canned BATCH`` writes its port as one line and runs until its standard input ends.
"""

import select
import socket
import sys

_RECEIVE_BYTES = 256 * 1024


def canned_answer(batch: int) -> bytes:
    """Return an answer of the size that the server gives to ``batch`` new events."""
    results = b",".join([b'{"outcome":"stored","seq":%d}' % (10_000_000 + number) for number in range(batch)])
    body = b'{"received":%d,"stored":%d,"duplicate":0,"conflict":0,"invalid":0,"results":[%b]}' % (
        batch,
        batch,
        results,
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def serve(batch: int) -> None:
    """Answer until standard input ends. It trusts its client: one request at a time, each with a Content-Length."""
    answer = canned_answer(batch)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    poll = select.epoll()
    for source in (listener, sys.stdin):
        poll.register(source, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    left: dict[int, int] = {}  # of the request being read
    buffer = bytearray(_RECEIVE_BYTES)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == sys.stdin.fileno():
                return
            if descriptor == listener.fileno():
                peer = listener.accept()[0]
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[peer.fileno()], left[peer.fileno()] = peer, 0
                poll.register(peer, select.EPOLLIN)
                continue
            peer = peers[descriptor]
            count = peer.recv_into(buffer)
            if not count:
                poll.unregister(peer)
                peers.pop(descriptor).close()
                continue
            if not left[descriptor]:
                head_end = buffer.index(b"\r\n\r\n", 0, count) + 4
                length_at = buffer.index(b"Content-Length: ", 0, head_end) + 16
                left[descriptor] = head_end + int(buffer[length_at : buffer.index(b"\r", length_at)])
            left[descriptor] -= count
            if not left[descriptor]:
                peer.sendall(answer)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
