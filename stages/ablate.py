"""Train the variants of one ablation, each with all seeds, and measure them; tabulate makes the table and the plot."""

from __future__ import annotations  # the types' modules import PyTorch

from collections.abc import Callable
from typing import TYPE_CHECKING

from tripletkd.pipeline.stage import Stage, run

if TYPE_CHECKING:
    from tripletkd.pipeline.train_seeds import Training
    from tripletkd.training.run_record import TrainedRun


def main(stage: Stage) -> None:
    """Train and measure what is not finished of one ablation."""
    from tripletkd.pipeline.train_seeds import remove_others, train_run

    name = stage.config.ablation
    assert name is not None
    if not stage.options.only_seeds:
        folder = stage.path("runs", stage.config.split, "ablations", name)
        remove_others(stage, folder, {variant.folder_name for variant in stage.suite.ablations[name]})
    measure_runs(stage, train_run)


def measure_runs(stage: Stage, obtain: Callable[[Training], TrainedRun]) -> None:
    """Measure the variants, which `obtain` trains, or reads where they are trained already."""
    from tripletkd.config.schema import ABLATED
    from tripletkd.evaluation.measure import measure, sound
    from tripletkd.evaluation.measurement import VariantMeasurement, write_ablation
    from tripletkd.pipeline.jobs import Runs, load_teacher, set_up
    from tripletkd.pipeline.train_seeds import Training

    name, suite, split, setup = stage.config.ablation, stage.suite, stage.config.split, set_up(stage)
    assert name is not None
    teacher, teacher_sha256 = load_teacher(stage, setup)
    runs, variants, measured = Runs(stage, setup.data_sha256, teacher_sha256), suite.ablations[name], []
    for variant in variants:
        training = Training(stage, setup, runs.variant(name, variant), teacher, more=variant is not variants[-1])
        figures = measure(sound(obtain(training), setup.data), setup.data, teacher.test_logits)
        configured = variant.params == suite.methods[ABLATED] and variant.recipe == suite.student.recipe
        measured.append(VariantMeasurement(variant.label, variant.changed, configured, figures))
    if not stage.options.only_seeds:
        path = stage.path("results", "measured", split, "ablations", f"{name}.json")
        write_ablation(path, measured)
        stage.made(f"{path}: {len(measured)} variants, {len(suite.seeds)} seed(s) each", "compares them")


if __name__ == "__main__":
    run(main, needs=("suite", "ablation", "split"), trains=True)
