"""Names that others gave, such as classes' and published methods', as text that stays what it is where it lands."""

import re

# What XML does not allow, and control characters that it does.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MARKDOWN = re.compile(r"[\\|<*`]|(?<!\w)_|_(?!\w)")


def printable(text: str) -> str:
    """Replace each character that is none for people by the sign for it, �."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Put a name on one line, without control characters."""
    return " ".join(printable(text).split())


def in_markdown(text: str) -> str:
    """Put a name on one line that Markdown shows as it is, in a table too."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text))
