"""What every command shows, and how: tables for people, JSON for programs, errors with what to do next."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from sekali.client.errors import ClientError, Gone, InputFailed, Refused
from sekali.printable import escape_controls

EXIT_OK = 0
EXIT_NOT_ALL = 1  # something was invalid, in conflict or refused
EXIT_USAGE = 2
EXIT_NO_SERVER = 3
EXIT_INTERRUPTED = 130

_UNLIMITED_WIDTH = 1_000_000


def console() -> Console:
    """Return the console for results: standard output. Only a terminal has an edge to cut lines at."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH)


def error_console() -> Console:
    """Return the console for progress and errors: standard error."""
    return Console(stderr=True, highlight=False)


def write_line(text: str) -> None:
    """Write one line to standard output, escaped, at once."""
    sys.stdout.write(escape_controls(text) + "\n")
    sys.stdout.flush()


def write_json(document: Any) -> None:
    """Write one JSON document as one line."""
    write_line(json.dumps(document, ensure_ascii=False))


def print_error(message: str) -> None:
    """Say on standard error what went wrong."""
    error_console().print(Text.assemble(("error: ", "bold red"), escape_controls(message)), soft_wrap=True)


def print_note(message: str) -> None:
    """Say on standard error what is good to know beside the result."""
    error_console().print(Text(escape_controls(message), style="dim"), soft_wrap=True)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn what may go wrong with the server into a message and an exit code.

    Raises:
        typer.Exit: always instead of a ``ClientError``, and when the reader of standard output went away.

    """
    try:
        yield
    except Gone as error:
        print_error(f"{error}. Read from the start: --after earliest, or --after 0")
        raise typer.Exit(EXIT_NOT_ALL) from None
    except ClientError as error:
        print_error(str(error))
        raise typer.Exit(exit_code_of(error)) from None
    except BrokenPipeError:
        # As of ``| head``: it has what it wanted. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_OK) from None


def exit_code_of(error: ClientError) -> int:
    """Return the exit code that tells scripts about an error."""
    if isinstance(error, InputFailed):
        return EXIT_USAGE
    if isinstance(error, Refused):
        return EXIT_USAGE if error.status == 422 else EXIT_NOT_ALL
    return EXIT_NO_SERVER
