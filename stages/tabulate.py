"""Turn the measurements of a suite's methods into its table, verdicts, curves and summary."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages import Stage, run, tracking_root
from tripletkd import Problem, record, report, tracking
from tripletkd.provenance import whole, write_json


def main(stage: Stage) -> None:
    with tracking.Logger(tracking_root()) as logger:
        summary, files = tabulate(stage)
        logger.files(stage.config.suite, "tabulate", summary, {}, files)


def tabulate(stage: Stage) -> tuple[dict[str, float], list[Path]]:
    """Write all files of the table; returns the summary and the files that people look at."""
    suite, methods = stage.config.suite, stage.config.run.methods
    # The configured ones, whatever else lies there.
    measured = {name: _measured(stage, name) for name in ["teacher", *methods]}
    table = report.rows(measured, stage.suite.published)
    answers = report.verdicts(measured, stage.config.claims)
    histories = {name: record.read_history(stage.place("results", "measured", f"{name}.csv")) for name in methods}
    lines = report.curves(histories)
    place = stage.place("results")
    texts = {
        "table.md": report.markdown(suite, table, answers, stage.suite.published),
        "table.csv": report.table_csv(table),
    }
    for name, text in texts.items():
        with whole(place / name) as beside:
            beside.write_text(text, encoding="utf-8")
    write_json(place / "table.json", {"suite": suite, "rows": [asdict(row) for row in table], "verdicts": answers})
    summary = {row.method: round(row.test.mean, 4) for row in table}
    write_json(place / "summary.json", summary)
    with whole(place / "curves.csv") as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    with whole(place / "curves.png") as beside:
        report.plot_curves(beside, suite, lines)
    print(texts["table.md"])
    return summary, [place / name for name in (*texts, "table.json", "curves.png")]


def _measured(stage: Stage, method: str) -> Any:
    path = stage.place("results", "measured", f"{method}.json")
    try:
        measured = json.loads(path.read_text())
        if (measured["suite"], measured["method"]) != (stage.config.suite, method) or not measured["seeds"]:
            raise Problem(
                f"{path}: measurements of {measured['suite']}/{measured['method']}; run the evaluate stage again"
            )
        return measured
    except FileNotFoundError:
        raise Problem(f"{path}: not there; run the evaluate stage (dvc repro) first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path}: not measurements ({error!r}); run the evaluate stage again") from None


if __name__ == "__main__":
    run(main)
