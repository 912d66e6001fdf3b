"""Train all seeds of one method's student under the suite's teacher and write the run record."""

from stages import Stage, run


def main(stage: Stage) -> None:
    from stages._training import Setting, distill, done, refuse_failure

    name = stage.config.method
    setting = Setting.of(stage)
    made, _ = distill(stage, setting, name, name, stage.config.methods[name], stage.suite.student.recipe)
    stage.logger.record(stage.place("runs", stage.config.split, name))
    done(stage, name)
    refuse_failure(made)


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"))
