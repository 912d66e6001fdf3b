"""Train all seeds of one method's student under the suite's teacher and write the run record."""

from stages import Stage, run, tracking_root
from stages._training import Setting, distill, done, refuse_failure
from tripletkd import tracking


def main(stage: Stage) -> None:
    name = stage.config.method
    with tracking.Logger(tracking_root()) as logger:
        setting = Setting.of(stage)
        made, _ = distill(stage, setting, name, name, stage.config.methods[name], stage.suite.student.recipe)
        logger.record(stage.place("runs", stage.config.split, name))
    done(stage, name)
    refuse_failure(made)


if __name__ == "__main__":
    run(main, needs=("suite", "method"))
