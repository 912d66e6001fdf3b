"""Turn a suite's measurements into its table, verdicts, pictures, report and summary."""

from __future__ import annotations  # the types' module imports SciPy

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import Stage, run
from tripletkd.errors import UserError
from tripletkd.files import whole, write_csv, write_json, write_text

if TYPE_CHECKING:
    from tripletkd.analysis.comparison import Results


def main(stage: Stage) -> None:
    from tripletkd.reporting import tables

    results = gather(stage)
    summary, files = write(stage, results)
    verdicts = "\n".join([results.about + ".", "", *(f"- {line}" for line in tables.in_short(results))])
    stage.logger.files(stage.config.suite, "tabulate", summary, {}, files, verdicts)


def gather(stage: Stage) -> Results:
    """What was measured of the configured methods and ablations, whatever else lies there."""
    from tripletkd.analysis import ablation
    from tripletkd.analysis import comparison as report
    from tripletkd.tracking import run_record as record

    config, methods = stage.config, stage.config.run.methods
    place = stage.place("results", "measured", config.split)
    measured = {name: stage.measured(name) for name in ["teacher", *methods]}
    ablated_on = config.run.ablation_split
    ablated = {name: stage.measured(f"ablations/{name}", ablated_on) for name in config.run.ablations}
    refuse_strangers(measured["teacher"], [measured[name] for name in methods])
    if ablated:
        refuse_strangers(stage.measured("teacher", ablated_on), [line for lines in ablated.values() for line in lines])
    return report.Results(
        suite=config.suite,
        about=stage.suite.about,
        split=config.split,
        measured=measured,
        histories={name: came_through(place / f"{name}.csv", measured[name]) for name in methods},
        maps={name: record.read_history(place / f"{name}_map.csv") for name in methods},
        rows=report.rows(measured, stage.suite.published),
        verdicts=report.verdicts(measured, config.claims),
        published=stage.suite.published,
        published_curves={
            name: record.read_history(Path(figure.curve))
            for name, figure in stage.suite.published.items()
            if figure.curve
        },
        ablation_split=ablated_on,
        ablations={name: ablation.lines(lines) for name, lines in ablated.items()},
    )


def came_through(path: Path, block: Mapping[str, Any]) -> list[dict[str, float]]:
    """The rows of the seeds that did not fail: a mean over other seeds in every epoch is no curve."""
    from tripletkd.tracking import run_record as record

    return [row for row in record.read_history(path) if str(int(row["seed"])) not in block["failed"]]


def refuse_strangers(teacher: Mapping[str, Any], students: Iterable[Mapping[str, Any]]) -> None:
    """UserError if a student had other images or another teacher: a table would compare the incomparable."""
    for block in students:
        for what, found, expected in (
            ("images", block["data_sha256"], [teacher["data_sha256"]]),
            ("a teacher", block["teacher_sha256"], list(teacher["weights_sha256"].values())),
        ):
            if found not in expected:
                raise UserError(
                    f"{block['suite']}/{block['cell']}: measured with {what} of sha256 {found}, the table's teacher "
                    f"has {' or '.join(expected)}; run its stages again"
                )


def write(stage: Stage, results: Results) -> tuple[dict[str, float], list[Path]]:
    """All files of the table; returns the summary and the files that people look at."""
    from tripletkd.analysis import comparison as report
    from tripletkd.reporting import figures, page, tables

    place, rows = stage.place("results"), results.rows
    pictures = page.pictures(results)
    texts = {
        "table.md": tables.markdown(results),
        "table.csv": tables.table_csv(rows),
        "report.html": page.html(results, pictures),
    }
    for name, text in texts.items():
        write_text(place / name, text)
    with whole(place / "figures") as beside:
        beside.mkdir()
        for name, svg in pictures.items():
            write_text(beside / f"{name}.svg", figures.standalone(svg))
    write_json(
        place / "table.json",
        {"suite": results.suite, "rows": [asdict(row) for row in rows], "verdicts": results.verdicts},
    )
    summary = {row.method: round(row.test.mean, 4) for row in rows}
    write_json(place / "summary.json", summary)
    write_csv(place / "curves.csv", report.curves(results.histories))
    answers = "\n".join(tables.verdicts(results).markdown())
    stage.say(
        "\n".join([*tables.comparison(results).markdown(), "", answers, "", f"the report: {place / 'report.html'}"])
    )
    drawn = sorted((place / "figures").iterdir())
    return summary, [*(place / name for name in (*texts, "table.json")), *drawn]


if __name__ == "__main__":
    run(main)
