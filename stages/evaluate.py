"""Measure one method's students from their weights, and keep their history where the table finds it."""

from dataclasses import asdict

from stages._command import Stage, run
from stages._training import load_teacher, refuse_failure, set_up
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.evaluation.measure import measure, output_map
from tripletkd.files import write_csv
from tripletkd.training.run_record import TrainedRun, read_run


def main(stage: Stage) -> None:
    """Measure all seeds of one method."""
    method, split = stage.config.method, stage.config.split
    assert method is not None
    folder, place = stage.path("runs", split, method), stage.path("results", "measured", split)
    setup, trained = set_up(stage), read_run(folder, stage.suite.seeds)
    teacher, teacher_sha256 = load_teacher(stage, setup)
    # Through dvc repro they always are of one data set and teacher; a record that was carried here may be of others.
    for record in trained.records:
        for what, found, expected in (
            ("images", record.data_sha256, setup.data.dataset.sha256()),
            ("a teacher", record.teacher_sha256, teacher_sha256),
        ):
            if found != expected:
                raise UserError(
                    f"{folder}, seed {record.seed}: trained with {what} of sha256 {found}, here it is {expected}; run "
                    "distill again"
                )
    refuse_unlike_records(stage, trained)
    refuse_failure(trained)
    measurement.write(place / f"{method}.json", measure(trained, setup.data, teacher.test_logits))
    write_csv(place / f"{method}.csv", trained.history)
    write_csv(place / f"{method}_map.csv", output_map(trained, teacher.test_logits, setup.data))


def refuse_unlike_records(stage: Stage, trained: TrainedRun) -> None:
    """Raise UserError if a seed was trained otherwise than params.yaml says."""
    suite, method = stage.suite, stage.config.method
    assert method is not None
    expected = {
        "split": stage.config.split,
        "network": suite.student.network,
        "precision": suite.precision,
        "inputs": asdict(suite.inputs),
        "recipe": asdict(suite.student.recipe),
        "method": asdict(suite.methods[method]),
    }
    source = f"suites.{suite.name}, its student; methods.{method}"
    for record in trained.records:
        place = f"{stage.path('runs', stage.config.split, method)}, seed {record.seed}"
        found = {"split": record.split, "network": record.network, "precision": record.environment.get("precision")}
        measurement.refuse_unlike(place, found | record.params, expected, source)


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"), logs=False)
