"""Train the seeds of one method's student under the suite's teacher and write their run records."""

from tripletkd.pipeline.stage import Stage, run


def main(stage: Stage) -> None:
    """Train what is not finished of one method."""
    from tripletkd.pipeline.jobs import Runs, load_teacher, refuse_failure, set_up
    from tripletkd.pipeline.train_seeds import Training, train_run

    setup, method = set_up(stage), stage.config.method
    assert method is not None
    if special := stage.config.special(method):
        stage.say(f"methods.{method}: {stage.suite.name} has values of its own, {special}")
    teacher, teacher_sha256 = load_teacher(stage, setup)
    job = Runs(stage, setup.data_sha256, teacher_sha256).student(method)
    training = Training(stage, setup, job, teacher)
    trained = train_run(training)
    refuse_failure(trained)
    stage.made(f"{training.folder}: {len(trained.networks)} seed(s)", "measures them")


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"), trains=True)
