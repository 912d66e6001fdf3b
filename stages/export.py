"""Write a trained network as one ONNX file with its preprocessing, its model card, and what was checked; time it.

python -m stages.export suite=digits method=triplet, or method=teacher
"""

import hashlib
import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tripletkd.tracking.run_record import Record

from stages import Stage, run
from tripletkd import export, models
from tripletkd.config.load import InputSettings
from tripletkd.data import dataset as data
from tripletkd.errors import UserError
from tripletkd.export import Classifier
from tripletkd.files import whole, write_json
from tripletkd.reporting import model_card as card
from tripletkd.tracking import run_record as record

BATCHES = (1, 64)  # one image as it comes, and as many as a server might collect
EXAMPLES = 2


def main(stage: Stage) -> None:
    stage.logger.model(write(stage))


def write(stage: Stage) -> Path:
    """All files of the export, or none; returns their folder. UserError if the ONNX model is not the network."""
    method, folder = stage.config.method, stage.place("exports", stage.config.method)
    made, measured, teacher = load(stage, method), stage.measured(method), stage.measured("teacher")
    dataset = dataset_of(stage, made)
    refuse_strangers(stage, made, measured, teacher)
    seed, classifier = first(stage, made)
    model = export.to_onnx(classifier, made.image_shape, dataset.classes)
    check = export.verify(model, classifier, dataset.test)
    exported = facts(stage, made, seed, classifier, model) | {"classes": dataset.classes} | asdict(check)
    times = timed(stage, method, model, dataset)
    description = json.loads((stage.place("data") / data.DESCRIPTION).read_text(encoding="utf-8"))
    text = card.markdown(exported, made, description, measured, teacher)
    examples = {"inputs": dataset.test.images[:EXAMPLES].tolist()}
    with whole(folder) as beside:
        beside.mkdir()
        (beside / "model.onnx").write_bytes(model)
        (beside / "MODEL_CARD.md").write_text(text, encoding="utf-8")
        (beside / "example.json").write_text(json.dumps(examples) + "\n")
        write_json(beside / "export.json", exported)
        record.write_log(beside, "export.json", stage.log(**times))
    stage.say(summary(folder, exported, times))
    return folder


def facts(stage: Stage, made: Record, seed: int, classifier: Classifier, model: bytes) -> dict[str, Any]:
    """What export.json says of the network and its file, besides what was checked; no time, no path."""
    return {
        "suite": made.suite,
        "method": made.method,
        "network": made.network,
        "seed": seed,
        "parameters": models.parameter_count(classifier),
        "opset": export.OPSET,
        "weights_bytes": record.weights_path(stage.place("runs", made.split, made.method), seed).stat().st_size,
        "onnx_bytes": len(model),
        "weights_sha256": made.weights_sha256[str(seed)],
        "onnx_sha256": hashlib.sha256(model).hexdigest(),
        "data_sha256": made.data_sha256,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    }


def load(stage: Stage, method: str) -> Record:
    made = record.read(stage.place("runs", stage.config.split, method))
    if not made.weights_sha256:
        raise UserError(
            f"{stage.place('runs', stage.config.split, method)}: every seed failed, there is nothing to export"
        )
    return made


def first(stage: Stage, made: Record) -> tuple[int, Classifier]:
    """The first seed that did not fail, whatever its accuracy, with the preprocessing that it was trained with."""
    seed = next(seed for seed in made.seeds if str(seed) in made.weights_sha256)
    alone = replace(made, weights_sha256={str(seed): made.weights_sha256[str(seed)]})
    network = alone.load_networks(stage.place("runs", made.split, made.method))[seed].float()
    inputs = InputSettings(**made.params["inputs"]).build(made.image_shape[2])
    return seed, Classifier(network, inputs)


def dataset_of(stage: Stage, made: Record) -> data.Dataset:
    """The images of that run, a held-out part in the test split's place if it had one."""
    dataset = data.load(stage.place("data"))
    if made.split == "validation":
        dataset = dataset.with_holdout(stage.suite.holdout)
    if dataset.sha256() != made.data_sha256:
        raise UserError(
            f"{stage.place('runs', made.split, made.method)}: trained on other images than {stage.place('data')} holds"
        )
    return dataset


def refuse_strangers(stage: Stage, made: Record, measured: Any, teacher: Any) -> None:
    """UserError if the figures that the card would show are of other weights."""
    if measured["weights_sha256"] != made.weights_sha256:
        raise UserError(
            f"{stage.place('results', 'measured', made.split, f'{made.method}.json')}: measured on other weights than "
            f"{stage.place('runs', made.split, made.method)} holds; run the evaluate stage again"
        )
    if made.teacher_sha256 and made.teacher_sha256 not in teacher["weights_sha256"].values():
        raise UserError(
            f"{stage.place('runs', made.split, made.method)}: distilled from another teacher than "
            f"{stage.place('results', 'measured', made.split, 'teacher.json')} describes; run the distill stage again"
        )


def timed(stage: Stage, method: str, model: bytes, dataset: data.Dataset) -> dict[str, float]:
    """Milliseconds by batch size, the teacher's in the same minute beside a student's."""
    exported = {"latency_ms": model}
    if method != "teacher":
        made = load(stage, "teacher")
        _, teacher = first(stage, made)
        exported["teacher_latency_ms"] = export.to_onnx(teacher, made.image_shape, dataset.classes)
    return {
        f"{name}_batch_{batch}": round(milliseconds, 4)
        for batch in BATCHES
        for name, milliseconds in export.latency(exported, dataset.test.images, batch).items()
    }


def summary(folder: Path, exported: dict[str, Any], times: dict[str, float]) -> str:
    """Short, for a person."""
    lines = [
        f"{folder / 'model.onnx'}: seed {exported['seed']}, {exported['parameters']:,} parameters, "
        f"{exported['onnx_bytes']:,} bytes, opset {exported['opset']}",
        f"  beside PyTorch on {exported['images']} test images: the same class for all, probabilities at most "
        f"{exported['max_difference']:.1e} apart",
    ]
    for batch in BATCHES:
        mine, teacher = (times.get(f"{prefix}latency_ms_batch_{batch}") for prefix in ("", "teacher_"))
        beside = f"; the teacher {teacher:.3f} ms" if teacher is not None else ""
        lines.append(f"  batch of {batch}, one thread: {mine:.3f} ms{beside}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, needs=("suite", "method"), teacher=True)
