"""Write a trained network as one ONNX file with its preprocessing, its model card, and what was checked; time it.

python -m stages.export suite=digits method=triplet [--seed 12], or method=teacher
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tripletkd import export, models
from tripletkd.config.check import check
from tripletkd.config.schema import SuiteInputs
from tripletkd.data import dataset as canonical
from tripletkd.data.dataset import Split
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.export import Classifier
from tripletkd.files import read_json, whole, write_json
from tripletkd.pipeline.stage import Stage, run
from tripletkd.provenance import sha256
from tripletkd.reporting.model_card import Description, Exported, Sources, markdown
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

    def to_onnx(self, sources: Sources) -> bytes:
        """Make its ONNX file."""
        return export.to_onnx(self.classifier, self.record.image_shape, sources.data.classes)


def main(stage: Stage) -> None:
    """Write all files of the export, or none.

    Raises:
        UserError: If the ONNX model is not the network, or what the card is made of does not belong together.
    """
    method, seed = stage.config.method, stage.options.seed
    assert method is not None
    if stage.config.split != "test":
        raise UserError(f"split: found {stage.config.split}, expected test: to choose parameters no export is needed")
    chosen = choose(stage, method, seed)
    sources = gather(stage, chosen)
    images, made_up = load_images(stage, chosen, sources)
    stage.say(
        f"{chosen.folder}, seed {chosen.record.seed}: writing as ONNX; comparing on {len(images.labels):,} images"
    )
    model = chosen.to_onnx(sources)
    check = export.verify(model, chosen.classifier, images)
    check = replace(check, test_accuracy=None) if made_up else check
    exported = describe(chosen, model, sources, check, is_asked_for=seed is not None)
    stage.say("timing on one thread of the processor" + ("" if method == "teacher" else ", beside the teacher"))
    timed = {"latency_ms": model}
    if method != "teacher":  # whose time is measured in the same minute
        try:
            timed["teacher_latency_ms"] = choose(stage, "teacher").to_onnx(sources)
        except UserError as error:
            stage.say(f"the teacher is not timed: {error}")
    times = measure_latency(timed, images)
    folder, examples = stage.path("exports", method), {"inputs": export.samples(images, EXAMPLES).tolist()}
    with whole(folder) as beside:
        beside.mkdir()
        (beside / "model.onnx").write_bytes(model)
        (beside / "MODEL_CARD.md").write_text(markdown(exported, sources), encoding="utf-8")
        (beside / "example.json").write_text(json.dumps(examples) + "\n")
        write_json(beside / "export.json", asdict(exported))
        write_log(beside / "log.json", beside / "export.json", stage.log(**times))
    stage.say(
        f"{folder / 'model.onnx'}: seed {exported.seed}, {exported.parameters:,} parameters, "
        f"{exported.onnx_bytes:,} bytes, opset {exported.opset}\n"
        f"  beside PyTorch on {exported.images} {exported.checked_on}: the same class for all, probabilities at most "
        f"{exported.max_difference:.1e} apart"
    )
    for batch in BATCHES:
        mine, *others = (times[f"{name}_batch_{batch}"] for name in timed)
        beside_it = "".join(f"; the teacher {taken:.3f} ms" for taken in others)
        stage.say(f"  batch of {batch}, one thread: {mine:.3f} ms{beside_it}")


def choose(stage: Stage, method: str, seed: int | None = None) -> Chosen:
    """Read the run of a method, or of the teacher, and load one seed: the first that did not fail, or the one named.

    Raises:
        UserError: If a record or the weights are not there or damaged, or the seed is not there or failed.
    """
    suite, folder = stage.suite, stage.path("runs", stage.config.split, method)
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*") if any(path.glob("seed-*")))
        remedy = "take one, " if there else f"`make pull SUITE={suite.name}` fetches what others trained, "
        raise UserError(f"{folder}: not there; trained are {', '.join(there) or 'none'}: {remedy}or run `dvc repro`")
    seeds = [suite.teacher.seed] if method == "teacher" else suite.seeds
    records = [read_record(seed_folder(folder, number)) for number in seeds]
    failed = measurement.read(
        stage.path("results", "measured", stage.config.split, f"{method}.json"), suite.name, method
    ).failed
    alive = {record.seed: record for record in records if record.failed is None and record.seed not in failed}
    if not alive:
        raise UserError(f"{folder}: every seed failed, there is nothing to export")
    record = alive.get(next(iter(alive)) if seed is None else seed)
    if record is None:
        left = ", ".join(map(str, alive))
        raise UserError(f"--seed {seed}: {folder} has no such seed that did not fail; it has {left}")
    inputs = check(SuiteInputs, record.identity.inputs, f"{folder}: inputs").build(record.image_shape[2])
    return Chosen(folder, records, record, Classifier(load_network(folder, record).float(), inputs))


def gather(stage: Stage, chosen: Chosen) -> Sources:
    """Read what the card is made of.

    Raises:
        UserError: If the figures that it would show are of other weights.
    """
    identity = chosen.record.identity
    place = stage.path("results", "measured", identity.split)
    measured, teacher = (
        measurement.read(place / f"{of}.json", identity.suite, of) for of in (identity.name, "teacher")
    )
    weights = {record.seed: record.weights_sha256 for record in chosen.records if record.seed not in measured.failed}
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
    description = read_json(stage.path("data") / canonical.DESCRIPTION, Description, "run the fetch stage again")
    return Sources(chosen.records, description, measured, teacher)


def load_images(stage: Stage, chosen: Chosen, sources: Sources) -> tuple[Split, bool]:
    """Load the test images of that run.

    A run that was pulled comes without images, but with their description. Then images of noise are made up: enough to
    compare a file with the network that it was made from.

    Returns:
        The images, and whether they are made up.

    Raises:
        UserError: If they are not those that it was trained on.
    """
    identity, folder, said = chosen.record.identity, stage.path("data"), sources.data
    is_described = said.sha256 == identity.data_sha256 and said.classes == sources.teacher.class_names
    if not (folder / canonical.IMAGES).exists() and is_described:
        shape = (MADE_UP, *chosen.record.image_shape)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Split(noise, np.zeros(MADE_UP, dtype=np.int64)), True
    dataset = canonical.load(folder)
    if dataset.sha256() != identity.data_sha256:
        raise UserError(f"{chosen.folder}: trained on other images than {folder} holds; run `dvc repro`")
    return dataset.test, False


def describe(chosen: Chosen, model: bytes, sources: Sources, check: export.Check, is_asked_for: bool) -> Exported:
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
        classes=sources.data.classes,
        **asdict(check),
    )


def measure_latency(exported: dict[str, bytes], images: Split) -> dict[str, float]:
    """Measure the milliseconds of a call of each model, by batch size."""
    return {
        f"{name}_batch_{batch}": round(milliseconds, 4)
        for batch in BATCHES
        for name, milliseconds in export.latency(exported, export.samples(images, batch), batch).items()
    }


if __name__ == "__main__":
    run(main, needs=("suite", "method"), allow_teacher=True)
