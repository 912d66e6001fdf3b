"""Weights that somebody else trained: read as tensors and nothing else, and fitted to a network of ours."""

import pickle  # nosec B403  # its exceptions
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, and of a wrapper's attribute
COUNTER = "num_batches_tracked"  # of batch norm; PyTorch before 0.4.1 had none
MALFORMED = (ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError)  # as a pickle may end
WANTS_MORE = re.compile(r"Unsupported (global|class).*|Trying to call reduce for .*|Can only (build|create new) .*")
SHOWN = 3  # keys in a message

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """Holds weights by the names of our network.

    Attributes:
        tensors: By name; without the head's where `new_head`.
        new_head: Whether the last layer is left to be drawn from each seed.
        mended: What was changed, in words.
    """

    tensors: Tensors
    new_head: bool
    mended: Sequence[str]


@dataclass(frozen=True)
class Fit:
    """Says how a file's weights become a network's.

    Attributes:
        network: With the number of classes of the data set, in the precision that the weights get.
        name: Of the network, for messages.
        selected: The file's classes that are those of the data set, in its order; None: they are the same.
        is_trained: Whether the network is trained on: only then may it get a new head.
        temperature: By which the logits are divided.
    """

    network: nn.Module
    name: str
    selected: Sequence[int] | None = None
    is_trained: bool = False
    temperature: float = 1.0


def read(path: Path, source: str) -> tuple[Tensors, list[str]]:
    """Read the state dict in a file of safetensors or of PyTorch, of either of its formats.

    Args:
        path: The file.
        source: What to call it.

    Returns:
        The tensors by the file's names, and what is to be said of where they were found.

    Raises:
        UserError: If it is neither, is damaged, or holds more than tensors, which would be run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # after the length of the header, the header
        try:
            return load_file(path), []
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{source}: cannot be read as safetensors ({error}); expected a whole file") from None
    try:
        with warnings.catch_warnings():  # of the pickle's protocol
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, BadZipFile, RuntimeError, OSError, EOFError, *MALFORMED) as error:
        text = str(error)
        if wanted := WANTS_MORE.search(text):
            raise UserError(
                f"{source}: holds more than tensors ({wanted[0][:150]}), and to load that would run its code; expected "
                "the tensors alone: where the file is trusted, save them with torch.save(network.state_dict(), FILE)"
            ) from None
        reason = text.splitlines()[0][:150] if text else type(error).__name__
        raise UserError(
            f"{source}: cannot be read ({reason}); expected a file of safetensors, or of torch.save"
        ) from None
    return _state_dict(found, source)


def _state_dict(found: object, source: str) -> tuple[Tensors, list[str]]:
    """Find the tensors by name: what the file holds, or one of the blocks in it."""
    if _is_state_dict(found):
        return dict(found), []  # type: ignore[call-overload]
    blocks = {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
    named = {key: value for key, value in blocks.items() if _is_state_dict(value)}
    if len(named) != 1:
        held = f"of {', '.join(sorted(named)[:SHOWN])}" if named else f"in {type(found).__name__} {_first(blocks)}"
        raise UserError(
            f"{source}: found {'several state dicts' if named else 'no state dict'} {held}; expected one, of tensors "
            "by their names: save the one that is meant with torch.save(network.state_dict(), FILE)"
        )
    [(key, state)] = named.items()
    return dict(state), [f"taken from the file's {key}"]


def _is_state_dict(found: object) -> bool:
    return (
        isinstance(found, Mapping)
        and len(found) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())
    )


def fit(found: Tensors, source: str, to: Fit) -> Fitted:
    """Give a file's tensors the names and the form of a network's, as far as that is certain.

    Args:
        found: By the names of the file.
        source: What to call the file.
        to: The network, and what may be changed.

    Raises:
        UserError: If they are not those of the network. The message names the first keys of either side.
    """
    ours, head, mended = _names(to.network, found), head_of(to.network), list[str]()
    expected = {theirs: to.network.state_dict()[name] for theirs, name in ours.items()}
    found, stripped = _without_prefix(found, expected)
    if stripped:
        mended.append(f"{stripped!r} taken from before every key")
    theirs_of_head = [theirs for theirs, name in ours.items() if name.rpartition(".")[0] == head]
    if to.selected is not None:
        found = found | _rows(found, theirs_of_head, to.selected, source)
        mended.append(f"of the last layer the rows {', '.join(map(str, to.selected))}")
    [weight] = [theirs for theirs in theirs_of_head if theirs.endswith("weight")]
    has, wants = _outputs(found, weight), len(expected[weight])
    if new_head := has != wants:
        if not to.is_trained:
            raise UserError(
                f"{source}: found {has} classes in {weight}, expected {wants}: say in weights.classes which of the "
                "file's classes are the data set's, or give a recipe, by which a new last layer is trained"
            )
        mended.append(f"a new last layer of {wants} classes, drawn from each seed: the file has {has}")
        found = {key: tensor for key, tensor in found.items() if key not in theirs_of_head}
        expected = {key: tensor for key, tensor in expected.items() if key not in theirs_of_head}
    if counters := [key for key in expected if key.endswith(COUNTER) and key not in found]:
        mended.append(f"{len(counters)} counters of batch norm set to 0")
        found = found | {key: torch.zeros_like(expected[key]) for key in counters}
    _refuse_others(found, expected, source, to.name)
    if to.temperature != 1:
        found = found | {
            key: found[key].to(expected[key].dtype) / to.temperature for key in theirs_of_head if key in found
        }
        mended.append(f"logits divided by {to.temperature:g}: the last layer's numbers are")
    tensors = {ours[key]: found[key].to(expected[key].dtype).contiguous() for key in expected}
    if kinds := {str(found[key].dtype) for key in expected} - {str(tensor.dtype) for tensor in tensors.values()}:
        mended.append(f"computed with as {next(iter(tensors.values())).dtype}, stored as {', '.join(sorted(kinds))}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{source}: {name} holds numbers that are not finite; expected another file")
    return Fitted(tensors, new_head, mended)


def head_of(network: nn.Module) -> str:
    """Name the linear layer that makes the logits: the last one that a network has, unless it says another."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return str(getattr(network, "head_name", linear[-1]))


