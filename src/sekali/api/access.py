"""The door: who sent a request, whether it may come in, and what is written down where it may not.

Without keys everybody is let in, but for browsers: a page of any site can make its visitor's browser send requests to
this machine. So what comes from another site's page is refused, and, where only this machine is listened to, what names
a host that somebody else's DNS has pointed here (DNS rebinding). Browsers say where a request comes from in headers
that pages cannot set (https://www.w3.org/TR/fetch-metadata/).
"""

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache

import structlog

from sekali.api.problems import Kind, Problem
from sekali.api.proxies import Proxies
from sekali.api.ratelimit import RateLimit
from sekali.keys import ANYBODY, Grant, Keyring
from sekali.metrics import Metrics

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case
Peer = tuple[str, int] | None

REFUSALS_LOGGED_A_SECOND = 10
REFUSALS = frozenset({Kind.NO_KEY, Kind.FORBIDDEN, Kind.FOREIGN_PAGE, Kind.RATE_LIMITED})
_READ = frozenset({b"authorization", b"origin", b"host", b"sec-fetch-site"})
_BASIC = b'Basic realm="sekali", charset="UTF-8"'
_CHALLENGE = (b"www-authenticate", b'Bearer realm="sekali", ' + _BASIC)
_CHALLENGE_AGAIN = (b"www-authenticate", b'Bearer realm="sekali", error="invalid_token", ' + _BASIC)

log = structlog.get_logger("sekali.access")


