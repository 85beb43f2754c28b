"""How a webhook is named and signed: symmetric signatures of Standard Webhooks 1.0.

The format: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac

from sekali.delivery import SECRET_PREFIX


def webhook_id(topic: str, event_id: str) -> str:
    """Return the id of an event's webhook: made of its identity alone, so it never changes, whatever happens to a log.

    Neither a topic nor an id holds the character between them, so no two identities share one.
    """
    return "evt_" + hashlib.sha256(f"{topic}\0{event_id}".encode()).hexdigest()


def signed_headers(secret: str, webhook: str, at_s: int, body: bytes) -> dict[str, str]:
    """Return the headers by which a receiver knows who sent a body, and when. ``at_s`` is Unix time."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signature = hmac.digest(key, f"{webhook}.{at_s}.".encode() + body, "sha256")
    return {
        "webhook-id": webhook,
        "webhook-timestamp": str(at_s),
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }
