"""Measure one method's students from their weights, and keep their history where the table finds it."""

from tripletkd.pipeline.stage import Stage, run


def main(stage: Stage) -> None:
    """Measure all seeds of one method."""
    from dataclasses import replace

    from tripletkd import methods
    from tripletkd.evaluation import measurement
    from tripletkd.evaluation.measure import measure, output_map, sound
    from tripletkd.files import write_csv
    from tripletkd.pipeline.fetched_weights import read_initial
    from tripletkd.pipeline.jobs import Runs, load_teacher, read_finished, refuse_failure, set_up
    from tripletkd.provenance import sha256

    method, split = stage.config.method, stage.config.split
    assert method is not None
    place, setup = stage.path("results", "measured", split), set_up(stage)
    teacher, teacher_sha256 = load_teacher(stage, setup)
    trained = sound(read_finished(stage, Runs(stage, setup.data_sha256, teacher_sha256).student(method)), setup.data)
    refuse_failure(trained)
    measured = measure(trained, setup.data, teacher.test_logits)
    history, mapped = place / f"{method}.csv", place / f"{method}_map.csv"
    write_csv(history, trained.history)
    write_csv(mapped, output_map(trained, teacher.test_logits, setup.data, read_initial(stage, "student")))
    about = methods.about(method)
    measured = replace(measured, history_sha256=sha256(history), map_sha256=sha256(mapped), about=about)
    measurement.write(place / f"{method}.json", measured)
    stage.made(f"{place / f'{method}.json'}: {measured.in_short}", "makes the table")


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"))
