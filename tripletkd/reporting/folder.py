"""Everything that is made of a suite's measurements, in one folder: results/<suite>/."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tripletkd.analysis.comparison import Results
from tripletkd.files import flat, whole, write_csv, write_json, write_text
from tripletkd.reporting import figures, page, tables


def write(place: Path, results: Results) -> None:
    """Write the table as text and as data, the report, the figures, the curves, and the accuracies for DVC.

    Units are said in the names: see tripletkd.analysis.comparison.

    Args:
        place: The folder.
        results: What is written.
    """
    drawn, rows = page.pictures(results), [_without_p(asdict(row)) for row in results.rows]
    write_text(place / "table.md", tables.markdown(results))
    write_text(place / "report.html", page.html(results, drawn))
    with whole(place / "figures") as beside:
        beside.mkdir()
        for name, svg in drawn.items():
            write_text(beside / f"{name}.svg", figures.standalone(svg))
    table = {
        "suite": results.suite,
        "about": results.about,
        "split": results.split,
        "methods": {name: each.identity.params for name, each in results.students.items()},
        "rows": rows,
        "verdicts": [_without_p(asdict(answer)) for answer in results.verdicts],
        "in_short": [tables.finding(results), *tables.in_short(results)],
    }
    of = {"split": results.split}
    write_csv(place / "table.csv", [_plain(row) | of for row in rows])
    unit = "percent" if results.split == "test" else f"{results.split}_percent"  # unlike splits are unlike columns
    means = {f"{row.method}_{unit}": round(row.test_accuracy_percent.mean, 4) for row in results.rows}
    write_json(place / "summary.json", means)
    write_csv(place / "curves.csv", [asdict(point) | of for point in results.curves])
    write_json(place / "table.json", table)  # last: MLflow's mirror waits for it


def _without_p(block: Mapping[str, object]) -> dict[str, object]:
    """Leave out the p-values of differences, which are not corrected: the corrected ones stand beside them."""
    return {
        name: _without_p(value) if isinstance(value, dict) else value for name, value in block.items() if name != "p"
    }


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row of table.json as a line of table.csv: dotted names, four decimals, of a p four digits."""
    values = {name: value for name, value in flat(row) if not name.endswith("one_run") and name != "published"}

    def plain(name: str, value: object) -> object:
        if not isinstance(value, float):
            return value
        return float(f"{value:.4g}") if name.startswith("corrected_p") else round(value, 4)

    return {name: plain(name, value) for name, value in values.items()}
