"""Measure one method's students from their weights, and keep their history where the table finds it."""

from stages import Stage, run
from stages._training import Setting, load_teacher, refuse_failure
from tripletkd.errors import UserError
from tripletkd.evaluation import measure as evaluate
from tripletkd.files import write_csv, write_json
from tripletkd.tracking import run_record as record


def main(stage: Stage) -> None:
    method, split = stage.config.method, stage.config.split
    folder, place = stage.place("runs", split, method), stage.place("results", "measured", split)
    setting, made, history = Setting.of(stage), record.read(folder), record.read_history(folder / "history.csv")
    teacher, teacher_sha256 = load_teacher(stage, setting)
    # Through dvc repro they always are of one run; a record that was carried here may be of another.
    for what, found, expected in (
        ("images", made.data_sha256, setting.dataset.sha256()),
        ("a teacher", made.teacher_sha256, teacher_sha256),
    ):
        if found != expected:
            raise UserError(
                f"{folder}: trained with {what} of sha256 {found}, here it is {expected}; run distill again"
            )
    refuse_failure(made)
    networks = made.load_networks(folder)
    measured = evaluate.measure(made, networks, history, setting.train, setting.test, teacher)
    write_json(place / f"{method}.json", measured)
    write_csv(place / f"{method}.csv", history)
    write_csv(place / f"{method}_map.csv", evaluate.output_map(made, networks, teacher, setting.test))


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"), logs=False)
