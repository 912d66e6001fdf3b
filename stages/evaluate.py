"""Measure one method's students from their weights, and keep their history where the table finds it."""

from stages import Stage, run
from stages._training import Setting, load_teacher
from tripletkd import Problem, evaluate, record
from tripletkd.provenance import whole, write_json


def main(stage: Stage) -> None:
    method = stage.config.method
    folder = stage.place("runs", method)
    setting, made, history = Setting.of(stage), record.read(folder), record.read_history(folder / "history.csv")
    teacher, teacher_sha256 = load_teacher(stage, setting)
    # Through dvc repro they always are of one run; a record that was carried here may be of another.
    for what, found, expected in (
        ("images", made.data_sha256, setting.dataset.sha256()),
        ("a teacher", made.teacher_sha256, teacher_sha256),
    ):
        if found != expected:
            raise Problem(f"{folder}: trained with {what} of sha256 {found}, here it is {expected}; run distill again")
    measured = evaluate.measure(made, made.load_networks(folder), history, setting.train, setting.test, teacher)
    write_json(stage.place("results", "measured", f"{method}.json"), measured)
    with whole(stage.place("results", "measured", f"{method}.csv")) as beside:
        record.write_history(beside, history)


if __name__ == "__main__":
    run(main, needs=("suite", "method"))