class Access:
    """Decides who may come in. Belongs to the event loop.

    ``ring`` is None where there are no keys, and everybody may do everything. ``only_this_machine``: the server listens
    on a loopback address. ``wall_clock_s`` gives seconds since 1970, ``clock_s`` is monotonic.
    """

    def __init__(
        self,
        ring: Keyring | None,
        metrics: Metrics,
        *,
        only_this_machine: bool,
        rate_limit_per_s: float,
        proxies: Proxies,
        clock_s: Callable[[], float],
        wall_clock_s: Callable[[], float],
    ) -> None:
        self._ring = ring
        self._metrics = metrics
        self._only_this_machine = only_this_machine
        self._rate = RateLimit(rate_limit_per_s, clock_s) if rate_limit_per_s else None
        self._proxies = proxies
        self._clock_s = clock_s
        self._wall_clock_s = wall_clock_s
        self._second = 0
        self._logged = 0  # in that second
        self._untold = 0

    def replace(self, ring: Keyring) -> None:
        """From now on these are the keys. Once there were any, a key is asked for until the end of the process."""
        self._ring = ring

    def admit(self, headers: Headers) -> Grant:
        """Return what the sender of a request may do.

        Raises:
            Problem: it has no valid key (401), comes from another site's page (403) or sends too much (429).

        """
        found = {name: value for name, value in headers if name in _READ}
        self._refuse_foreign_pages(found)
        grant = ANYBODY if self._ring is None else self._recognise(self._ring, found.get(b"authorization"))
        if self._rate is not None and (wait_s := self._rate.take(grant.name)):
            raise Problem(
                Kind.RATE_LIMITED,
                f"{grant.name} sends more than RATE_LIMIT_PER_S ({self._rate.per_s:g} requests and events a second)",
                headers=[(b"retry-after", b"%d" % wait_s)],
            )
        return grant

    def look_at(self, headers: Headers) -> Grant | None:
        """Return what the sender of a request may do, or None: for routes that are open to everybody.

        Raises:
            Problem: it comes from another site's page.

        """
        found = {name: value for name, value in headers if name in _READ}
        self._refuse_foreign_pages(found)
        if self._ring is None:
            return ANYBODY
        try:
            return self._recognise(self._ring, found.get(b"authorization"))
        except Problem:
            return None

    def charge(self, grant: Grant, events: int) -> None:
        """Count the events of a request against the rate of its sender."""
        if self._rate is not None:
            self._rate.charge(grant.name, events)

    def still_holds(self, grant: Grant) -> bool:
        """Whether a grant given before would be given now: the key was neither revoked nor has it expired."""
        if self._ring is None:
            return True
        return self._ring.holds(grant) and not self._is_expired(grant)

    def note(self, problem: Problem, path: str, headers: Headers, peer: Peer, grant: Grant | None) -> None:
        """Count and log that a request was refused, and for whom. Of very many in a second some are only counted."""
        status = problem.kind.value.status
        self._metrics.count_refusal(status)
        second = int(self._clock_s())
        if second != self._second:
            self._second, self._logged = second, 0
        if self._logged == REFUSALS_LOGGED_A_SECOND:
            self._untold += 1
            return
        self._logged += 1
        not_logged, self._untold = self._untold, 0
        log.info(
            "refused",
            status=status,
            reason=problem.detail,
            path=path,
            client=self._proxies.client(peer, headers),
            name=None if grant is None else grant.name,
            **({"not_logged_before": not_logged} if not_logged else {}),
        )

    def _recognise(self, ring: Keyring, authorization: bytes | None) -> Grant:
        if authorization is None:
            raise Problem(
                Kind.NO_KEY,
                "send Authorization: Bearer and the key, or Basic with the key's id as user and its secret as password",
                headers=[_CHALLENGE],
            )
        grant = ring.grant(authorization)
        if grant is None:
            raise Problem(Kind.NO_KEY, "this is no key of this server, or no longer", headers=[_CHALLENGE_AGAIN])
        if self._is_expired(grant):
            raise Problem(Kind.NO_KEY, "the key has expired; ask for a new one", headers=[_CHALLENGE_AGAIN])
        return grant

    def _is_expired(self, grant: Grant) -> bool:
        return grant.expires_at_s is not None and self._wall_clock_s() >= grant.expires_at_s

    def _refuse_foreign_pages(self, found: dict[bytes, bytes]) -> None:
        host = found.get(b"host", b"")
        site = found.get(b"sec-fetch-site")
        if site is None:
            origin = found.get(b"origin")
            is_foreign = origin is not None and origin.partition(b"://")[2].lower() != host.lower()
        else:
            is_foreign = site not in {b"same-origin", b"none"}
        if is_foreign:
            raise Problem(Kind.FOREIGN_PAGE, "it was sent by a page of another site; use the API from a program")
        if self._ring is None and self._only_this_machine and host and not _is_this_machine(host):
            raise Problem(
                Kind.FOREIGN_PAGE,
                "the Host header names neither an IP address nor localhost; without keys no other name is answered. "
                "Ask by address, or make a key: sekali keys create",
            )


@lru_cache(maxsize=64)
def _is_this_machine(host: bytes) -> bool:
    """Whether a Host header holds an IP address or localhost, which no stranger's DNS can point anywhere."""
    name = host.decode("latin-1").lower()
    # An address of IPv6 stands in brackets. One without its end is left as it is, which is no address.
    name = name[1:].partition("]")[0] if name.startswith("[") and "]" in name else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def missing_scope(*scopes: str) -> Problem:
    """Return the refusal of what one of these scopes would allow."""
    return Problem(
        Kind.FORBIDDEN,
        f"the key may not do this; it needs the scope {' or '.join(scopes)}",
        extra={"missing_scopes": list(scopes)},
    )


def require_topic(grant: Grant, topic: str) -> None:
    """Refuse a topic that may not be read, whether it exists or not.

    Raises:
        Problem: 403.

    """
    if not grant.may_read(topic):
        raise missing_scope(f"read:{topic}")


def require_reader(grant: Grant) -> None:
    """Refuse a sender that may read nothing at all.

    Raises:
        Problem: 403.

    """
    if grant.readable == ():
        raise missing_scope("read:<topic or pattern>")


def require_everything(grant: Grant) -> None:
    """Refuse a sender that may not read everything.

    Raises:
        Problem: 403.

    """
    if grant.readable is not None:
        raise missing_scope("read:**")
