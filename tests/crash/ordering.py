"""The order service and the billing service of the examples beside a server, each killed again and again."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.table import Table

from crash import billing_that_dies
from e2e.server import DEADLINE_S, ServerProcess, clean_environment, lasting_port, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "orders"
PUBLISHER, SERVER, CONSUMER = "order service", "server", "billing service"
ORDERS_PER_SECOND = 60  # slow enough for the kills to fall among the orders
WAIT_S_MAX = 0.1  # from when it is somebody's turn until the kill
PROGRESS_S = 120.0  # the longest that a run may go without an order or a bill; only ever reached by one that fails


class Service:
    """A program of the examples as a process; its output goes to a file that all of its lives share."""

    def __init__(self, program: Path, output: IO[bytes], **options: object) -> None:
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._command = [sys.executable, str(program), *arguments]
        self._output = output
        self.environment: dict[str, str] = {}
        self.flags: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)} | self.environment
        self._process = subprocess.Popen([*self._command, *self.flags], env=environment, stdout=self._output)

    @property
    def exit_code(self) -> int | None:
        """None as long as it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(PROGRESS_S)

    def kill(self) -> None:
        """End it as a power cut would end a process."""
        assert self._process is not None
        self._process.kill()
        assert self.wait() == -signal.SIGKILL, "it had ended by itself"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Account:
    """What a run came to. ``redelivered`` are deliveries of an order that the inbox had."""

    seed: int
    seconds: float
    orders: int
    events: int
    bills: int
    billed_once: int
    billed_twice: int
    not_billed: int
    redelivered: int
    dead_letters: int
    kills: dict[str, int]
    kills_after_the_orders: int

    def table(self) -> Table:
        table = Table("", "", title="orders and bills", show_header=False)
        for name, value in self._rows().items():
            table.add_row(name, f"{value:,}")
        return table

    def _rows(self) -> dict[str, Any]:
        figures = asdict(self)
        kills = figures.pop("kills")
        return figures | {f"kills of the {name}": count for name, count in kills.items()}

    def document(self, command: str, machine: dict[str, Any]) -> dict[str, Any]:
        kills = self.kills | {"total": sum(self.kills.values())}
        return {"command": command, "machine": machine} | asdict(self) | {"kills": kills}


