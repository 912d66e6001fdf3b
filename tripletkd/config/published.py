"""Read published figures from a CSV file: method, accuracy, source, and the file of a curve if there is one."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path

from tripletkd.config.check import check
from tripletkd.config.schema import Published
from tripletkd.errors import UserError

COLUMNS = ("method", "accuracy", "source", "curve")
CURVE_COLUMNS = ("epoch", "test_accuracy")


def read(root: Path, name: str) -> dict[str, Published]:
    """Return the figures of a file by method.

    Args:
        root: The project's folder; what the file names is relative to it, as the file itself is.
        name: The file.

    Raises:
        UserError: The file or a curve is not there or cannot be read, or a row is not as it must be.
    """
    figures: dict[str, Published] = {}
    for number, row in enumerate(_rows(root, name, COLUMNS), start=2):
        key, method = f"{name}, line {number}", row["method"]
        if not method or not row["source"]:
            raise UserError(f"{key}: found no {'source' if method else 'method'}, expected one")
        if method in figures:
            raise UserError(f"{key}: {method!r} is listed twice, expected once")
        if (accuracy := _number(row["accuracy"])) is None:
            raise UserError(f"{key}.accuracy: found {row['accuracy']!r}, expected a number")
        block = {"accuracy": accuracy, "source": row["source"], "curve": row["curve"] or None}
        figures[method] = check(Published, block, key)
        if row["curve"]:
            _check_curve(root, row["curve"])
    return figures


def _check_curve(root: Path, name: str) -> None:
    rows = _rows(root, name, CURVE_COLUMNS)
    if not rows:
        raise UserError(f"{name}: found no epoch, expected a line each")
    for number, row in enumerate(rows, start=2):
        for column in CURVE_COLUMNS:
            if _number(row[column]) is None:
                raise UserError(f"{name}, line {number}.{column}: found {row[column]!r}, expected a number")


def _number(text: str | None) -> float | None:
    """Return the finite number that a text is; None where it is none."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _rows(root: Path, name: str, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with (root / name).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, found = list(reader), list(reader.fieldnames or [])
    except FileNotFoundError:
        raise UserError(f"{name}: not there; expected a CSV file with the columns {', '.join(columns)}") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{name}: cannot be read ({error})") from None
    if missing := [column for column in columns if column not in found]:
        raise UserError(f"{name}: found the columns {', '.join(found)}, expected {', '.join(missing)} too")
    return rows
