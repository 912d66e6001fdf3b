"""Train a suite's teacher on the labels and write its run record and its measurements."""

from __future__ import annotations  # the types' modules import PyTorch

from collections.abc import Callable
from typing import TYPE_CHECKING

from tripletkd.pipeline.stage import Stage, run

if TYPE_CHECKING:
    from tripletkd.pipeline.train_seeds import Training
    from tripletkd.training.run_record import TrainedRun


def main(stage: Stage) -> None:
    """Train the teacher and measure it."""
    from tripletkd.pipeline.train_seeds import train_run

    measure_run(stage, train_run)


def measure_run(stage: Stage, obtain: Callable[[Training], TrainedRun]) -> None:
    """Measure the teacher, which `obtain` trains, or reads where it is trained already."""
    from tripletkd.evaluation import measurement
    from tripletkd.evaluation.measure import measure, sound
    from tripletkd.pipeline.jobs import Runs, refuse_failure, set_up
    from tripletkd.pipeline.train_seeds import Training

    setup = set_up(stage)
    job = Runs(stage, setup.data_sha256).teacher()
    trained = sound(obtain(Training(stage, setup, job)), setup.data)
    refuse_failure(trained)
    measured = measure(trained, setup.data, teacher_logits=None)
    path = stage.path("results", "measured", stage.config.split, "teacher.json")
    measurement.write(path, measured)
    stage.made(f"{path}: {measured.in_short}", "trains students under it")


if __name__ == "__main__":
    run(main, needs=("suite", "split"), trains=True)
