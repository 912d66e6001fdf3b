"""Turn a suite's measurements into its table, verdicts, pictures, report and summary."""

from __future__ import annotations  # the types' module imports SciPy

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages._command import Stage, run
from tripletkd.errors import UserError
from tripletkd.files import whole, write_csv, write_json, write_text
from tripletkd.provenance import sha256

if TYPE_CHECKING:
    from tripletkd.analysis.comparison import Results
    from tripletkd.config.schema import SuiteConfig
    from tripletkd.evaluation.measurement import Measurement, VariantMeasurement
    from tripletkd.training.optim import Recipe


def main(stage: Stage) -> None:
    """Gather what was measured, write the files and log them."""
    from tripletkd.reporting import tables
    from tripletkd.training.run_record import write_log

    results, place = gather(stage), stage.path("results")
    write(place, results)
    write_log(stage.path("logs", "tabulate.json"), place / "table.json", stage.log())
    answers = "\n".join(tables.verdicts(results).markdown())
    report = f"the report: {place / 'report.html'}"
    stage.say("\n".join([*tables.comparison(results).markdown(), "", answers, "", report]))
    stage.logger.results(place)


def gather(stage: Stage) -> Results:
    """Read what was measured of the configured methods and ablations, whatever else lies there."""
    from tripletkd.analysis import ablation, comparison
    from tripletkd.training.run_record import read_history

    config, methods = stage.config, stage.config.run.methods
    place = stage.path("results", "measured", config.split)
    measured, ablated = read_methods(stage), read_ablations(stage)
    whole_test_split = config.split == "test" and not stage.suite.data.per_class
    published = stage.suite.published if whole_test_split else {}  # which are of those images
    return comparison.Results(
        suite=stage.suite.name,
        about=stage.suite.about,
        split=config.split,
        measured=measured,
        histories={name: without_failed(read_beside(place, measured[name]), measured[name]) for name in methods},
        maps={name: read_beside(place, measured[name], "_map") for name in methods},
        rows=comparison.rows(measured, published),
        verdicts=comparison.verdicts(measured, config.claims),
        published=published,
        published_curves={name: read_history(Path(each.curve)) for name, each in published.items() if each.curve},
        equivalent_code=stage.config.run.equivalent_code,
        ablation_split=config.run.ablation_split,
        ablations={name: ablation.lines(variants) for name, variants in ablated.items()},
    )


def read_beside(place: Path, measured: Measurement, of: Literal["", "_map"] = "") -> list[dict[str, float]]:
    """Read the history, or the map, that was written with a measurement.

    Raises:
        UserError: if the file beside it is another.
    """
    from tripletkd.training.run_record import read_history

    path, written = place / f"{measured.name}{of}.csv", measured.map_sha256 if of else measured.history_sha256
    if not path.is_file() or sha256(path) != written:
        raise UserError(f"{path}: not the file that {measured.name}.json was written with; run evaluate again")
    return read_history(path)


def read_methods(stage: Stage) -> dict[str, Measurement]:
    """Read what was measured of the teacher and of the methods, all of one kind and as params.yaml says."""
    from tripletkd.evaluation import measurement

    suite, split = stage.suite, stage.config.split
    teacher = read_teacher(stage, split)
    measured = {}
    for name in stage.config.run.methods:
        path = stage.path("results", "measured", split, f"{name}.json")
        measured[name] = measurement.read(path, suite.name, name)
        expected = student_settings(suite, suite.methods[name], suite.student.recipe)
        refuse_unlike(path, measured[name], {"split": split} | expected, f"its student; methods.{name}")
        refuse_other_code(stage, path, measured[name], stage.code_of("distill", method=name))
    refuse_strangers(teacher, measured.values())
    return {"teacher": teacher} | measured


def read_teacher(stage: Stage, split: str) -> Measurement:
    """Read what was measured of the teacher that has not seen a split."""
    from tripletkd.evaluation import measurement

    suite, path = stage.suite, stage.path("results", "measured", split, "teacher.json")
    teacher = measurement.read(path, suite.name, "teacher")
    expected: dict[str, Any] = {"split": split, "network": suite.teacher.network, "seeds": [suite.teacher.seed]}
    expected |= {"recipe": asdict(suite.teacher.recipe), **common_settings(suite)}
    refuse_unlike(path, teacher, expected, "its teacher")
    refuse_other_code(stage, path, teacher, stage.code_of("train_teacher"))
    return teacher


