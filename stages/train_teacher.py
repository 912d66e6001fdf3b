"""Train a suite's teacher on the labels and write its run record and its measurements."""

from dataclasses import asdict
from functools import partial

from stages import Stage, run
from stages._training import Setting, train_and_record
from tripletkd import evaluate, methods, models
from tripletkd.provenance import write_json
from tripletkd.record import Record
from tripletkd.train import Fitted


def main(stage: Stage) -> None:
    settings, setting, scratch = stage.suite.teacher, Setting.of(stage), methods.load("scratch")
    network = models.build(settings.network, setting.dataset.image_shape, len(setting.dataset.classes), settings.seed)

    def measure(made: Record, fitted: Fitted) -> None:
        measured = evaluate.measure(made, fitted.networks, fitted.history, setting.train, setting.test)
        write_json(stage.place("results", "measured", "teacher.json"), measured)

    train_and_record(
        stage,
        setting,
        method="teacher",
        network=settings.network,
        students=[network],
        loss=partial(scratch.loss, params=scratch.Params(ce=1.0)),
        seeds=[settings.seed],
        recipe=settings.recipe,
        needs=scratch.NEEDS,
        params={
            "recipe": asdict(settings.recipe),
            "inputs": asdict(stage.suite.inputs),
            "holdout": stage.config.run.holdout,
        },
        finish=measure,
    )


if __name__ == "__main__":
    run(main)
