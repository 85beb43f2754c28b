"""What all connections of a server share: how many there may be, how long each may take, how much waits on them."""

import resource
from collections.abc import Collection
from typing import Protocol

from sekali.api.problems import Kind, Problem
from sekali.errors import StartupError
from sekali.metrics import Ending, Metrics
from sekali.settings import ServerSettings

TAKEN_BYTES_MIN = 64 * 1024  # what a client has to take of an answer within ANSWER_TIMEOUT_S, if there is so much
DESCRIPTORS_BESIDE = 330  # what a server opens beside: store, index, readers, standard streams, webhooks


class Connection(Protocol):
    """What is asked of a connection here."""

    @property
    def idle_until_s(self) -> float | None:
        """When it will be closed for being idle, by the clock of the loop; None where it is not idle."""

    def cut(self, reason: Ending) -> None:
        """End it at once, whatever it has to send."""


class Connections:
    """The limits of a server's connections, and what they hold together. Belongs to the event loop."""

    def __init__(self, metrics: Metrics, settings: ServerSettings) -> None:
        self.open = 0
        self.header_timeout_s = settings.header_timeout_s
        self.body_timeout_s = settings.body_timeout_s
        self.answer_timeout_s = settings.answer_timeout_s
        self._metrics = metrics
        self.bytes_held = 0
        self._connections_max = settings.connections_max
        self._bytes_max = settings.connection_bytes_max
        self._held: dict[Connection, int] = {}  # who has waited longest comes first

    def refusal(self, connections: Collection[Connection]) -> Problem | None:
        """Say what to answer to the newest of so many connections, None if it may stay.

        Where there are too many, the one that has been idle longest gives way to it.
        """
        if len(connections) <= self._connections_max:
            return None
        idle = [(one.idle_until_s, number, one) for number, one in enumerate(connections) if one.idle_until_s]
        if idle:
            min(idle)[-1].cut(Ending.GAVE_WAY)
            return None
        self.count_ended(Ending.REFUSED)
        return Problem(
            Kind.QUEUE_FULL,
            f"{self._connections_max} connections are in use, the most there may be (CONNECTIONS_MAX); try again",
            headers=[(b"connection", b"close")],
        )

    def count_ended(self, reason: Ending) -> None:
        """Count a connection that the server ends before its time."""
        self._metrics.connections_ended[reason] += 1

    def hold(self, connection: Connection, count: int) -> None:
        """Say how many bytes wait on a connection now; where it is too many in all, cut who has waited longest."""
        before = self._held.get(connection, 0)
        self.bytes_held += count - before
        if not count:
            self._held.pop(connection, None)
            return
        self._held[connection] = count
        while self.bytes_held > self._bytes_max:
            next(iter(self._held)).cut(Ending.WAITED_LONGEST)  # which lets go of what it holds


def require_descriptors(connections_max: int) -> None:
    """See to it that the process may have so many connections open, and the files it needs beside them.

    Raises:
        StartupError: the system does not let it.

    """
    needed = connections_max + DESCRIPTORS_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartupError(
            f"CONNECTIONS_MAX is {connections_max}, which needs {needed} open files, and the process may have {hard}: "
            f"lower it, or raise the limit (ulimit -n {needed})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
