"""Disks that fill up, fail, do not answer or lose something, under a real server."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from e2e.conftest import Launch
from e2e.server import Client, ServerProcess, event, run_sekali, verify, wait_until

MIB = 1024 * 1024
DISK_BYTES = 24 * MIB
FREE_BYTES_MIN = 8 * MIB
# 64 events of 16 KiB.
BIG = "x" * (16 * 1024)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: full disks (a small tmpfs) were NOT TESTED")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "sekali-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def batch(number: int) -> list[dict[str, object]]:
    return [event("disk", f"{number}-{position}", payload=BIG) for position in range(64)]


def fill(server: ServerProcess) -> list[int]:
    """Publish until the server refuses; return the numbers of the batches that it answered."""
    acknowledged: list[int] = []
    for number in range(10_000):
        answer = server.http.publish(batch(number))
        if answer.status == 503:
            assert 1 <= int(answer.headers["Retry-After"]) <= 5
            return acknowledged
        assert answer.status == 200 and set(answer.outcomes) == {"stored"}
        acknowledged.append(number)
    raise AssertionError("the disk does not fill up")


def assert_all_there(http: Client, acknowledged: list[int]) -> None:
    ids = [f"{number}-{position}" for number in acknowledged for position in range(64)]
    question = {"topic": "disk", "event_ids": ids}
    answer = http.request("POST", "/exists", body=json.dumps(question).encode())
    assert answer.json() == {"missing": []}


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


@needs_root
def test_before_the_disk_is_full_publishing_stops_reading_goes_on_and_all_resumes_by_itself(
    launch: Launch, disk: Path
) -> None:
    server = launch(disk / "store.db", DISK_FREE_BYTES_MIN=FREE_BYTES_MIN)
    acknowledged = fill(server)
    # What is in the write-ahead log will take its place a second time.
    assert acknowledged and 0 < free(disk) < FREE_BYTES_MIN + server.http.metric("sekali_store_wal_bytes")
    refused = server.http.publish(batch(99_999))
    assert refused.status == 503 and "DISK_FREE_BYTES_MIN" in refused.json()["detail"]
    health = server.http.get("/healthz")
    assert health.status == 503 and "make room" in health.json()["detail"]
    assert server.http.metric("sekali_healthy") == 0
    assert server.http.metric("sekali_store_disk_free_bytes") == free(disk)
    assert server.http.events(topic="disk", limit=3)[2]["payload"] == BIG
    assert_all_there(server.http, acknowledged)

    remount(disk, f"size={4 * DISK_BYTES}")
    wait_until(lambda: server.http.get("/healthz").status == 200, "it resumes")
    assert set(server.http.publish(batch(0)).outcomes) == {"duplicate"}
    assert set(server.http.publish(batch(99_999)).outcomes) == {"stored"}
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == 64 * (len(acknowledged) + 1)


@needs_root
def test_a_disk_that_is_full_to_the_last_byte_loses_nothing_and_nobody_gives_up(launch: Launch, disk: Path) -> None:
    """Without the mark: SQLite itself meets the end of the disk."""
    server = launch(disk / "store.db", DISK_FREE_BYTES_MIN=1)
    acknowledged = fill(server)
    assert acknowledged
    assert server.http.events(topic="disk", limit=1)[0]["seq"] == 1
    assert server.http.get("/metrics").status == 200
    remount(disk, f"size={8 * DISK_BYTES}")
    wait_until(lambda: server.http.get("/healthz").status == 200, "it resumes")
    assert_all_there(server.http, acknowledged)
    for number in (*acknowledged, len(acknowledged)):
        outcomes = set(server.http.publish(batch(number)).outcomes)
        assert outcomes == {"duplicate"} or number == len(acknowledged)
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == 64 * (len(acknowledged) + 1)


@needs_root
def test_a_disk_that_is_full_at_the_start_is_told_in_a_sentence(launch: Launch, disk: Path) -> None:
    (disk / "ballast").write_bytes(bytes(free(disk)))
    assert free(disk) == 0
    server = launch(disk / "data" / "store.db", start=False)
    server.launch()
    assert server.wait() == 3
    assert "Traceback" not in str(server.log)
    assert any("disk" in str(line["event"]) or "space" in str(line["event"]) for line in server.log), server.log


@needs_root
def test_a_folder_that_is_read_only_is_told_in_a_sentence(launch: Launch, disk: Path) -> None:
    remount(disk, "ro")
    for folder in (disk, disk / "new"):
        server = launch(folder / "store.db", start=False)
        server.launch()
        assert server.wait() == 3
        (line,) = server.log
        assert "Read-only file system" in line["event"] or "cannot be written to" in line["event"], line
        assert "DB_PATH" in line["event"], line
    remount(disk, "rw")


def under_strace(server: ServerProcess, inject: str) -> None:
    """Let system calls of a running server fail from now on, until the process ends."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(server.pid)], stderr=subprocess.PIPE
    )
    threading.Thread(target=tracer.communicate, daemon=True).start()
    status = Path(f"/proc/{server.pid}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "strace is attached")


FSYNC_FAILS = "inject=fdatasync,fsync:error=EIO"


def test_a_sync_that_fails_for_good_is_503_then_the_server_gives_up_and_loses_nothing(launch: Launch) -> None:
    server = launch(faults="few-probes")
    assert server.http.publish([event("a", str(number)) for number in range(10)]).status == 200
    under_strace(server, FSYNC_FAILS)
    answer = server.http.publish([event("a", "unknown")])
    assert answer.status == 503 and "disk I/O error" in answer.json()["detail"], answer
    assert server.wait() == 4
    gave_up = next(line for line in server.log if str(line["event"]).startswith("gave up"))
    assert gave_up["level"] == "error" and "See to the disk" in gave_up["event"]
    assert "disk I/O error" in gave_up["reason"] and gave_up["db_path"] == str(server.db_path)
    server.faults = None
    server.start()
    assert server.http.publish([event("a", str(number)) for number in range(10)]).outcomes == ["duplicate"] * 10
    assert server.http.publish([event("a", "unknown")]).outcomes[0] in {"stored", "duplicate"}
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == 11


@pytest.mark.parametrize("number", range(1, 9))
def test_one_sync_that_fails_is_503_and_the_retry_settles_it(launch: Launch, number: int) -> None:
    """It is sync ``number`` of each thread: of the writer, and of the one that writes the mark.

    The writer's second is that of the folder, which SQLite makes once more after ours and does not look at.
    """
    server = launch()
    under_strace(server, f"{FSYNC_FAILS}:when={number}")
    refused = 0

    def is_answered() -> bool:
        nonlocal refused
        answer = server.http.publish([event("a", str(count))])
        if answer.status == 503:
            refused += 1
            return False
        assert answer.outcomes[0] in {"stored", "duplicate"}
        return True

    count = 0
    while count <= number:
        wait_until(is_answered, "the publisher gets its verdict")
        count += 1
    assert server.http.get("/healthz").status == 200
    assert (refused > 0) == (server.http.metric("sekali_commit_failures_total") > 0) == (number != 2)
    assert server.http.stats()["unique_processed"] == number + 1
    server.kill()
    assert verify(server.db_path)["events"] == number + 1


def test_a_commit_that_hangs_is_503_and_the_server_can_be_stopped(launch: Launch) -> None:
    server = launch(faults="hanging", STOP_TIMEOUT_S=0.2)
    assert server.http.publish([event("a", "1")]).status == 200
    server.fault_file.touch()
    answer = server.http.publish([event("a", "2")])
    assert answer.status == 503 and "does not answer" in answer.json()["detail"]
    assert server.http.publish([event("a", "3")]).status == 503
    assert server.http.get("/healthz").status == 503
    assert [one["event_id"] for one in server.http.events()] == ["1"]
    assert server.terminate() == 1
    server.fault_file.unlink()
    server.start()
    assert server.http.publish([event("a", "1"), event("a", "2")]).outcomes == ["duplicate", "stored"]


def test_a_log_that_lost_its_end_is_refused_until_that_is_accepted(launch: Launch) -> None:
    server = launch()
    server.http.publish([event("a", "1")])
    assert server.terminate() == 0
    older = Path(shutil.copy(server.db_path, server.db_path.with_name("older")))
    server.start()
    server.http.publish([event("a", "2")])
    cursor = server.http.get("/events", limit=1).next
    log_id = server.http.stats()["log_id"]
    assert server.terminate() == 0
    shutil.copy(older, server.db_path)
    server.launch()
    assert server.wait() == 3
    (line,) = server.log
    assert "lost its end" in line["event"] and "1 events" in line["event"] and "--accept-lost-tail" in line["event"]
    server.options = ["--accept-lost-tail"]
    server.start()
    assert server.http.stats()["log_id"] != log_id
    assert server.http.get(str(cursor)).status == 410
    assert server.http.publish([event("a", "1"), event("a", "2")]).outcomes == ["duplicate", "stored"]
    assert server.terminate() == 0
    server.options = []
    server.start()


def test_a_flipped_bit_is_an_error_for_its_row_and_verify_names_it(launch: Launch) -> None:
    server = launch()
    server.http.publish([event("a", str(number), payload={"text": f"needle-{number}"}) for number in range(5)])
    assert server.terminate() == 0
    data = bytearray(server.db_path.read_bytes())
    data[data.index(b"needle-3")] ^= 1
    server.db_path.write_bytes(data)
    server.start()
    found = server.http.events()
    assert [one["seq"] for one in found if "error" in one] == [4] and len(found) == 5
    lines = server.http.export().splitlines()
    assert len(lines) == 5 and b'"error"' in lines[3]
    assert server.terminate() == 0
    result = run_sekali("verify", "--db-path", server.db_path, "--json")
    assert result.returncode == 1 and "seq 4: the checksum does not fit" in result.stdout


def test_a_reader_that_stays_holds_the_write_ahead_log_back_and_the_metric_shows_it(launch: Launch) -> None:
    """A reader of another program, which the server cannot end. Its own are ended, see test_sqlite_file."""
    server = launch()

    def wal_bytes() -> float:
        return server.http.metric("sekali_store_wal_bytes")

    server.http.publish(batch(0))
    reader = apsw.Connection(str(server.db_path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN; SELECT count(*) FROM events")
    number = 1
    while wal_bytes() < 40 * MIB:
        assert server.http.publish(batch(number)).status == 200
        number += 1
        assert number < 100
    reader.close(True)
    sizes = [wal_bytes()]
    while sizes[-40:] != [sizes[-1]] * 40:  # it starts over, and stays as large as it was
        assert server.http.publish(batch(number)).status == 200
        sizes.append(wal_bytes())
        number += 1
        assert number < 600, sizes
