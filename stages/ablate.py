"""Train the variants of one ablation, each with all seeds, and measure them; tabulate makes the table and the plot."""

from tripletkd.pipeline.stage import Stage, run


def main(stage: Stage) -> None:
    """Train and measure what is not finished of one ablation."""
    from tripletkd.config.schema import ABLATED
    from tripletkd.evaluation.measure import measure, sound
    from tripletkd.evaluation.measurement import VariantMeasurement, write_ablation
    from tripletkd.pipeline.jobs import Runs, load_teacher, set_up
    from tripletkd.pipeline.train import Training, remove_others, train_run

    name, suite, split, setup = stage.config.ablation, stage.suite, stage.config.split, set_up(stage)
    assert name is not None
    teacher, teacher_sha256 = load_teacher(stage, setup)
    runs, variants = Runs(stage, setup.data_sha256, teacher_sha256), suite.ablations[name]
    if not stage.options.only_seeds:
        remove_others(stage, stage.path("runs", split, "ablations", name), {v.folder_name for v in variants})
    measured = []
    for variant in variants:
        training = Training(stage, setup, runs.variant(name, variant), teacher, more=variant is not variants[-1])
        figures = measure(sound(train_run(training), setup.data), setup.data, teacher.test_logits)
        configured = variant.params == suite.methods[ABLATED] and variant.recipe == suite.student.recipe
        measured.append(VariantMeasurement(variant.label, variant.changed, configured, figures))
    if not stage.options.only_seeds:
        write_ablation(stage.path("results", "measured", split, "ablations", f"{name}.json"), measured)


if __name__ == "__main__":
    run(main, needs=("suite", "ablation", "split"), trains=True)
