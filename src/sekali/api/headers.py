"""The headers on every answer that keep a browser from doing harm with it. There is no CORS: no other site may read."""

import base64
import hashlib
import re
from collections.abc import MutableMapping
from typing import Any

from sekali.api.body import Send

_POLICY = b"default-src 'none'; frame-ancestors 'none'"
_EVERYWHERE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)
SECURITY_HEADERS = [*_EVERYWHERE, (b"content-security-policy", _POLICY)]
SECURITY_LINES = b"".join(b"%b: %b\r\n" % pair for pair in SECURITY_HEADERS)
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def secured(send: Send, path: str) -> Send:
    """Return ``send`` with the headers added. The page of ``/docs`` gets a policy with which it works."""

    async def send_secured(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
        await send(message)

    return _DocsPage(send).send if path == "/docs" else send_secured


class _DocsPage:
    """Holds the page's head back until its body comes: its policy names the hash of the script that stands in it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: MutableMapping[str, Any] | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._head is not None:
            policy = _docs_policy(message.get("body", b"")) if self._head["status"] == 200 else _POLICY
            secure = [*_EVERYWHERE, (b"content-security-policy", policy)]
            self._head["headers"] = [*self._head.get("headers", []), *secure]
            await self._send(self._head)
            self._head = None
        await self._send(message)


def _docs_policy(page: bytes) -> bytes:
    """Allow what Swagger UI needs: its own files, its one inline script, and the styles and pictures in its code."""
    hashes = b"".join(
        b" 'sha256-%b'" % base64.b64encode(hashlib.sha256(script).digest()) for script in _INLINE_SCRIPT.findall(page)
    )
    return (
        b"default-src 'none'; script-src 'self'%b; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" % hashes
    )