def read_ablations(stage: Stage) -> dict[str, list[VariantMeasurement]]:
    """Read what was measured of the ablations' variants, which are those of params.yaml."""
    from tripletkd.evaluation import measurement

    split, ablated = stage.config.run.ablation_split, {}
    for name in stage.config.run.ablations:
        path = stage.path("results", "measured", split, "ablations", f"{name}.json")
        ablated[name] = measurement.read_ablation(path, stage.suite.name, name)
        refuse_unlike_variants(stage, path, name, ablated[name])
    if ablated:
        teacher = read_teacher(stage, split)
        refuse_strangers(teacher, [each.measurement for variants in ablated.values() for each in variants])
    return ablated


def refuse_unlike_variants(stage: Stage, path: Path, name: str, measured: Sequence[VariantMeasurement]) -> None:
    """Raise UserError if an ablation's variants, or what they are compared with, are not those of params.yaml."""
    from tripletkd.config.schema import ABLATED
    from tripletkd.evaluation import measurement

    suite, source = stage.suite, f"ablations.{name}, methods.{ABLATED}"
    variants = suite.ablations[name]
    labels = [each.label for each in measured]
    measurement.refuse_unlike(str(path), {"variants": labels}, {"variants": [each.label for each in variants]}, source)
    for found, variant in zip(measured, variants, strict=True):
        expected = {"split": stage.config.run.ablation_split}
        refuse_unlike(
            path,
            found.measurement,
            expected | student_settings(suite, variant.params, variant.recipe),
            f"its student; {source}",
        )
        configured = variant.params == suite.methods[ABLATED] and variant.recipe == suite.student.recipe
        reference, ours = {"reference": {found.label: found.configured}}, {"reference": {found.label: configured}}
        measurement.refuse_unlike(str(path), reference, ours, source)
        refuse_other_code(stage, path, found.measurement, stage.code_of("ablate", ablation=name))


def student_settings(suite: SuiteConfig, params: Any, recipe: Recipe) -> dict[str, Any]:
    """Say what params.yaml has a student made with, by a method's parameters and a recipe."""
    own = {
        "network": suite.student.network,
        "seeds": sorted(suite.seeds),
        "recipe": asdict(recipe),
        "method": asdict(params),
    }
    return own | common_settings(suite)


def common_settings(suite: SuiteConfig) -> dict[str, Any]:
    """Say what params.yaml has teacher and students made with."""
    inputs = asdict(suite.inputs)
    return {"precision": suite.precision, "inputs": inputs, "evaluate_every": suite.evaluate_every}


def refuse_unlike(path: Path, measured: Measurement, expected: dict[str, Any], source: str) -> None:
    """Raise UserError if a run was not made as params.yaml says: a table would compare the incomparable."""
    from tripletkd.evaluation import measurement

    seeds = sorted([*(each.seed for each in measured.seeds), *measured.failed])
    for values in [each.values for each in measured.environments] or [{}]:
        precision = values.get("precision")
        found = {"split": measured.split, "network": measured.network, "seeds": seeds, "precision": precision}
        measurement.refuse_unlike(str(path), found | measured.params, expected, f"suites.{measured.suite}, {source}")


def refuse_other_code(stage: Stage, path: Path, measured: Measurement, ours: str) -> None:
    """Raise UserError if a run was computed by other code than ours, and params.yaml does not call it equivalent."""
    for code in measured.code:
        if code not in (ours, *stage.config.run.equivalent_code):
            raise UserError(
                f"{path}: computed by code of sha256 {code}, the code here has {ours}; run `dvc repro`, or say in "
                "run.equivalent_code that it computes the same bytes"
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


def write(place: Path, results: Results) -> None:
    """Write all files of the table into a folder."""
    from tripletkd.analysis import comparison
    from tripletkd.reporting import figures, page, tables

    pictures = page.pictures(results)
    texts = {
        "table.md": tables.markdown(results),
        "table.csv": tables.table_csv(results),
        "report.html": page.html(results, pictures),
    }
    for name, text in texts.items():
        write_text(place / name, text)
    with whole(place / "figures") as beside:
        beside.mkdir()
        for name, svg in pictures.items():
            write_text(beside / f"{name}.svg", figures.standalone(svg))
    write_json(place / "table.json", table(results))
    write_json(place / "summary.json", {row.method: round(row.test.mean, 4) for row in results.rows})
    write_csv(place / "curves.csv", [asdict(point) for point in comparison.curves(results.histories)])


def table(results: Results) -> dict[str, Any]:
    """Return the table and the verdicts as data, with what they are of."""
    from tripletkd.reporting import page, tables

    methods = {name: each.params["method"] for name, each in results.measured.items() if name != "teacher"}
    about = {"suite": results.suite, "about": results.about, "split": results.split, "methods": methods}
    rows, verdicts = ([asdict(each) for each in found] for found in (results.rows, results.verdicts))
    in_short = [*page.answer(results), *tables.in_short(results)]
    return about | {"rows": rows, "verdicts": verdicts, "in_short": in_short}


if __name__ == "__main__":
    run(main)
