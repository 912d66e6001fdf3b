"""Train the seeds of one method's student under the suite's teacher and write their run records."""

from stages._command import Stage, run


def main(stage: Stage) -> None:
    """Train what is not finished of one method."""
    from stages._setup import job_of_method, load_teacher, refuse_failure, set_up
    from stages._training import train_run

    setup = set_up(stage)
    teacher, teacher_sha256 = load_teacher(stage, setup)
    job = job_of_method(stage, setup, teacher_sha256)
    trained = train_run(stage, setup, job, teacher)
    if not stage.options.worker:
        stage.logger.runs([stage.path("runs", job.key.split, job.key.name)])
        refuse_failure(trained)


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"), trains=True)
