"""Sekali: publish an event as often as you like, and it is stored once."""

from importlib.metadata import version

__version__ = version("sekali")
