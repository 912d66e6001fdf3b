"""A network leaves the house: one ONNX file with its preprocessing inside, held against PyTorch, and timed."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tripletkd.data.batches import Inputs, normalise
from tripletkd.data.dataset import Split
from tripletkd.data.photograph_batches import PhotographInputs
from tripletkd.data.photographs import PhotographSplit, View
from tripletkd.errors import UserError

OPSET = 18  # what PyTorch's exporter writes without converting; onnxruntime reads it since 1.14
TOLERANCE = 1e-4  # of a probability: far above float32's rounding, far below what a wrong operator does
TIE = 1e-6  # two probabilities this close are equal in float32: which class wins is rounding, on any machine
BATCH = 256  # images a call when a whole split is checked

WARM_UP_CALLS, TIMED_CALLS, TIMED_SECONDS = 5, 30, 1.0  # at least so many calls, and for at least that long


class Classifier(nn.Module):
    """Turns images into probabilities: normalisation as in training, the network in eval mode, softmax.

    Photographs are resized and cropped first, as evaluation sees them but for rounding: there pixels are whole numbers.
    """

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        """Put a network, on the processor, behind the preprocessing that it was trained with."""
        super().__init__()
        self.network, self.inputs = network, inputs
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, uint8 [N, H, W, C]; returns float32 [N, classes], rows that sum to 1."""
        if isinstance(self.inputs, PhotographInputs):
            images = seen(images, self.inputs.view)
        mean, std = self.inputs.statistics(images.device, torch.float32)
        probabilities: Tensor = self.network(normalise(images, mean, std)).logits.softmax(1)
        return probabilities


