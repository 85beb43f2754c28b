"""The server that a client command talks to, and what it shows there to be let in."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sekali.cli.options import setting_option
from sekali.client.http import Server
from sekali.settings import PublisherSettings

# There is no option for the key itself: every process of a machine can read the command lines of all.
ApiKeyFile = Annotated[Path | None, setting_option(PublisherSettings, "api_key_file", "--api-key-file")]
CaFile = Annotated[Path | None, setting_option(PublisherSettings, "ca_file", "--ca-file")]


def connect(settings: PublisherSettings, **options: Any) -> Server:
    """Return the server that the settings name; ``options`` are further ones of ``Server``.

    Raises:
        typer.BadParameter: it is not one, or the key or the file of certificates cannot be used.

    """
    ca_file = None if settings.ca_file is None else str(settings.ca_file)
    try:
        return Server(settings.aggregator_url, api_key=_api_key(settings), ca_file=ca_file, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _api_key(settings: PublisherSettings) -> str | None:
    if settings.api_key_file is None:
        return None if settings.api_key is None else settings.api_key.get_secret_value()
    try:
        return settings.api_key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise typer.BadParameter(f"the key file {settings.api_key_file} cannot be read: {reason}") from None
