"""The Python client. Of all that Sekali needs it takes urllib3 alone: programs that publish or consume stay small."""

from sekali.client.asynchronous import AsyncPublisher
from sekali.client.delivery import Delivery, Verdict
from sekali.client.errors import (
    BufferFull,
    ClientError,
    Gone,
    NoTransaction,
    NotSekali,
    OutboxFailed,
    PublisherClosed,
    Refused,
    StreamCut,
    TooLarge,
    Unreachable,
)
from sekali.client.events import Event, encode_event, new_event
from sekali.client.follower import Follower
from sekali.client.http import Answer, Server
from sekali.client.inbox import Inbox
from sekali.client.logs import SekaliHandler, SekaliProcessor
from sekali.client.outbox import FailedEvent, Outbox
from sekali.client.outbox_file import OutboxFile
from sekali.client.positions import Positions
from sekali.client.publisher import Counts, Publisher
from sekali.client.relay import Relay
from sekali.client.sending import Limits, WhenFull
from sekali.client.subscriber import Subscriber, SubscriberCounts, SubscriptionFields
from sekali.client.uuid7 import Uuid7

__all__ = [
    "Answer",
    "AsyncPublisher",
    "BufferFull",
    "ClientError",
    "Counts",
    "Delivery",
    "Event",
    "FailedEvent",
    "Follower",
    "Gone",
    "Inbox",
    "Limits",
    "NoTransaction",
    "NotSekali",
    "Outbox",
    "OutboxFailed",
    "OutboxFile",
    "Positions",
    "Publisher",
    "PublisherClosed",
    "Refused",
    "Relay",
    "SekaliHandler",
    "SekaliProcessor",
    "Server",
    "StreamCut",
    "Subscriber",
    "SubscriberCounts",
    "SubscriptionFields",
    "TooLarge",
    "Unreachable",
    "Uuid7",
    "Verdict",
    "WhenFull",
    "encode_event",
    "new_event",
]
