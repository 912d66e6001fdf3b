"""Train the variants of one ablation, each with all seeds, and measure them; tabulate makes the table and the plot."""

import re
from typing import Any

from stages import Stage, run
from tripletkd.files import write_json


def main(stage: Stage) -> None:
    from stages._training import Setting, done

    name, split, setting = stage.config.ablation, stage.config.split, Setting.of(stage)
    variants = stage.config.ablations[name]
    cells = [f"ablations/{name}/{folder_name(variant.label)}" for variant in variants]
    measured = [
        train_and_measure(stage, setting, cell, variant, more=cell != cells[-1])
        for cell, variant in zip(cells, variants, strict=True)
    ]
    write_json(stage.place("results", "measured", split, "ablations", f"{name}.json"), measured)
    stage.logger.record(*(stage.place("runs", split, cell) for cell in cells))
    done(stage, *cells)


def folder_name(label: str) -> str:
    """triplet 0, decay_epochs [88]: triplet-0-decay_epochs-88"""
    return re.sub(r"[^\w.]+", "-", label).strip("-")


def train_and_measure(stage: Stage, setting: Any, cell: str, variant: Any, more: bool) -> dict[str, Any]:
    """One variant of config.Variant, in a _training.Setting; more: whether others follow."""
    from stages._training import distill, load_teacher
    from tripletkd.config.load import ABLATED
    from tripletkd.evaluation import measure as evaluate

    made, fitted = distill(stage, setting, cell, ABLATED, variant.params, variant.recipe, more=more)
    teacher, _ = load_teacher(stage, setting)
    configured = variant.params == stage.config.methods[ABLATED] and variant.recipe == stage.suite.student.recipe
    return {
        "label": variant.label,
        "changed": variant.changed,
        "configured": configured,  # whether it is what params.yaml has
        **evaluate.measure(made, fitted.networks, fitted.history, setting.train, setting.test, teacher),
    }


if __name__ == "__main__":
    run(main, needs=("suite", "ablation", "split"))
