"""Write a trained network as one ONNX file with its preprocessing, its model card, and what was checked; time it.

python -m stages.export suite=digits method=triplet, or method=teacher
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tripletkd import export, models
from tripletkd.config.schema import InputSettings
from tripletkd.data import dataset as canonical
from tripletkd.data.dataset import Dataset, Split
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.export import Classifier
from tripletkd.files import whole, write_json
from tripletkd.pipeline.stage import Stage, run
from tripletkd.provenance import sha256
from tripletkd.reporting.model_card import Exported, Sources, markdown
from tripletkd.training.run_record import (
    WEIGHTS,
    Record,
    load_network,
    read_record,
    seed_folder,
    write_log,
)

BATCHES = (1, 64)  # one image as it comes, and as many as a server might collect
EXAMPLES = 2
MADE_UP = 500  # images of noise, where the real ones are not here


def main(stage: Stage) -> None:
    """Export the network of one method, or the teacher, and log the export."""
    stage.logger.export(write(stage))


@dataclass(frozen=True)
class Chosen:
    """The network that is exported: the first seed that did not fail, whatever its accuracy.

    Attributes:
        records: Those of all seeds of its run.
        record: Its own.
        weights: The file of its weights.
        classifier: The network with the preprocessing that it was trained with.
    """

    records: Sequence[Record]
    record: Record
    weights: Path
    classifier: Classifier


def write(stage: Stage) -> Path:
    """Write all files of the export, or none; returns their folder.

    Raises:
        UserError: If the ONNX model is not the network, or what the card is made of does not belong together.
    """
    method = stage.config.method
    assert method is not None
    chosen = choose(stage, method)
    dataset = load_data(stage, chosen)
    sources = gather(stage, chosen)
    model = export.to_onnx(chosen.classifier, chosen.record.image_shape, dataset.classes)
    check = export.verify(model, chosen.classifier, dataset.test)
    if not has_images(stage):
        check = replace(check, test_accuracy=None)
    exported = describe(chosen, model, dataset, check)
    times = measure_latency(stage, method, model, dataset)
    examples = {"inputs": dataset.test.take(slice(EXAMPLES)).tolist()}
    folder = stage.path("exports", method)
    with whole(folder) as beside:
        beside.mkdir()
        (beside / "model.onnx").write_bytes(model)
        (beside / "MODEL_CARD.md").write_text(markdown(exported, sources), encoding="utf-8")
        (beside / "example.json").write_text(json.dumps(examples) + "\n")
        write_json(beside / "export.json", asdict(exported))
        write_log(beside / "log.json", beside / "export.json", stage.log(**times))
    stage.say(summarise(folder, exported, times))
    return folder


def choose(stage: Stage, method: str) -> Chosen:
    """Read the run of a method, or of the teacher, and load its first seed that did not fail.

    Raises:
        UserError: If a record or the weights are not there or damaged, or if every seed failed.
    """
    suite, folder = stage.suite, stage.path("runs", stage.config.split, method)
    seeds = [suite.teacher.seed] if method == "teacher" else suite.seeds
    records = [read_record(seed_folder(folder, seed)) for seed in seeds]
    alive = [record for record in records if record.failed is None]
    if not alive:
        raise UserError(f"{folder}: every seed failed, there is nothing to export")
    inputs = InputSettings(**alive[0].params["inputs"]).build(alive[0].image_shape[2])
    network = load_network(folder, alive[0]).float()
    return Chosen(records, alive[0], seed_folder(folder, alive[0].seed) / WEIGHTS, Classifier(network, inputs))


def load_data(stage: Stage, chosen: Chosen) -> Dataset:
    """Load the images of that run, a held-out part in the test split's place if it had one.

    A run of the test split that was pulled comes without images, but with their description: then they are made up.

    Raises:
        UserError: If they are not those that it was trained on.
    """
    folder = stage.path("data")
    if not has_images(stage) and (folder / canonical.DESCRIPTION).is_file() and chosen.record.split == "test":
        said = read_description(stage)
        if said["sha256"] == chosen.record.data_sha256:
            return made_up(chosen.record, said["classes"])
    dataset = canonical.load(folder)
    if chosen.record.split == "validation":
        dataset = dataset.with_holdout(stage.suite.holdout)
    if dataset.sha256() != chosen.record.data_sha256:
        run_folder = stage.path("runs", chosen.record.split, chosen.record.name)
        raise UserError(f"{run_folder}: trained on other images than {stage.path('data')} holds")
    return dataset


def has_images(stage: Stage) -> bool:
    """Whether the suite's images are here."""
    return (stage.path("data") / canonical.IMAGES).exists()