def seen(images: Tensor, view: View) -> Tensor:
    """Resize the shorter side and crop the center, as torchvision does with an image.

    Args:
        images: uint8 [N, H, W, C].
        view: To which sizes.

    Returns:
        float32 [N, size, size, C], not rounded.
    """
    height, width = images.shape[1:3]
    short = torch.sym_min(height, width)
    size: list[Any] = [side * view.resize // short for side in (height, width)]
    resized = F.interpolate(images.movedim(-1, 1).float(), size, mode="bilinear", antialias=True)
    for dim, side in enumerate(size, start=2):
        over = side - view.size
        first = (over + over // 2 % 2) // 2  # half of it, to the even number
        resized = resized.index_select(dim, first + torch.arange(view.size))  # whose size the exporter knows
    return resized.movedim(1, -1)


def samples(split: Split, count: int) -> NDArray[np.uint8]:
    """Take the first images of a split as a classifier takes them, [count, H, W, C]: of photographs one, whole."""
    return next(_whole(split)) if isinstance(split, PhotographSplit) else split.take(slice(count))


def _whole(split: Split) -> Iterator[NDArray[np.uint8]]:
    """Yield a split's images as a classifier takes them: [BATCH, H, W, C], or [1, H, W, C] of a photograph."""
    if not isinstance(split, PhotographSplit):
        yield from split.chunks(BATCH)
        return
    for place in range(len(split.labels)) if split.places is None else split.places.tolist():
        yield np.array(split.stored.open(place))[None]


def to_onnx(classifier: Classifier, image_shape: Sequence[int], classes: Sequence[str]) -> bytes:
    """Make an ONNX file of a classifier: input `images`, output `probabilities`, their number free.

    Photographs of one call have one size, which is free too.

    Args:
        classifier: What to export.
        image_shape: Height, width and channels of an image.
        classes: The names of the classes, which go along as JSON under the metadata key `classes`.

    Returns:
        The file's contents; equal weights give equal bytes.

    Raises:
        UserError: If PyTorch's exporter cannot write the network.
    """
    free, shape = {0: torch.export.Dim("N")}, list(image_shape)
    if isinstance(classifier.inputs, PhotographInputs):
        free |= {1: torch.export.Dim("H"), 2: torch.export.Dim("W")}
        shape[1] += 1  # no square, from which nothing is to be concluded
    try:
        program = torch.onnx.export(
            classifier,
            (torch.zeros(2, *shape, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=(free,),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"PyTorch {torch.__version__} cannot write this network as ONNX: {cause}") from None
    assert program is not None
    model = program.model_proto
    graph = model.graph
    # The exporter's notes are paths and lines of the source, which outweigh a small network.
    graph.ClearField("value_info")
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    model.metadata_props.add(key="classes", value=json.dumps(list(classes)))
    contents: bytes = model.SerializeToString(deterministic=True)
    return contents


@dataclass(frozen=True)
class Check:
    """What comes of holding an ONNX model against the PyTorch network that it was made from, on some images."""

    images: int
    max_difference: float  # the largest absolute difference of a probability
    other_class: int  # images with another predicted class, ties aside
    test_accuracy: float | None  # of the ONNX model; None where the images were made up


@torch.no_grad()
def verify(model: bytes, classifier: Classifier, split: Split) -> Check:
    """Hold an ONNX model against the network that it was made from.

    Args:
        model: The ONNX file's contents.
        classifier: The network with its preprocessing.
        split: The images to compare on.

    Returns:
        How far apart they are, and the ONNX model's accuracy.

    Raises:
        UserError: If they disagree on a single image's class, or on a probability by more than TOLERANCE.
    """
    call = _open(model)
    expected = np.concatenate([classifier(torch.from_numpy(images)).numpy() for images in _whole(split)])
    found = np.concatenate([call(images) for images in _whole(split)])
    check = compare(expected, found, split.labels)
    if check.other_class or not check.max_difference <= TOLERANCE:
        raise UserError(
            f"the ONNX model is not the network: another class than PyTorch's for {check.other_class} of "
            f"{check.images} images, probabilities up to {check.max_difference:.2g} apart where {TOLERANCE:g} is "
            "allowed; nothing was written. Other versions of torch, onnxscript or onnxruntime may agree"
        )
    return check


def compare(expected: NDArray[np.float32], found: NDArray[np.float32], labels: NDArray[np.int64]) -> Check:
    """Compare probabilities [N, classes] by PyTorch with those by ONNX, and these with the labels [N]."""
    predicted = found.argmax(1)
    behind = expected.max(1) - expected[np.arange(len(predicted)), predicted]  # 0 where the class is the same
    return Check(
        images=len(labels),
        max_difference=float(np.abs(expected - found).max()),
        other_class=int((behind > TIE).sum()),
        test_accuracy=float((predicted == labels).mean()),
    )


def latency(models: Mapping[str, bytes], images: NDArray[np.uint8], batch: int) -> dict[str, float]:
    """Measure how long onnxruntime takes for a call, on one thread of the processor.

    The models are called in turn, so that what else the machine does falls on all of them alike.

    Args:
        models: ONNX files' contents by name.
        images: Images [N, H, W, C] to take a batch from.
        batch: How many images a call has.

    Returns:
        The median of each model's calls, in milliseconds.
    """
    calls = {name: _open(model, threads=1) for name, model in models.items()}
    together = np.resize(images, (batch, *images.shape[1:]))  # repeats them if there are fewer
    times: dict[str, list[float]] = {name: [] for name in models}
    begun, rounds = time.perf_counter(), 0
    while rounds < WARM_UP_CALLS + TIMED_CALLS or time.perf_counter() - begun < TIMED_SECONDS:
        for name, call in calls.items():
            started = time.perf_counter()
            call(together)
            times[name].append(1000 * (time.perf_counter() - started))
        rounds += 1
    return {name: median(taken[WARM_UP_CALLS:]) for name, taken in times.items()}


def _open(model: bytes, threads: int = 0) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Make a function of a model, on the processor (0 threads: as many as it likes); UserError if it cannot be read."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise UserError(f"onnxruntime {onnxruntime.__version__} cannot read the exported model: {error}") from None
    return lambda images: session.run(None, {"images": images})[0]
