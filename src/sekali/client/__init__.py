"""The Python publisher. Of all that Sekali needs it takes urllib3 alone: a program that only publishes stays small."""

from sekali.client.errors import ClientError, Gone, NotSekali, Refused, StreamCut, TooLarge, Unreachable
from sekali.client.events import encode_event
from sekali.client.http import Answer, Server
from sekali.client.uuid7 import Uuid7

__all__ = [
    "Answer",
    "ClientError",
    "Gone",
    "NotSekali",
    "Refused",
    "Server",
    "StreamCut",
    "TooLarge",
    "Unreachable",
    "Uuid7",
    "encode_event",
]