def read_description(stage: Stage) -> dict[str, Any]:
    """Read what `fetch` wrote of the suite's images."""
    said: dict[str, Any] = json.loads((stage.path("data") / canonical.DESCRIPTION).read_text(encoding="utf-8"))
    return said


def made_up(record: Record, classes: Sequence[str]) -> Dataset:
    """Make noise of the shape of the run's images: enough to hold a file against the network that it was made from."""
    pixels = np.random.default_rng(0).integers(0, 256, (MADE_UP, *record.image_shape), dtype=np.uint8)
    split = Split(pixels, np.arange(MADE_UP, dtype=np.int64) % len(classes))
    return Dataset(split, split, tuple(classes))


def gather(stage: Stage, chosen: Chosen) -> Sources:
    """Read what the card is made of.

    Raises:
        UserError: If the figures that it would show are of other weights.
    """
    name, place = chosen.record.name, stage.path("results", "measured", chosen.record.split)
    folder, suite = stage.path("runs", chosen.record.split, name), chosen.record.suite
    measured, teacher = (measurement.read(place / f"{of}.json", suite, of) for of in (name, "teacher"))
    weights = {record.seed: record.weights_sha256 for record in chosen.records if record.failed is None}
    if measured.weights_sha256 != weights:
        raise UserError(
            f"{place / f'{name}.json'}: measured on other weights than {folder} holds; run the evaluate stage again"
        )
    if chosen.record.teacher_sha256 not in (None, *teacher.weights_sha256.values()):
        raise UserError(
            f"{folder}: distilled from another teacher than {place / 'teacher.json'} describes; run the distill stage "
            "again"
        )
    return Sources(chosen.records, read_description(stage), measured, teacher)


def describe(chosen: Chosen, model: bytes, dataset: Dataset, check: export.Check) -> Exported:
    """Collect what export.json says of the network and its file; no time, no path."""
    record = chosen.record
    return Exported(
        suite=record.suite,
        method=record.method,
        network=record.network,
        seed=record.seed,
        parameters=models.parameter_count(chosen.classifier),
        opset=export.OPSET,
        weights_bytes=chosen.weights.stat().st_size,
        onnx_bytes=len(model),
        weights_sha256=sha256(chosen.weights),
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        data_sha256=record.data_sha256,
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        classes=dataset.classes,
        **asdict(check),
    )


def measure_latency(stage: Stage, method: str, model: bytes, dataset: Dataset) -> dict[str, float]:
    """Measure milliseconds by batch size, the teacher's in the same minute beside a student's."""
    exported = {"latency_ms": model}
    if method != "teacher":
        teacher = choose(stage, "teacher")
        exported["teacher_latency_ms"] = export.to_onnx(teacher.classifier, teacher.record.image_shape, dataset.classes)
    return {
        f"{name}_batch_{batch}": round(milliseconds, 4)
        for batch in BATCHES
        for name, milliseconds in export.latency(exported, dataset.test.take(slice(batch)), batch).items()
    }


def summarise(folder: Path, exported: Exported, times: dict[str, float]) -> str:
    """Summarise the export for a person."""
    lines = [
        f"{folder / 'model.onnx'}: seed {exported.seed}, {exported.parameters:,} parameters, "
        f"{exported.onnx_bytes:,} bytes, opset {exported.opset}",
        f"  beside PyTorch on {exported.images} {exported.checked_on}: the same class for all, probabilities at most "
        f"{exported.max_difference:.1e} apart",
    ]
    for batch in BATCHES:
        mine, teacher = (times.get(f"{prefix}latency_ms_batch_{batch}") for prefix in ("", "teacher_"))
        beside = f"; the teacher {teacher:.3f} ms" if teacher is not None else ""
        lines.append(f"  batch of {batch}, one thread: {mine:.3f} ms{beside}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, needs=("suite", "method"), allow_teacher=True)
