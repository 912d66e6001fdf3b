"""Train a suite's teacher on the labels and write its run record and its measurements."""

from functools import partial

from stages import Stage, run
from tripletkd.files import write_json


def main(stage: Stage) -> None:
    from stages._training import Setting, done, refuse_failure, train
    from tripletkd import methods, models
    from tripletkd.evaluation import measure as evaluate

    settings, setting, scratch = stage.suite.teacher, Setting.of(stage), methods.load("scratch")
    shape, classes = setting.dataset.image_shape, len(setting.dataset.classes)
    made, fitted = train(
        stage,
        setting,
        cell="teacher",
        method="teacher",
        network=settings.network,
        students=[models.build(settings.network, shape, classes, settings.seed)],
        loss=partial(scratch.loss, params=scratch.Params(ce=1.0)),
        seeds=[settings.seed],
        recipe=settings.recipe,
        needs=scratch.NEEDS,
        params={},
    )
    if fitted.networks:
        measured = evaluate.measure(made, fitted.networks, fitted.history, setting.train, setting.test)
        named = measured | {"class_names": setting.dataset.classes}
        write_json(stage.place("results", "measured", stage.config.split, "teacher.json"), named)
    stage.logger.record(stage.place("runs", stage.config.split, "teacher"))
    done(stage, "teacher")
    refuse_failure(made)


if __name__ == "__main__":
    run(main, needs=("suite", "split"))
