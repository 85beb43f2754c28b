"""What can go wrong between a publisher or reader and the server."""


class ClientError(Exception):
    """A request came to nothing. The message says what happened and what to do next."""


class Unreachable(ClientError):
    """The server was not there, or not able, until it was time to give up."""


class NotSekali(ClientError):
    """Something answered that is no Sekali server."""


class StreamCut(ClientError):
    """A stream ended before it was complete."""


class Refused(ClientError):
    """The server refused the request, and would again. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TooLarge(Refused):
    """The request is over one of the server's limits (413)."""


class Gone(Refused):
    """The position belongs to another log, or lies above the newest event of this one (410)."""


class InputFailed(ClientError):
    """A file that was to be published cannot be read."""
