"""Train all seeds of one method's student under the suite's teacher and write the run record."""

from dataclasses import asdict
from functools import partial

from stages import Stage, run
from stages._training import Setting, load_teacher, own_layers, train_and_record
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


if __name__ == "__main__":
    run(main, needs=("suite", "method"))
