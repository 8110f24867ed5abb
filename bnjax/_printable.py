"""Text of unknown origin, made fit for a terminal."""

from __future__ import annotations


def printable(text: str, most: int = 2000) -> str:
    """``text`` without what a terminal would obey or cannot show; if long, without its middle.

    Control characters, marks that turn the direction of writing and lone surrogates come as
    Python escapes them: names in a file are whatever its writer liked.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
