"""Train the variants of one ablation, each with all seeds, and measure them; tabulate makes the table and the plot."""

import re

from stages._command import Stage, run


def main(stage: Stage) -> None:
    """Train and measure what is not finished of one ablation."""
    from stages._setup import conditions, key_of, load_teacher, set_up
    from stages._training import remove_others, train_run
    from tripletkd.config.schema import ABLATED
    from tripletkd.evaluation.measure import measure, sound
    from tripletkd.evaluation.measurement import VariantMeasurement, write_ablation
    from tripletkd.training.job import Job

    name, suite, setup = stage.config.ablation, stage.suite, set_up(stage)
    assert name is not None
    split, variants = stage.config.split, suite.ablations[name]
    teacher, teacher_sha256 = load_teacher(stage, setup)
    common, folder = conditions(stage, setup, teacher_sha256), stage.path("runs", split, "ablations", name)
    if not stage.options.only_seeds:
        remove_others(stage, folder, {folder_name(variant.label) for variant in variants})
    measured = []
    for variant in variants:
        key = key_of(stage, f"ablations/{name}/{folder_name(variant.label)}")
        if stage.options.worker not in (None, key.name):
            continue
        job = Job(key, suite.student.network, ABLATED, variant.params, variant.recipe, suite.seeds, common)
        trained = train_run(stage, setup, job, teacher, more=variant is not variants[-1])
        configured = variant.params == suite.methods[ABLATED] and variant.recipe == suite.student.recipe
        figures = measure(sound(trained, setup.data), setup.data, teacher.test_logits)
        measured.append(VariantMeasurement(variant.label, variant.changed, configured, figures))
    if stage.options.worker:
        return
    if not stage.options.only_seeds:
        write_ablation(stage.path("results", "measured", split, "ablations", f"{name}.json"), measured)
    stage.logger.runs([folder])


def folder_name(label: str) -> str:
    """Make a file name of a label: triplet 0, decay_epochs [88] becomes triplet-0-decay_epochs-88."""
    return re.sub(r"[^\w.]+", "-", label).strip("-")


if __name__ == "__main__":
    run(main, needs=("suite", "ablation", "split"), trains=True)
