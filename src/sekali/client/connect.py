"""The server as a publisher, relay or subscriber finds it."""

# urllib3 needs it for its first connection. A fork while a thread imports it would leave the child waiting for it.
import encodings.idna  # noqa: F401
import os
from typing import Any

from sekali.client.http import Server


def open_server(url: str, api_key: str | None, ca_file: str | None, **options: Any) -> Server:
    """Return the server at a URL. What is not given comes from ``SEKALI_API_KEY`` and ``SEKALI_CA_FILE``.

    ``options`` are further ones of ``Server``: who decides himself what comes next makes single attempts.

    Raises:
        ValueError: see ``Server``.

    """
    return Server(
        url,
        api_key=api_key or os.environ.get("SEKALI_API_KEY") or None,
        ca_file=ca_file or os.environ.get("SEKALI_CA_FILE") or None,
        **options,
    )
