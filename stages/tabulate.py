"""Turn a suite's measurements into its table, verdicts, pictures, report and summary."""

from __future__ import annotations  # the types' module imports SciPy

from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.errors import UserError
from tripletkd.pipeline import environments
from tripletkd.pipeline.stage import Stage, run

if TYPE_CHECKING:
    from tripletkd.analysis.comparison import Results
    from tripletkd.evaluation.measurement import Measurement, VariantMeasurement
    from tripletkd.pipeline.jobs import Runs
    from tripletkd.training.job import Job


def main(stage: Stage) -> None:
    """Gather what was measured, write the files and say where each seed was computed."""
    from tripletkd.reporting import folder, tables
    from tripletkd.training.run_record import write_log

    place = stage.path("results")
    results, measured = gather(stage)
    folder.write(place, results)
    computed = environments.refresh(stage, measured)
    write_log(stage.path("logs", "tabulate.json"), place / "table.json", stage.log())
    answers = "\n".join(tables.verdicts(results).markdown())
    report = f"the report: {place / 'report.html'}"
    stage.say("\n".join([*tables.comparison(results).markdown(), "", answers, "", *computed, report]))


def gather(stage: Stage) -> tuple[Results, list[Measurement]]:
    """Read what was measured of the configured methods and ablations, whatever else is there."""
    from tripletkd.analysis import ablation, comparison
    from tripletkd.evaluation.measurement import read_beside
    from tripletkd.training.run_record import read_history

    config, methods = stage.config, stage.config.run.methods
    place = stage.path("results", "measured", config.split)
    measured, (ablation_teacher, ablated) = read_methods(stage), read_ablations(stage)
    whole_test_split = config.split == "test" and not stage.suite.data.per_class
    published = stage.suite.published if whole_test_split else {}  # which are of those images
    results = comparison.Results(
        suite=stage.suite.name,
        about=stage.suite.about,
        split=config.split,
        measured=measured,
        histories={name: read_beside(place, measured[name]) for name in methods},
        maps={name: read_beside(place, measured[name], "_map") for name in methods},
        claims=config.claims,
        published=published,
        published_curves={name: read_history(Path(each.curve)) for name, each in published.items() if each.curve},
        ablation_split=config.run.ablation_split,
        ablations={name: ablation.lines(variants) for name, variants in ablated.items()},
        in_common={name: stage.suite.ablations[name][0].in_common for name in ablated},
        starts_elsewhere=any(network.weights is not None for network in (stage.suite.teacher, stage.suite.student)),
    )
    of_variants = [each.measurement for variants in ablated.values() for each in variants]
    return results, [*measured.values(), *ablation_teacher, *of_variants]


def read_teacher(stage: Stage) -> tuple[Measurement, Runs]:
    """Read what was measured of the teacher of the stage's split, and describe the runs under it."""
    from tripletkd.evaluation import measurement
    from tripletkd.pipeline.jobs import Runs

    suite, path = stage.suite, stage.path("results", "measured", stage.config.split, "teacher.json")
    teacher = measurement.read(path, suite.name, "teacher")
    data, weights = teacher.identity.data_sha256, teacher.weights_sha256.get(suite.teacher.seed)
    refuse_other_run(stage, path, teacher, Runs(stage, data).teacher())
    held_out = suite.holdout * len(teacher.class_names or ())
    if stage.config.split == "validation" and teacher.test_images != held_out:
        raise UserError(
            f"{path}: measured on {teacher.test_images} images, suites.{suite.name}.holdout makes {held_out}; run its "
            "stage again"
        )
    return teacher, Runs(stage, data, weights)


def read_methods(stage: Stage) -> dict[str, Measurement]:
    """Read what was measured of the teacher and of the methods, all as params.yaml says."""
    from tripletkd.evaluation import measurement
    from tripletkd.pipeline.jobs import refuse_other_data

    refuse_other_data(stage)
    teacher, runs = read_teacher(stage)
    measured = {"teacher": teacher}
    for name in stage.config.run.methods:
        path = stage.path("results", "measured", stage.config.split, f"{name}.json")
        measured[name] = measurement.read(path, stage.suite.name, name)
        refuse_other_run(stage, path, measured[name], runs.student(name))
    return measured


def read_ablations(stage: Stage) -> tuple[list[Measurement], dict[str, list[VariantMeasurement]]]:
    """Read what was measured of the ablations' teacher, if there is an ablation, and of their variants."""
    table_split, names = stage.config.split, stage.config.run.ablations
    stage = stage.on_split(stage.config.run.ablation_split)
    if not names:
        return [], {}
    teacher, runs = read_teacher(stage)
    is_of_the_table = stage.config.split == table_split  # and is counted there
    return [] if is_of_the_table else [teacher], {name: read_ablation(stage, runs, name) for name in names}


def read_ablation(stage: Stage, runs: Runs, name: str) -> list[VariantMeasurement]:
    """Read what was measured of one ablation.

    Raises:
        UserError: If its variants, or what they are compared with, are not those of params.yaml.
    """
    from tripletkd.config.schema import ABLATED
    from tripletkd.evaluation import measurement

    suite, variants = stage.suite, stage.suite.ablations[name]
    path = stage.path("results", "measured", stage.config.split, "ablations", f"{name}.json")
    measured = measurement.read_ablation(path, suite.name, name)
    configured = [v.params == suite.methods[ABLATED] and v.recipe == suite.student.recipe for v in variants]
    found = [(each.label, each.configured) for each in measured]
    expected = [(variant.label, is_it) for variant, is_it in zip(variants, configured, strict=True)]
    if found != expected:
        raise UserError(f"{path}: variants {found}, params.yaml (ablations.{name}) has {expected}; run its stage again")
    for each, variant in zip(measured, variants, strict=True):
        refuse_other_run(stage, path, each.measurement, runs.variant(name, variant))
    return measured


def refuse_other_run(stage: Stage, path: Path, measured: Measurement, job: Job) -> None:
    """Raise UserError if what was measured is not the run that params.yaml describes."""
    from tripletkd.pipeline.jobs import refuse_other_job

    refuse_other_job(stage, path, measured.identity, measured.code, job)
    if measured.all_seeds != sorted(job.seeds):
        raise UserError(
            f"{path}: made with seeds {measured.all_seeds}, params.yaml (suites.{job.identity.suite}) has {job.seeds}; "
            "run its stages again"
        )


if __name__ == "__main__":
    run(main)
