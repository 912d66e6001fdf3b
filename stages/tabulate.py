"""Turn a suite's measurements into its table, verdicts, pictures, report and summary."""

from __future__ import annotations  # the types' module imports SciPy

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stages._command import Stage, run
from tripletkd.errors import UserError
from tripletkd.files import whole, write_csv, write_json, write_text

if TYPE_CHECKING:
    from tripletkd.analysis.comparison import Results
    from tripletkd.evaluation.measurement import Measurement


def main(stage: Stage) -> None:
    """Gather what was measured, write the files and log them."""
    from tripletkd.reporting import tables
    from tripletkd.tracking.mlflow import StageFiles

    results = gather(stage)
    summary, files = write(stage.path("results"), results)
    answers = "\n".join(tables.verdicts(results).markdown())
    report = f"the report: {stage.path('results') / 'report.html'}"
    stage.say("\n".join([*tables.comparison(results).markdown(), "", answers, "", report]))
    verdicts = "\n".join([results.about + ".", "", *(f"- {line}" for line in tables.in_short(results))])
    names = [str(file) for file in files]
    stage.logger.files(StageFiles(stage.suite.name, "tabulate", summary, {}, names, stage.log(), verdicts))


def gather(stage: Stage) -> Results:
    """Read what was measured of the configured methods and ablations, whatever else lies there."""
    from tripletkd.analysis import ablation, comparison
    from tripletkd.evaluation import measurement
    from tripletkd.training.run_record import read_history

    config, suite, methods = stage.config, stage.suite.name, stage.config.run.methods
    place = stage.path("results", "measured", config.split)
    measured = {name: measurement.read(place / f"{name}.json", suite, name) for name in ("teacher", *methods)}
    refuse_strangers(measured["teacher"], [measured[name] for name in methods])
    ablated_at = stage.path("results", "measured", config.run.ablation_split)
    ablated = {
        name: measurement.read_ablation(ablated_at / "ablations" / f"{name}.json", suite, name)
        for name in config.run.ablations
    }
    if ablated:
        teacher = measurement.read(ablated_at / "teacher.json", suite, "teacher")
        refuse_strangers(teacher, [variant.measurement for variants in ablated.values() for variant in variants])
    published = stage.suite.published
    return comparison.Results(
        suite=suite,
        about=stage.suite.about,
        split=config.split,
        measured=measured,
        histories={name: without_failed(read_history(place / f"{name}.csv"), measured[name]) for name in methods},
        maps={name: read_history(place / f"{name}_map.csv") for name in methods},
        rows=comparison.rows(measured, published),
        verdicts=comparison.verdicts(measured, config.claims),
        published=published,
        published_curves={name: read_history(Path(each.curve)) for name, each in published.items() if each.curve},
        ablation_split=config.run.ablation_split,
        ablations={name: ablation.lines(variants) for name, variants in ablated.items()},
    )


def without_failed(history: Iterable[dict[str, float]], measured: Measurement) -> list[dict[str, float]]:
    """Keep the rows of the seeds that did not fail: a mean over other seeds in every epoch is no curve."""
    return [row for row in history if row["seed"] not in measured.failed]


def refuse_strangers(teacher: Measurement, students: Iterable[Measurement]) -> None:
    """Raise UserError if a student had other images or another teacher: a table would compare the incomparable."""
    for student in students:
        for what, found, expected in (
            ("images", student.data_sha256, [teacher.data_sha256]),
            ("a teacher", student.teacher_sha256, list(teacher.weights_sha256.values())),
        ):
            if found not in expected:
                raise UserError(
                    f"{student.suite}/{student.name}: measured with {what} of sha256 {found}, the table's teacher "
                    f"has {' or '.join(expected)}; run its stages again"
                )


def write(place: Path, results: Results) -> tuple[dict[str, float], list[Path]]:
    """Write all files of the table into a folder; returns the summary and the files that people look at."""
    from tripletkd.analysis import comparison
    from tripletkd.reporting import figures, page, tables

    pictures = page.pictures(results)
    texts = {
        "table.md": tables.markdown(results),
        "table.csv": tables.table_csv(results.rows),
        "report.html": page.html(results, pictures),
    }
    for name, text in texts.items():
        write_text(place / name, text)
    with whole(place / "figures") as beside:
        beside.mkdir()
        for name, svg in pictures.items():
            write_text(beside / f"{name}.svg", figures.standalone(svg))
    rows, verdicts = ([asdict(each) for each in found] for found in (results.rows, results.verdicts))
    write_json(place / "table.json", {"suite": results.suite, "rows": rows, "verdicts": verdicts})
    summary = {row.method: round(row.test.mean, 4) for row in results.rows}
    write_json(place / "summary.json", summary)
    write_csv(place / "curves.csv", [asdict(point) for point in comparison.curves(results.histories)])
    return summary, [*(place / name for name in (*texts, "table.json")), *sorted((place / "figures").iterdir())]


if __name__ == "__main__":
    run(main)
