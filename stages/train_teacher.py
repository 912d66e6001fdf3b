"""Train a suite's teacher on the labels and write its run record and its measurements."""

from stages._command import Stage, run


def main(stage: Stage) -> None:
    """Train the teacher and measure it."""
    from stages._setup import job_of_teacher, refuse_failure, set_up
    from stages._training import train_run
    from tripletkd.evaluation import measurement
    from tripletkd.evaluation.measure import measure, sound

    setup, split = set_up(stage), stage.config.split
    trained = train_run(stage, setup, job_of_teacher(stage, setup))
    if stage.options.worker:
        return
    trained = sound(trained, setup.data)
    if trained.networks:
        measured = measure(trained, setup.data, teacher_logits=None)
        measurement.write(stage.path("results", "measured", split, "teacher.json"), measured)
    stage.logger.runs([stage.path("runs", split, "teacher")])
    refuse_failure(trained)


if __name__ == "__main__":
    run(main, needs=("suite", "split"), trains=True)
