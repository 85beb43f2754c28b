"""The server as publisher and relay use it: one attempt at a time, because they decide themselves what comes next."""

# urllib3 needs it for its first connection. A fork while a thread imports it would leave the child waiting for it.
import encodings.idna  # noqa: F401
import os

from sekali.client.http import Server


def server_for_single_attempts(url: str, api_key: str | None, ca_file: str | None) -> Server:
    """Return the server at a URL. What is not given comes from ``SEKALI_API_KEY`` and ``SEKALI_CA_FILE``.

    Raises:
        ValueError: see ``Server``.

    """
    return Server(
        url,
        api_key=api_key or os.environ.get("SEKALI_API_KEY") or None,
        ca_file=ca_file or os.environ.get("SEKALI_CA_FILE") or None,
        give_up_after_s=0,
    )