class Ordering:
    """The three processes on their files. ``has_inbox`` is whether the billing service uses its inbox."""

    def __init__(self, folder: Path, orders: int, seed: int, *, has_inbox: bool = True) -> None:
        self._begun_s = time.monotonic()
        self._folder = folder
        self._orders = orders
        self._seed = seed
        self._has_inbox = has_inbox
        self._chance = random.Random(seed)
        self._kills: Counter[str] = Counter({PUBLISHER: 0, SERVER: 0, CONSUMER: 0})
        self._late_kills = 0
        self._stack = ExitStack()
        self.server = ServerProcess(folder / "store.db", start=False, PORT=lasting_port())
        url = f"http://127.0.0.1:{self.server.settings['PORT']}"
        output = self._stack.enter_context((folder / "billing.out").open("wb"))
        ordered = self._stack.enter_context((folder / "orders.out").open("wb"))
        self._publisher = Service(
            EXAMPLE / "orders.py",
            ordered,
            url=url,
            database=folder / "orders.db",
            count=self._orders,
            **{"per-second": ORDERS_PER_SECOND},
        )
        self.consumer = Service(Path(billing_that_dies.__file__), output, url=url, database=folder / "billing.db")
        self.fault_file = folder / "billing.fault"
        self.consumer.environment["FAULT_FILE"] = str(self.fault_file)
        if not has_inbox:
            self.consumer.flags.append("--no-inbox")

    def __enter__(self) -> "Ordering":
        for one in (self.server, self._publisher, self.consumer):
            self._stack.callback(one.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        self.server.start()
        self._publisher.start()
        self.consumer.start()

    def count(self, database: str, sql: str) -> int:
        """Return a number from the database of one of the services; 0 before that has its tables."""
        path = self._folder / database
        if not path.exists():
            return 0
        with closing(sqlite3.connect(path, timeout=DEADLINE_S)) as connection:
            try:
                return int(connection.execute(sql).fetchone()[0] or 0)
            except sqlite3.OperationalError as error:
                assert "no such table" in str(error)
                return 0

    def placed(self) -> int:
        return self.count("orders.db", "SELECT max(number) FROM orders")

    def bills(self) -> int:
        return self.count("billing.db", "SELECT count(*) FROM bills")

    def kill_again_and_again(self, kills: int) -> None:
        """Start, then kill one of the three at random, spread over the orders, and start it again."""
        self.start()
        for number in range(kills):
            victim = (PUBLISHER, SERVER, CONSUMER)[number] if number < 3 else self._chance.choice(list(self._kills))
            goal = int(self._orders * 0.9 * (number + self._chance.random()) / kills)
            self._wait_for(lambda goal=goal: self.placed() >= goal, "orders are placed")  # type: ignore[misc]
            if victim == CONSUMER and self._chance.random() < 0.8:  # else perhaps before its first bill
                before = self.bills()
                self._wait_for(lambda before=before: self.bills() > before, "bills are written")  # type: ignore[misc]
            threading.Event().wait(self._chance.uniform(0, WAIT_S_MAX))
            one: Any = {PUBLISHER: self._publisher, SERVER: self.server, CONSUMER: self.consumer}[victim]
            is_late = self._publisher.exit_code == 0  # it has placed and sent everything meanwhile
            self._late_kills += is_late
            if is_late and victim == PUBLISHER:
                victim, one = CONSUMER, self.consumer
            one.kill()
            one.start()
            self._kills[victim] += 1

    def kill_at(self, point: str) -> None:
        """Start, let the billing service come to a point at which it dies, and start that again."""
        self.fault_file.write_text(point)
        self.start()
        assert self.consumer.wait() == -signal.SIGKILL
        hit = self.fault_file.with_name(self.fault_file.name + ".hit")
        assert hit.read_text() == point, "it did not die where it should"
        self._kills[CONSUMER] += 1
        self.consumer.start()

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, what, PROGRESS_S)
        except AssertionError as error:
            error.add_note(
                f"seed {self._seed}, kills {dict(self._kills)}, placed {self.placed()}, bills {self.bills()}"
            )
            raise

    def _has_come_to_the_end(self) -> bool:
        assert self.consumer.exit_code is None, "the billing service ended by itself"
        return bool(self.server.http.get_json("/subscriptions/billing")["lag"] == 0)

    def finish(self) -> Account:
        """Let them come to the end of the orders, and take account."""
        assert self._publisher.wait() == 0
        self._wait_for(self._has_come_to_the_end, "nothing is left")
        self.consumer.close()
        dead = self.server.http.get_json("/subscriptions/billing")["dead_letters"]
        events = self.server.http.stats()["unique_processed"]
        assert self.server.terminate() == 0
        with closing(sqlite3.connect(self._folder / "billing.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = connection.execute("SELECT order_number, total FROM bills").fetchall()
        with closing(sqlite3.connect(self._folder / "orders.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            orders = dict(connection.execute("SELECT number, total FROM orders").fetchall())
        assert all(orders[number] == total for number, total in found), f"billed wrongly; seed {self._seed}"
        times = Counter(number for number, _ in found)
        return Account(
            seed=self._seed,
            seconds=round(time.monotonic() - self._begun_s, 1),
            orders=len(orders),
            events=events,
            bills=len(found),
            billed_once=sum(count == 1 for count in times.values()),
            billed_twice=sum(count > 1 for count in times.values()),
            not_billed=len(orders.keys() - times.keys()),
            redelivered=(self._folder / "billing.out").read_bytes().count(b"came again"),
            dead_letters=dead,
            kills=dict(self._kills),
            kills_after_the_orders=self._late_kills,
        )
