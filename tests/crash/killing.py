"""A server under writers, killed again and again: under load, while it starts, and at armed fault points."""

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from crash.account import Account
from crash.checker import Findings, Read, check
from crash.forked import ForkedServer
from crash.writers import Follower, Writer, parse
from e2e.points import MARK_POINTS, POINTS, START_POINTS
from e2e.server import ServerProcess, lasting_port, verify, wait_until

WRITERS = 6
UNDER_LOAD, STARTING = "under load", "while it starts"
# The same of `sekali serve` as it is installed, which has no fault points, big runs and a slow start.
UNMODIFIED_UNDER_LOAD, UNMODIFIED_STARTING = "sekali serve under load", "sekali serve while it starts"
# The end that is no kill: the server answers what it accepted first. Not one of the moments of a schedule.
STOPPED = "stopped by SIGTERM under load"
# After the first answer, and after the launch: a server with points starts in about 40 ms, `sekali serve` in 600.
LOAD_S_MAX = 0.1
PAUSES_S_MAX = {UNDER_LOAD: LOAD_S_MAX, STARTING: 0.05, UNMODIFIED_UNDER_LOAD: LOAD_S_MAX, UNMODIFIED_STARTING: 0.6}
MOMENTS = (*PAUSES_S_MAX, *POINTS)
WEIGHTS = (55, 15, 4, 3, *[23 / len(POINTS)] * len(POINTS))


def schedule(kills: int, chance: random.Random) -> list[str]:
    """Choose the moments of so many kills: the first one under load, each of the others once where there is room."""
    moments = [*MOMENTS, *chance.choices(MOMENTS, WEIGHTS, k=kills)][1:kills]
    chance.shuffle(moments)
    return [UNDER_LOAD, *moments]


class Killing:
    """Writers, a follower, and a server on one file and port.

    ``progress`` counts what others do with the server. In each life that is not ended at its start it has to grow.
    """

    def __init__(self, db_path: Path, faults: str, seed: int, progress: Callable[[], int] | None = None) -> None:
        port = lasting_port()
        self.url = url = f"http://127.0.0.1:{port}"
        self._progress = progress
        self._stop = threading.Event()
        self._chance = random.Random(seed)
        self.server: ServerProcess = ForkedServer(db_path, faults=faults, start=False, PORT=port)
        self.unmodified = ServerProcess(db_path, start=False, PORT=port)
        self.writers = [Writer(f"w{number}", url, f"{seed}/{number}", self._stop) for number in range(WRITERS)]
        self.follower = Follower(url, self._stop)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Let writers and follower work while this lasts."""
        with ThreadPoolExecutor(WRITERS + 1) as pool:
            working = [pool.submit(writer.run) for writer in self.writers] + [pool.submit(self.follower.run)]
            try:
                yield
            finally:
                self._stop.set()
            for one in working:
                one.result()

    def live_and_die(self, moment: str) -> None:
        """Start the server and end it at that moment."""
        if moment in POINTS:
            self._die_at(moment)
            return
        server = self.server if moment in {UNDER_LOAD, STARTING, STOPPED} else self.unmodified
        if moment in {STARTING, UNMODIFIED_STARTING}:
            server.launch()
        else:
            self._start_and_work(server)
        threading.Event().wait(self._chance.uniform(0, PAUSES_S_MAX.get(moment, LOAD_S_MAX)))
        assert server.running, f"it ended by itself: {server.log[-20:]}"
        if moment == STOPPED:
            assert server.terminate() == 0
            return
        server.kill()
        assert server.exit_code == -signal.SIGKILL

    def _start_and_work(self, server: ServerProcess) -> None:
        answered = self._answered()
        server.start()
        wait_until(lambda: self._answered() > answered, "the writers go on")
        if self._progress is not None:
            before, progress = self._progress(), self._progress
            wait_until(lambda: progress() > before, "the others go on")

    def _answered(self) -> int:
        return sum(writer.told.total() for writer in self.writers)

    def _die_at(self, point: str) -> None:
        if point == "while the index is made":
            self.live_and_die(UNDER_LOAD)  # a life in which nothing is stored leaves nothing to be made
        if point in START_POINTS + MARK_POINTS:  # the mark is written after the first commit, and then once a second
            self.server.arm(point)
            self.server.launch()
        elif self._progress is None:
            self.server.start()
            self.server.arm(point)
        else:
            self._start_and_work(self.server)
            self.server.arm(point)
        self.server.wait_for_hit(point)

    def read_all(self) -> list[Read]:
        """Read the whole log."""
        return [parse(json.loads(line)) for line in self.server.http.export().splitlines()]

    def check(self, log: Sequence[Read]) -> Findings:
        """Compare the log with what all writers sent so far."""
        return check({writer.name: writer.sent for writer in self.writers}, log)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        self.follower.close()
        self.server.close()
        self.unmodified.close()


def kill_again_and_again(
    db_path: Path, faults: str, moments: Sequence[str], seed: int, on_kill: Callable[[], None] = lambda: None
) -> Account:
    """Kill a server on ``db_path`` at each of the moments, under load; then read, heal, read again and audit.

    ``faults`` is the store of ``faults.py`` that it runs on.
    """
    begun_s = time.monotonic()
    killing = Killing(db_path, faults, seed)
    server = killing.server
    kills: Counter[str] = Counter()
    try:
        with killing.load():
            for moment in moments:
                killing.live_and_die(moment)
                kills[moment] += 1
                on_kill()
        server.start()
        found = killing.check(killing.read_all())
        for writer in killing.writers:
            writer.heal()
        log = killing.read_all()
        healed = killing.check(log)
        killing.follower.compare(log)
        lifetime = server.http.stats()["lifetime"]
        assert server.terminate() == 0, server.log[-20:]
        assert verify(db_path)["events"] == len(log)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {kills.total()} kills, the server's log: {server.log[-10:]}")
        raise
    finally:
        killing.close()
    return Account(
        seed=seed,
        seconds=time.monotonic() - begun_s,
        kills=kills,
        writers=killing.writers,
        follower=killing.follower,
        found=found,
        healed=healed,
        lifetime=lifetime,
        events=len(log),
    )
