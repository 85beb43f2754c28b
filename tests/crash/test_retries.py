"""Publishers that do not wait for the answer, and publishers that all send again at once: one row each, whatever."""

import threading
from collections import Counter

import pytest
import urllib3

from e2e.conftest import Launch
from e2e.server import Client, event, in_parallel, verify, wait_until

SENDERS, TIMES = 200, 10
CLIENT_TIMEOUT_S = 0.2


@pytest.mark.parametrize("workers", [0, 4])
def test_one_batch_from_200_senders_ten_times_is_stored_once(launch: Launch, workers: int) -> None:
    server = launch(CONSUMER_WORKERS=workers)
    http = Client(server.url, connections=SENDERS)
    batch = [event(f"storm/{number % 3}", f"e-{number}", payload={"n": number}) for number in range(30)]
    told: Counter[str] = Counter()
    seqs: set[tuple[int, ...]] = set()
    adding = threading.Lock()

    def send(_: int) -> None:
        for _ in range(TIMES):
            answer = http.publish(batch)
            assert answer.status == 200, answer
            with adding:
                told.update(answer.outcomes)
                seqs.add(tuple(answer.seqs))

    in_parallel(SENDERS, send)
    http.close()
    sent = SENDERS * TIMES * len(batch)
    assert told == {"stored": len(batch), "duplicate": sent - len(batch)}
    assert seqs == {tuple(range(1, len(batch) + 1))}, "all were told the same"
    at_once = max(line["requests"] for line in server.log if line["event"] == "commit")
    assert at_once >= 20, "the senders did not overlap"
    events = server.http.events()
    assert [one["seq"] for one in events] == list(range(1, len(batch) + 1))
    assert {one["duplicates"] for one in events} == {SENDERS * TIMES - 1}
    expected = {"received": sent, "stored": len(batch), "duplicate": sent - len(batch), "conflict": 0}
    assert server.http.stats()["lifetime"] == expected
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == len(batch)


@pytest.mark.parametrize("first_is_committed", [True, False])
def test_a_client_that_gives_up_before_the_commit_learns_by_its_retry(launch: Launch, first_is_committed: bool) -> None:
    """The retry comes after the commit, or while it is still under way: then it waits behind it."""
    server = launch(faults="held")
    impatient = Client(server.url, timeout_s=CLIENT_TIMEOUT_S)
    batch = [event("slow", f"{number}") for number in range(50)]
    server.fault_file.touch()
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        impatient.publish(batch)
    assert server.http.events() == [], "the commit came before the client gave up"
    if first_is_committed:
        server.fault_file.unlink()
        wait_until(lambda: len(server.http.events()) == len(batch), "the commit goes on without the client")
    else:
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            impatient.publish(batch)
        wait_until(lambda: server.http.stats()["queue_depth"] == 2 * len(batch), "both wait")
        server.fault_file.unlink()
    answer = server.http.publish(batch)
    assert answer.outcomes == ["duplicate"] * len(batch) and answer.seqs == list(range(1, len(batch) + 1))
    times = 2 if first_is_committed else 3
    expected = {"received": times * 50, "stored": 50, "duplicate": (times - 1) * 50, "conflict": 0}
    assert server.http.stats()["lifetime"] == expected
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == len(batch)
