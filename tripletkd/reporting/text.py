"""Text for tables, the report and the model card: names that others gave stay what they are wherever they land."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tripletkd.analysis.statistics import significant

NOTES = "notes.j2"  # macros for all templates
# What XML does not allow, and control characters that it does.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MARKDOWN = re.compile(r"[\\|<*`]|(?<!\w)_|_(?!\w)")


def printable(text: str) -> str:
    """Replace each character that is none for people by the sign for it, �."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Put a name on one line, without control characters."""
    return " ".join(printable(text).split())


def in_markdown(text: object) -> str:
    """Put a value on one line that Markdown shows as it is, in a table too; Markup is Markdown already."""
    return text if isinstance(text, Markup) else MARKDOWN.sub(r"\\\g<0>", one_line(str(text)))


def marked(text: str) -> Markup:
    """Turn Markdown's ** and * into HTML and escape all else."""
    html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(str(text))))
    return Markup(re.sub(r"\*(.+?)\*", r"<i>\1</i>", html))  # nosec B704  # noqa: S704  # escaped before


def render(template: str, **values: object) -> str:
    """Fill a template of this folder; each value is escaped for what the template is, HTML or Markdown (.md.j2)."""
    is_markdown = template.endswith(".md.j2")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=not is_markdown,  # nosec B701  # noqa: S701  # in Markdown `finalize` escapes
        finalize=in_markdown if is_markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = marked
    notes = environment.get_template(NOTES).make_module(values)
    return printable(environment.get_template(template).render(**values, notes=notes))


def p_value(p: float) -> str:
    """Write a p-value with two significant digits, or as many as show on which side of 0.05 it lies."""
    shown = (f"{p:.{digits}g}" for digits in range(2, 17))
    return next((text for text in shown if significant(float(text)) == significant(p)), str(p))
