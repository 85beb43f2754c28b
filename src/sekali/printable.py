"""Text that others wrote, made safe to show: on a terminal, and in a log of lines."""

import re

# What moves the cursor, changes the terminal's state or the direction of writing, and what cannot be written as UTF-8.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""Write control characters as ``\uNNNN``, so that what others published cannot drive the terminal.

    In a JSON text they can only stand in strings, where this means the same; so it is good for both.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
