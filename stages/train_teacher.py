"""Train a suite's teacher on the labels and write its run record and its measurements."""

from stages._command import Stage, run


def main(stage: Stage) -> None:
    """Train the teacher and measure it."""
    from stages._training import conditions, key_of, refuse_failure, set_up, train_run
    from tripletkd import methods
    from tripletkd.evaluation import measurement
    from tripletkd.evaluation.measure import measure
    from tripletkd.training.job import Job

    settings, setup, split = stage.suite.teacher, set_up(stage), stage.config.split
    job = Job(
        key=key_of(stage, "teacher"),
        network=settings.network,
        method="scratch",
        params=methods.load("scratch").Params(ce=1.0),
        recipe=settings.recipe,
        seeds=[settings.seed],
        conditions=conditions(stage, setup),
    )
    trained = train_run(stage, setup, job)
    if stage.options.worker:
        return
    if trained.networks:
        measured = measure(trained, setup.data, teacher_logits=None)
        measurement.write(stage.path("results", "measured", split, "teacher.json"), measured)
    stage.logger.runs([stage.path("runs", split, "teacher")])
    refuse_failure(trained)


if __name__ == "__main__":
    run(main, needs=("suite", "split"), trains=True)
