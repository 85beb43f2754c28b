"""What can go wrong between a publisher or reader and the server."""


class ClientError(Exception):
    """A request came to nothing. The message says what happened and what to do next."""


class Unreachable(ClientError):
    """The server was not there, or not able, until it was time to give up. It asked to wait ``retry_after_s`` more."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


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


class BufferFull(ClientError):
    """There was no room for an event, so it was dropped or not taken."""


class PublisherClosed(ClientError):
    """The publisher was closed before the event was published or answered. If it was sent, it may be stored."""


class OutboxFailed(ClientError):
    """An event could not be put on disk. It may be there all the same: publish the same ``Event`` again."""


class NoTransaction(ClientError):
    """The connection has no transaction open, so what was to happen together would not."""
