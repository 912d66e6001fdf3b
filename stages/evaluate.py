"""Measure one method's students from their weights, and keep their history where the table finds it."""

from stages import Stage, run
from stages._training import Setting, load_teacher
from tripletkd import evaluate, record
from tripletkd.provenance import write_csv, write_json


def main(stage: Stage) -> None:
    method, split = stage.config.method, stage.config.split
    folder, place = stage.place("runs", split, method), stage.place("results", "measured", split)
    setting, made, history = Setting.of(stage), record.read(folder), record.read_history(folder / "history.csv")
    teacher, _ = load_teacher(stage, setting)
    networks = made.load_networks(folder)
    measured = evaluate.measure(made, networks, history, setting.train, setting.test, teacher)
    write_json(place / f"{method}.json", measured)
    write_csv(place / f"{method}.csv", history)
    write_csv(place / f"{method}_map.csv", evaluate.output_map(made, networks, teacher, setting.test))


if __name__ == "__main__":
    run(main, needs=("suite", "method"))
