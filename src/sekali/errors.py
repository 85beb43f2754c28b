"""What can go wrong, by whose fault it is. ``api/problems.py`` alone maps these to HTTP statuses."""


class SekaliError(Exception):
    """Something went wrong in Sekali."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else (self.__doc__ or "").strip().splitlines()[0])


# The caller's fault: the same request will fail again.


class NotJson(SekaliError):
    """The document is not JSON."""


class TooManyItems(SekaliError):
    """The request holds more items than one request may."""


class InvalidQuery(SekaliError):
    """A parameter of the query is not valid."""

    def __init__(self, parameter: str, detail: str) -> None:
        super().__init__(f"{parameter}: {detail}")
        self.parameter = parameter
        self.detail = detail


class NoSuchSubscription(SekaliError):
    """There is no such subscription."""


class SubscriptionDiffers(SekaliError):
    """The subscription is another one than was meant."""


class TooManySubscriptions(SekaliError):
    """There is no room for another subscription."""


class LeaseGone(SekaliError):
    """The lease ran out, or all that it held is settled."""


class PositionGone(SekaliError):
    """The position belongs to another log, or lies above the newest event of this one."""


# Nobody's fault or ours: the same request may succeed later.


class Unavailable(SekaliError):
    """Nothing can be made durable right now; send the request again."""


class QueueFull(Unavailable):
    """The queue is full; send the request again."""


class DiskFull(Unavailable):
    """There is too little room on the disk; nothing was changed."""


class TookTooLong(Unavailable):
    """A query took too long and was ended."""


class CommitUnknown(Unavailable):
    """A commit failed, and whether its events are stored is not known; send the request again, dedup settles it."""


# The operator's fault: the process cannot do what was asked and says what to change.


class StartupError(SekaliError):
    """The server cannot start."""


class StoreBroken(SekaliError):
    """The store cannot be opened."""
