"""The model card of an exported network: what it is, what it was trained on, how well it does, what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

from tripletkd.analysis.statistics import Summary, summarise
from tripletkd.tracking.run_record import Record

# data.source and data.name -> what its authors say of the images' licence, as far as is known
LICENCES = {
    "digits": "CC BY 4.0: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (E. Alpaydin, "
    "C. Kaynak, 1998), of which scikit-learn carries the test part",
    "torchvision CIFAR10": "none stated by its authors, who ask for a citation (A. Krizhevsky, 2009); the images were "
    "found on the web, and 80 Million Tiny Images, from which they come, was withdrawn by its authors in 2020",
    "torchvision MNIST": "none stated by its authors (Y. LeCun, C. Cortes, C. Burges); Keras' documentation says "
    "CC BY-SA 3.0",
    "torchvision FashionMNIST": "MIT (Zalando SE, 2017)",
    "torchvision SVHN": "none stated, but its page says `for non-commercial use only` (Y. Netzer et al., 2011)",
}
LICENCES["torchvision CIFAR100"] = LICENCES["torchvision CIFAR10"]
UNKNOWN = "unknown, ask who gave you the images"

# key of a measured seed -> its line of the card, factor, decimals
MEASURES = {
    "test_accuracy": ("test accuracy, %", 100, 2),
    "test_top5_accuracy": ("top-5 test accuracy, %", 100, 2),
    "test_cross_entropy": ("test cross-entropy", 1, 4),
    "test_calibration_error": ("calibration error, %", 100, 2),
    "train_accuracy": ("training accuracy, %", 100, 2),
    "agreement": ("same class as the teacher, % of the test images", 100, 2),
}

CALL = """\
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
with open("example.json") as file:  # two test images; yours: uint8 [N, {height}, {width}, {channels}], N as you like
    images = np.array(json.load(file)["inputs"], dtype=np.uint8)
[probabilities] = session.run(None, {{"images": images}})  # float32 [N, {classes}], rows that sum to 1
for row in probabilities:
    print(classes[row.argmax()], row.max())
