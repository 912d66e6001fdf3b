"""Train all seeds of one method's student under the suite's teacher and write the run record."""

import copy
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from stages import Stage, run
from stages._training import Setting, load_teacher, train_and_record
from tripletkd import methods, models
from tripletkd.train import Teacher


def main(stage: Stage) -> None:
    settings, name, seeds = stage.suite.student, stage.config.method, stage.config.run.seeds
    method, params = methods.load(name), stage.config.methods[name]
    setting = Setting.of(stage)
    shape, classes = setting.dataset.image_shape, len(setting.dataset.classes)
    teacher, teacher_sha256 = load_teacher(stage, setting)
    students = [models.build(settings.network, shape, classes, seed) for seed in seeds]
    train_and_record(
        stage,
        setting,
        method=name,
        network=settings.network,
        students=students,
        loss=partial(method.loss, params=params),
        seeds=seeds,
        recipe=settings.recipe,
        needs=method.NEEDS,
        params={
            "method": asdict(params),
            "recipe": asdict(settings.recipe),
            "inputs": asdict(stage.suite.inputs),
            "holdout": stage.config.run.holdout,
        },
        layers=own_layers(method, params, students, teacher, seeds, setting),
        teacher=Teacher(teacher, setting.train, "features" in method.NEEDS) if "teacher" in method.NEEDS else None,
        teacher_sha256=teacher_sha256,
    )


def own_layers(
    method: Any, params: Any, students: list[nn.Module], teacher: nn.Module, seeds: list[int], setting: Setting
) -> list[nn.Module] | None:
    """What the method trains beside the student, for the shapes of these two networks; drawn from each seed."""
    if not hasattr(method, "layers"):
        return None
    height, width, channels = setting.dataset.image_shape
    images = torch.zeros(2, channels, height, width)
    with torch.no_grad():
        shapes = [copy.deepcopy(network).eval()(images) for network in (students[0], teacher)]
    return [models.seeded(seed, partial(method.layers, *shapes, params)) for seed in seeds]


if __name__ == "__main__":
    run(main, needs=("suite", "method"))
