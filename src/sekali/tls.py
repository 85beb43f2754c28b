"""The server's side of TLS."""

import ssl
from pathlib import Path

from sekali.errors import StartupError


def server_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """Return what a listener needs to speak TLS 1.2 and 1.3.

    Raises:
        StartupError: a file cannot be read, or the two do not belong together; the message says which.

    """
    for setting, path in (("TLS_CERT_FILE", cert_file), ("TLS_KEY_FILE", key_file)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise StartupError(f"{setting} {path} cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartupError(f"TLS_KEY_FILE {key_file} is not the key of TLS_CERT_FILE {cert_file}") from None
        raise StartupError(
            f"TLS_CERT_FILE {cert_file} and TLS_KEY_FILE {key_file} are not a certificate and its key in PEM "
            f"({error.reason or error})"
        ) from None
    return context


def _no_password() -> str:
    """A key with a password would have the process wait for somebody to type it."""
    raise StartupError("TLS_KEY_FILE has a password; give a key without one that only the server's user may read")
