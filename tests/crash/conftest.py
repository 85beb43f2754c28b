"""The servers of the end-to-end tests."""

from e2e.conftest import launch

__all__ = ["launch"]
