"""Write a trained network as one ONNX file with its preprocessing, its model card, and what was checked; time it.

python -m stages.export suite=digits method=triplet [--seed 12], or method=teacher
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
from tripletkd.training.run_record import WEIGHTS, Record, load_network, read_record, seed_folder, write_log

BATCHES = (1, 64)  # one image as it comes, and as many as a server might collect
EXAMPLES = 2
MADE_UP = 500  # images of noise, where the real ones are not here
VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Chosen:
    """The network that is exported.

    Attributes:
        folder: That of its run.
        records: Those of all seeds of its run.
        record: Its own.
        classifier: The network with the preprocessing that it was trained with.
    """

    folder: Path
    records: Sequence[Record]
    record: Record
    classifier: Classifier


def main(stage: Stage) -> None:
    """Write all files of the export, or none.

    Raises:
        UserError: If the ONNX model is not the network, or what the card is made of does not belong together.
    """
    method, seed = stage.config.method, stage.options.seed
    assert method is not None
    chosen = choose(stage, method, seed)
    sources = gather(stage, chosen)
    dataset, made_up = load_data(stage, chosen)
    stage.say(
        f"{chosen.folder}, seed {chosen.record.seed}: writing as ONNX; comparing on {len(dataset.test.labels):,} images"
    )
    model = export.to_onnx(chosen.classifier, chosen.record.image_shape, dataset.classes)
    check = export.verify(model, chosen.classifier, dataset.test)
    check = replace(check, test_accuracy=None) if made_up else check
    exported = describe(chosen, model, dataset, check, is_asked_for=seed is not None)
    stage.say("timing on one thread of the processor" + ("" if method == "teacher" else ", beside the teacher"))
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
    stage.say(summarize(folder, exported, times))


def choose(stage: Stage, method: str, seed: int | None = None) -> Chosen:
    """Read the run of a method, or of the teacher, and load one seed: the first that did not fail, or the one named.

    Raises:
        UserError: If a record or the weights are not there or damaged, or the seed is not there or failed.
    """
    suite, folder = stage.suite, stage.path("runs", stage.config.split, method)
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*") if any(path.glob("seed-*")))
        raise UserError(f"{folder}: not there; trained are {', '.join(there) or 'none'}: take one, or run `dvc repro`")
    seeds = [suite.teacher.seed] if method == "teacher" else suite.seeds
    records = [read_record(seed_folder(folder, number)) for number in seeds]
    alive = {record.seed: record for record in records if record.failed is None}
    if not alive:
        raise UserError(f"{folder}: every seed failed, there is nothing to export")
    record = next(iter(alive.values())) if seed is None else alive.get(seed)
    if record is None:
        raise UserError(
            f"--seed {seed}: {folder} has no such seed that did not fail; it has {', '.join(map(str, alive))}"
        )
    inputs = InputSettings(**record.identity.inputs).build(record.image_shape[2])
    return Chosen(folder, records, record, Classifier(load_network(folder, record).float(), inputs))


def gather(stage: Stage, chosen: Chosen) -> Sources:
    """Read what the card is made of.

    Raises:
        UserError: If the figures that it would show are of other weights, or the classes others than the teacher's.
    """
    identity, path = chosen.record.identity, stage.path("data") / canonical.DESCRIPTION
    place = stage.path("results", "measured", identity.split)
    measured, teacher = (
        measurement.read(place / f"{of}.json", identity.suite, of) for of in (identity.name, "teacher")
    )
    weights = {record.seed: record.weights_sha256 for record in chosen.records if record.failed is None}
    if measured.weights_sha256 != weights:
        raise UserError(
            f"{place / f'{identity.name}.json'}: measured on other weights than {chosen.folder} holds; run the "
            "evaluate stage again"
        )
    if identity.teacher_sha256 not in (None, *teacher.weights_sha256.values()):
        raise UserError(
            f"{chosen.folder}: distilled from another teacher than {place / 'teacher.json'} describes; run the distill "
            "stage again"
        )
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        classes = tuple(description["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); run the fetch stage again") from None
    if classes != (teacher.class_names or classes):
        raise UserError(
            f"{path}: classes {', '.join(map(str, classes))}; {place / 'teacher.json'} has "
            f"{', '.join(teacher.class_names or ())}; run the fetch stage again"
        )
    return Sources(chosen.records, description, measured, teacher)


def load_data(stage: Stage, chosen: Chosen) -> tuple[Dataset, bool]:
    """Load the images of that run, a held-out part in the test split's place if it had one.

    A run of the test split that was pulled comes without images, but with their description. Then images of noise are
    made up: enough to hold a file against the network that it was made from.

    Returns:
        The images, and whether they are made up.

    Raises:
        UserError: If they are not those that it was trained on.
    """
    record, folder = chosen.record, stage.path("data")
    expected = record.identity.data_sha256
    if not (folder / canonical.IMAGES).exists() and record.identity.split == "test":
        said = json.loads((folder / canonical.DESCRIPTION).read_text(encoding="utf-8"))
        if said.get("sha256") == expected and len(said["classes"]) == record.classes:
            pixels = np.random.default_rng(0).integers(0, 256, (MADE_UP, *record.image_shape), dtype=np.uint8)
            split = Split(pixels, np.arange(MADE_UP, dtype=np.int64) % record.classes)
            return Dataset(split, split, tuple(said["classes"])), True
    dataset = canonical.load(folder)
    if record.identity.split == "validation":
        dataset = dataset.with_holdout(stage.suite.holdout)
    if dataset.sha256() != expected:
        raise UserError(f"{chosen.folder}: trained on other images than {folder} holds; run `dvc repro`")
    return dataset, False


def describe(chosen: Chosen, model: bytes, dataset: Dataset, check: export.Check, is_asked_for: bool) -> Exported:
    """Collect what export.json says of the network and its file; no time, no path."""
    record = chosen.record
    weights = seed_folder(chosen.folder, record.seed) / WEIGHTS
    return Exported(
        suite=record.identity.suite,
        method=record.identity.name,
        network=record.identity.network,
        seed=record.seed,
        seed_is="asked for" if is_asked_for else "the first",
        parameters=models.parameter_count(chosen.classifier),
        opset=export.OPSET,
        weights_bytes=weights.stat().st_size,
        onnx_bytes=len(model),
        weights_sha256=sha256(weights),
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        data_sha256=record.identity.data_sha256,
        versions={name: version(name) for name in VERSIONS},
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


def summarize(folder: Path, exported: Exported, times: dict[str, float]) -> str:
    """Summarize the export for a person."""
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
