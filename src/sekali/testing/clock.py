"""A clock to set by hand."""


class FakeClock:
    """A clock that moves only when told to. ``ns`` is the time it shows."""

    def __init__(self, ns: int = 1_800_000_000_000_000_000) -> None:
        self.ns = ns

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        """Move the clock; backwards with a negative number."""
        self.ns += round(seconds * 1e9)
