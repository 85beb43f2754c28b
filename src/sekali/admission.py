"""Who may come in, as the settings and the file of keys say: read at the start, and again whenever the file changes."""

import asyncio
import ipaddress
import time
from datetime import UTC, datetime

import structlog

from sekali.api.access import Access
from sekali.api.proxies import Proxies
from sekali.errors import StartupError
from sekali.keyfile import KeyFile, KeyWatch
from sekali.keys import Key, Keyring, bootstrap_key
from sekali.metrics import Metrics
from sekali.settings import ServerSettings, networks

LOOK_INTERVAL_S = 0.5  # a change of the keys counts within a second

log = structlog.get_logger("sekali.access")


class Admission:
    """The keys of a server: those of the file beside its store, and the one in its settings.

    Raises:
        StartupError: they cannot be read; the message says what to do.

    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._watch = KeyWatch(KeyFile(settings.db_path))
        self._bootstrap: list[Key] = []
        if settings.bootstrap_key is not None:
            try:
                self._bootstrap = [bootstrap_key(settings.bootstrap_key.get_secret_value(), datetime.now(UTC))]
            except ValueError as error:
                raise StartupError(f"BOOTSTRAP_KEY is {error}") from None

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for: there is none in the settings, and no file, not even an empty one."""
        return self._watch.keys is None and not self._bootstrap

    def require_safe(self, address: str) -> None:
        """Refuse to listen on an address that strangers can reach while nothing would keep them out.

        Raises:
            StartupError: that is so; the message says both ways out.

        """
        if self.is_open and not _is_loopback(address) and not self._settings.allow_anonymous:
            raise StartupError(
                f"HOST {address} can be reached from other machines and there are no keys: anybody could publish and "
                "read everything. Make a key, with sekali keys create or as SEKALI_BOOTSTRAP_KEY; or say that this is "
                "what you want: SEKALI_ALLOW_ANONYMOUS=true"
            )

    def access(self, address: str, metrics: Metrics) -> Access:
        """Return the door of a server that listens on an address."""
        if self.is_open:
            log.warning("no keys: whoever can reach the address may publish and read everything", address=address)
        return Access(
            None if self.is_open else Keyring([*(self._watch.keys or []), *self._bootstrap]),
            metrics,
            only_this_machine=_is_loopback(address),
            rate_limit_per_s=self._settings.rate_limit_per_s,
            proxies=Proxies(networks(self._settings.trusted_proxies)),
            clock_s=time.monotonic,
            wall_clock_s=time.time,
        )

    async def keep_up(self, access: Access) -> None:
        """Give the door the keys whenever they change, for ever."""

        def change(keys: list[Key]) -> None:
            access.replace(Keyring([*keys, *self._bootstrap]))
            log.info("the keys have changed", keys=len(keys))

        def fault(reason: str) -> None:
            log.error("the keys stay as they were", reason=reason)

        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                self._watch.look(change, fault)
            except Exception:  # a defect of ours: a key that is revoked later must not stay good for it
                log.exception("looking for changes of the keys failed")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