"""


def markdown(
    exported: Mapping[str, Any],
    made: Record,
    data: Mapping[str, Any],
    measured: Mapping[str, Any],
    teacher: Mapping[str, Any],
) -> str:
    """MODEL_CARD.md from export.json, run record, dataset.json, and the measurements of the method and the teacher."""
    height, width, channels = made.image_shape
    call = CALL.format(height=height, width=width, channels=channels, classes=made.classes)
    is_teacher = made.method == "teacher"
    who = "the teacher" if is_teacher else f"a student trained by the method `{made.method}`"
    sections = {
        "The model": _model(exported, made),
        "How to call it": [f"In this folder, with numpy and onnxruntime:\n\n```python\n{call}```"],
        "Data": _data(data, made.split),
        "Training": _training(made),
        "How well it does": _results(exported, measured, None if is_teacher else teacher),
        "Use and limits": _limits(exported, data),
        "Licence": [
            "Code and training: MIT, see the project's LICENSE.",
            f"The images it was trained on: {LICENCES.get(data['source'], UNKNOWN)}.",
            "Whether a licence of images reaches a network trained on them is not settled; ask before you sell it.",
        ],
        "Where it comes from": _origin(exported, made),
    }
    lines = [f"# {made.suite}/{made.method}", "", f"{exported['network']}, {who}: an image classifier in ONNX."]
    for title, paragraphs in sections.items():
        lines += ["", f"## {title}", "", "\n\n".join(paragraphs)]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, align, *rows))


def _model(exported: Mapping[str, Any], made: Record) -> list[str]:
    height, width, channels = made.image_shape
    if len(made.seeds) == 1:
        chosen = f"It is seed {exported['seed']}, the only one of this run."
    else:
        chosen = (
            f"It is seed {exported['seed']} of {_list(made.seeds)}: the first that did not fail, not the best one. "
            "Choosing by the test images would make their accuracy a promise that new images do not keep."
        )
    return [
        f"`model.onnx` (opset {exported['opset']}, {exported['onnx_bytes']:,} bytes) takes images "
        f"`uint8 [N, {height}, {width}, {channels}]`, N free, and returns probabilities `float32 [N, {made.classes}]`. "
        "Scaling and normalising are inside; resizing is not.",
        f"Network: {exported['network']}, {exported['parameters']:,} parameters. {chosen}",
        f"Classes: {', '.join(exported['classes'])}.",
    ]


def _data(data: Mapping[str, Any], split: str) -> list[str]:
    images = data["images"]
    paragraphs = [
        f"{data['source']}: {images['train']:,} training and {images['test']:,} test images, "
        f"{len(data['classes'])} classes; {data['duplicates']['train_and_test']} images stand in both splits. "
        f"sha256 of pixels, labels and class names: `{data['sha256']}`."
    ]
    if split == "validation":
        paragraphs.append(
            "All figures here are of images held out of the training split; the test images were not looked at."
        )
    return paragraphs


def _training(made: Record) -> list[str]:
    how = "On the labels alone" if made.method == "teacher" else f"By the method `{made.method}`"
    failed = "".join(f" Seed {seed} failed: {why}." for seed, why in made.failed.items())
    blocks = {name: block for name, block in made.params.items() if isinstance(block, Mapping)}
    rows = [[f"`{name}.{key}`", str(value)] for name, block in blocks.items() for key, value in block.items()]
    return [
        f"{how}, with SGD, seeds {_list(made.seeds)}; the weights are the last epoch's.{failed}",
        _table(["parameter", "value"], rows),
    ]


def _results(exported: Mapping[str, Any], measured: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> list[str]:
    seeds = measured["seeds"]
    mine = next(seed for seed in seeds if seed["seed"] == exported["seed"])
    rows = []
    for key, (name, factor, decimals) in MEASURES.items():
        if key not in mine:
            continue
        all_seeds = summarise([factor * seed[key] for seed in seeds])
        line = [name, f"{factor * mine[key]:.{decimals}f}", _mean(all_seeds, decimals), _interval(all_seeds, decimals)]
        if teacher is not None:
            of_teacher = teacher["seeds"][0].get(key)
            line.append("" if of_teacher is None else f"{factor * of_teacher:.{decimals}f}")
        rows.append(line)
    head = ["", f"this one (seed {exported['seed']})", f"all seeds (n = {len(seeds)})", "95 % interval"]
    return [
        _table(head if teacher is None else [*head, "teacher"], rows),
        "All seeds: mean ± standard deviation; the interval is that of the mean. Calibration error: 15 equal bins of "
        "the confidence.",
        f"Held against PyTorch on all {exported['images']:,} test images: {exported['other_class']} with another "
        f"class, probabilities at most {exported['max_difference']:.1e} apart.",
    ]


def _mean(value: Summary, decimals: int) -> str:
    mean = f"{value.mean:.{decimals}f}"
    return mean if value.std is None else f"{mean} ± {value.std:.{decimals}f}"


def _interval(value: Summary, decimals: int) -> str:
    return "" if value.half_width is None else f"± {value.half_width:.{decimals}f}"


def _limits(exported: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    return [
        "Made to compare methods of distillation, and to be looked at, timed and built upon. It was measured on images "
        f"like those it was trained on ({data['source']}), and on nothing else.",
        f"It knows {len(exported['classes'])} classes and answers with one of them whatever it is shown, a blank image "
        "too; a high probability does not say that the image is of its kind. Robustness to noise, other cameras and "
        "adversarial inputs was not measured. Do not decide about people with it.",
    ]


def _origin(exported: Mapping[str, Any], made: Record) -> list[str]:
    rows = [
        ["model.onnx, sha256", f"`{exported['onnx_sha256']}`"],
        ["weights, sha256", f"`{exported['weights_sha256']}`"],
        ["teacher's weights, sha256", f"`{made.teacher_sha256}`"],
        ["data as trained on, sha256", f"`{made.data_sha256}`"],
        ["trained with", ", ".join(f"{name} {made.environment[name]}" for name in ("python", "torch", "numpy"))],
        ["exported with", ", ".join(f"{name} {version}" for name, version in exported["versions"].items())],
    ]
    return [_table(["", ""], [row for row in rows if row[1] != "`None`"])]


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
