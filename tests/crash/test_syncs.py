"""Every answer comes after a sync of all that was written for it, as the kernel saw it."""

import re
from pathlib import Path

import pytest

from crash.tools import require
from e2e.conftest import Launch
from e2e.server import event

REQUESTS = 50
NOT_SYNCED = "an answer was sent before what it stands for was synced"
# pid, name, file, arguments; then what it returned, unless another thread came between
CALL = re.compile(r"(\d+) +(\w+)\(\d+<([^>]*)>(.*?)(?:\) += (\d+)| <unfinished \.\.\.>)$")
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>.*\) += (\d+)$")


def answers_after_a_sync(launch: Launch, trace: Path, wrapper: tuple[str, ...] = ()) -> int:
    """Publish one request after the other, and return how often the server answered. Each answer follows a sync.

    Raises:
        AssertionError: one did not.

    """
    strace = [require("strace", "strace"), "-D", "-f", "-y", "--seccomp-bpf", "-o", str(trace)]
    calls = ["-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg,pwrite64,pwritev,ftruncate"]
    server = launch(wrapper=[*strace, *calls, *wrapper])
    for number in range(REQUESTS):
        new, again = event("traced", f"{number}"), event("traced", f"{number // 2}")
        variant = event("traced", f"{number // 3}", payload="variant")
        document = [new, [again], [variant], [new, again, variant]][number % 4]
        assert server.http.publish(document).status == 200
    assert server.terminate() == 0
    return _answers(trace.read_text().splitlines(), server.db_path.name + "-wal")


def _answers(lines: list[str], log_name: str) -> int:
    """Follow the calls of all threads: bytes written to the log, syncs of it that ended, and answers that began."""
    answers, synced, unsynced = 0, False, False
    unfinished: dict[str, str] = {}
    for line in lines:
        if (call := CALL.match(line)) is not None:
            pid, name, file, arguments, result = call.groups()
            if result is None:
                unfinished[pid] = file
            if file.endswith(log_name) and "write" in name:
                unsynced = True
            elif file.startswith("socket:") and '"HTTP/1.1 200 ' in arguments:
                assert synced and not unsynced, f"{NOT_SYNCED}: {answers}"
                answers, synced = answers + 1, False
        elif (call := RESUMED.match(line)) is not None:
            pid, name, result = call.groups()
            file = unfinished.pop(pid, "")
        else:
            continue
        if file.endswith(log_name) and name in {"fdatasync", "fsync"} and result == "0":
            synced, unsynced = True, False
    return answers


def test_each_answer_follows_a_sync(launch: Launch, tmp_path: Path) -> None:
    assert answers_after_a_sync(launch, tmp_path / "trace") == REQUESTS


def test_where_syncs_are_swallowed_that_is_found_out(launch: Launch, tmp_path: Path) -> None:
    """The control: with libeatmydata a sync is a function that does nothing."""
    eatmydata = require("eatmydata", "eatmydata")
    with pytest.raises(AssertionError, match=NOT_SYNCED):
        answers_after_a_sync(launch, tmp_path / "trace", (eatmydata,))