def check_temperature(
    to: Fit, undivided: Tensors, divided: Tensors, image_shape: tuple[int, int, int], key: str
) -> None:
    """Compare the logits of a network with those that it has when its last layer is divided by a temperature.

    Args:
        to: The network, and the temperature.
        undivided: Its weights.
        divided: Those with a divided layer.
        image_shape: Height, width and channels.
        key: Of the temperature in params.yaml.

    Raises:
        UserError: If the logits are not divided: the layer is not the one that makes them.
    """
    height, width, channels = image_shape
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    before, after = (_logits(to.network, tensors, images) for tensors in (undivided, divided))
    if not torch.allclose(after * to.temperature, before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        raise UserError(
            f"{key}: found {to.temperature:g}, but to divide {head_of(to.network)} does not divide the logits of "
            f"{to.name}; expected 1, or a network whose attribute head_name is its linear layer that makes the logits"
        )


@torch.no_grad()
def _logits(network: nn.Module, tensors: Tensors, images: Tensor) -> Tensor:
    network.load_state_dict(tensors)
    logits: Tensor = network.eval()(images).logits
    return logits


def _names(network: nn.Module, found: Tensors) -> dict[str, str]:
    """Give our names by those of the file: a wrapped network's own, or ours where the file was written here."""
    ours = list(network.state_dict())
    original = getattr(network, "original_name", str)
    wrapped = {original(name): name for name in ours}
    is_ours = len(set(ours) & set(found)) > len(set(wrapped) & set(found))
    return {name: name for name in ours} if is_ours else wrapped


def _without_prefix(found: Tensors, expected: Mapping[str, Tensor]) -> tuple[Tensors, str]:
    """Take prefixes off that stand before every key of the file and of none of the network's."""
    taken = ""
    while prefix := next((p for p in PREFIXES if _all_have(found, p) and not _all_have(expected, p)), ""):
        found, taken = {key.removeprefix(prefix): tensor for key, tensor in found.items()}, taken + prefix
    return found, taken


def _all_have(keys: Mapping[str, Tensor], prefix: str) -> bool:
    return all(key.startswith(prefix) for key in keys)


def _rows(found: Tensors, head: Sequence[str], classes: Sequence[int], source: str) -> Tensors:
    """Select the rows of the last layer that are of the data set's classes."""
    rows = {key: found[key] for key in head if key in found}
    for key, tensor in rows.items():
        if tensor.dim() == 0 or max(classes) >= len(tensor) or min(classes) < 0:
            raise UserError(
                f"{source}: weights.classes: found {max(classes)}, but {key} is {list(tensor.shape)}; expected numbers "
                "below the first"
            )
    return {key: tensor[list(classes)] for key, tensor in rows.items()}


def _outputs(found: Tensors, key: str) -> int:
    return len(found[key]) if key in found and found[key].dim() else 0


def _refuse_others(found: Tensors, expected: Mapping[str, Tensor], source: str, name: str) -> None:
    lacking, unknown = [key for key in expected if key not in found], [key for key in found if key not in expected]
    if lacking or unknown:
        raise UserError(
            f"{source}: not the weights of {name}. Only the file has {_first(unknown)}; only the network has "
            f"{_first(lacking)}: expected the same keys; name the network that the file is of"
        )
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise UserError(
                f"{source}: {key} is {list(found[key].shape)}, but {list(tensor.shape)} in {name} for the images of "
                "this suite: expected weights for as many channels, and images of that size"
            )


def _first(keys: Mapping[str, object] | Sequence[str]) -> str:
    return (", ".join(list(keys)[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")) or "none"


def by_name(classes: Sequence[int | str], known: Sequence[str], source: str) -> Iterator[int]:
    """Give the numbers of classes that are named.

    Args:
        classes: Numbers, which are returned as they are, and names.
        known: The names of the file's classes; none where nobody knows them.
        source: What to call the file.

    Raises:
        UserError: If a name is not known.
    """
    seen = set[int]()
    for each in classes:
        if isinstance(each, str) and each not in known:
            expected = f"one of {_first(known)}" if known else "numbers from 0 on: the file does not name its classes"
            raise UserError(f"{source}: weights.classes: found {each!r}, expected {expected}")
        number = known.index(each) if isinstance(each, str) else each
        if number in seen:
            raise UserError(f"{source}: weights.classes: found {each!r}, which is a class that stands before it")
        seen.add(number)
        yield number
