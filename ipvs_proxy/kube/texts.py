"""What others wrote, as the agent quotes it: bounded in length, in one line, and always text that UTF-8 can carry.

A tenant can put 256 KiB into an annotation. A log line, an event or an answer that quotes it says who wrote what, not
all of it.
"""

from __future__ import annotations

from typing import Final

#: So many characters of what somebody else wrote are quoted.
QUOTED: Final = 200


def quote(text: str, limit: int = QUOTED) -> str:
    """Return a text as it may be quoted.

    What is longer than ``limit`` characters is cut, and its length said. What is not printable (control characters,
    surrogates, marks that change the direction of writing) is written as Python escapes it.
    """
    shown = text[:limit]
    if not shown.isprintable():
        characters = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)
        shown = "".join(characters)
    if len(text) > limit or len(shown) > limit:
        return f"{shown[:limit]}... ({len(text):,} characters)"
    return shown


def control_character(text: str) -> str:
    """Return the first character that no setting may have, as it is escaped; empty if there is none.

    These are the control characters of Unicode (C0, DEL and C1) and surrogates. A NUL ends a string for the kernel and
    iptables, and a line end begins another rule.
    """
    if text.isprintable():
        return ""
    found = next((character for character in text if _is_control(ord(character))), "")
    return found.encode("unicode_escape").decode()


def _is_control(code: int) -> bool:
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in {0x2028, 0x2029}
