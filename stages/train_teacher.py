"""Train a suite's teacher on the labels and write its run record and its measurements."""

from tripletkd.pipeline.stage import Stage, run


def main(stage: Stage) -> None:
    """Train the teacher and measure it."""
    from tripletkd.evaluation import measurement
    from tripletkd.evaluation.measure import measure, sound
    from tripletkd.pipeline.jobs import Runs, refuse_failure, set_up
    from tripletkd.pipeline.train import Training, train_run

    setup = set_up(stage)
    job = Runs(stage, setup.data_sha256).teacher()
    trained = sound(train_run(Training(stage, setup, job)), setup.data)
    refuse_failure(trained)
    measured = measure(trained, setup.data, teacher_logits=None)
    measurement.write(stage.path("results", "measured", stage.config.split, "teacher.json"), measured)


if __name__ == "__main__":
    run(main, needs=("suite", "split"), trains=True)
