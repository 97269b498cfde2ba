"""Quotes text that others wrote: bounded in length, on one line, and always encodable in UTF-8.

A tenant can put 256 KiB into an annotation. A log line, an event or a response that quotes it shows who wrote what, not
all of it.
"""

from __future__ import annotations

from typing import Final

#: At most this many characters of a text are quoted.
QUOTED: Final = 200


def quote(text: str, limit: int = QUOTED) -> str:
    """Return a text in a form that is safe to quote.

    A text longer than ``limit`` characters is cut, and its length is appended. Characters that are not printable
    (control characters, surrogates, marks that change the writing direction) are escaped as in Python.
    """
    shown = text[:limit]
    if not shown.isprintable():
        characters = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)
        shown = "".join(characters)
    if len(text) > limit or len(shown) > limit:
        return f"{shown[:limit]}... ({len(text):,} characters)"
    return shown


def control_character(text: str) -> str:
    """Return the first character of a text that no setting may contain, escaped, or "" if there is none.

    These are the control characters of Unicode (C0, DEL and C1), its line and paragraph separators, and surrogates. A
    NUL ends a string for the kernel and iptables, and a line end begins another rule.
    """
    if text.isprintable():
        return ""
    found = next((character for character in text if _is_control(ord(character))), "")
    return found.encode("unicode_escape").decode()


def _is_control(code: int) -> bool:
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in {0x2028, 0x2029}
