"""Read published figures from a CSV file: method, accuracy, source, and the file of a curve if there is one."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tripletkd.config.check import check
from tripletkd.config.schema import Percent, Published
from tripletkd.errors import UserError

FOLDER = Path("tripletkd/published")  # on which dvc.yaml has every table depend
COLUMNS = ("method", "accuracy", "source", "curve")
CURVE, LOSSES = ("epoch", "test_accuracy"), ("train_loss", "test_loss")


@dataclass(frozen=True)
class Point:
    """A line of a curve's file."""

    epoch: float
    test_accuracy: Percent
    train_loss: float | None = None
    test_loss: float | None = None


def read(root: Path, name: str) -> dict[str, Published]:
    """Return the figures of a file by method.

    Args:
        root: The project's folder; what the file names is relative to it, as the file itself is.
        name: The file.

    Raises:
        UserError: The file or a curve is not there or cannot be read, or a row is not as it must be.
    """
    figures = dict[str, Published]()
    for key, row in _rows(root, name, COLUMNS):
        method, curve = row.pop("method"), row.pop("curve") or None
        if not method or method in figures:
            raise UserError(f"{key}.method: found {method!r}, expected a name that no other line has")
        figures[method] = check(Published, row | {"curve": curve}, key, strict=False)
        _refuse_share(f"{key}.accuracy", figures[method].accuracy)
        if curve:
            points = [check(Point, point, at, strict=False) for at, point in _rows(root, curve, CURVE, LOSSES)]
            if not points:
                raise UserError(f"{curve}: found no epoch, expected a line each")
            _refuse_share(f"{curve}: the largest test_accuracy", max(point.test_accuracy for point in points))
    return figures


def _refuse_share(key: str, accuracy: float) -> None:
    if 0 < accuracy < 1:
        raise UserError(f"{key}: found {accuracy}, expected percent, such as 79.54 and not 0.7954")


def _rows(
    root: Path, name: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the lines of a CSV file, each after its place for a message."""
    if Path(name).parent != FOLDER:
        raise UserError(f"{name}: expected a file in {FOLDER}, on which the tables depend; move it there")
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
    for number, row in enumerate(rows, start=2):
        there = [column for column in optional if row.get(column)]
        yield f"{name}, line {number}", {column: row[column] for column in (*columns, *there)}
