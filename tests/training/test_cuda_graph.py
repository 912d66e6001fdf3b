"""A step as a CUDA graph: it trains to the same bits as the step itself.

On a machine without a GPU a recording stands for the graph, and keeps its rules: fixed addresses, frozen Python
numbers, nothing that waits for the device or comes from the host.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from small_run import NORMED, PLAIN, RESNETS, SHORT, Small, assert_same_bits, digits, every_method, with_lr
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tripletkd.data.batches import Plan
from tripletkd.training.compute import Compute
from tripletkd.training.cuda_graph import Captured
from tripletkd.training.loop import TrainResult
from tripletkd.training.optim import MultiStep

RECIPE = with_lr(SHORT, 0.01, epochs=4, schedule=MultiStep(decay_epochs=(2,), decay_factor=0.1))


FROM_HOST = ("aten.lift_fresh", "aten._local_scalar_dense", "aten.nonzero", "aten._pin_memory")


class Graph(TorchDispatchMode):
    """What CUDAGraph is to a GPU: a list of kernels with the addresses they read and write, replayed on order.

    A capture computes nothing: what it changed in place is put back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(function).startswith(FROM_HOST), function
        for value, argument in zip(args, function._schema.arguments, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name in ("running_mean", "running_var"):  # of which batch norm's schema is silent
                self.before += [(tensor, tensor.clone()) for tensor in tree_leaves(value) if tensor is not None]
        outputs = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def end(self) -> None:
        for tensor, content in reversed(self.before):
            tensor.copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, outputs in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Graphs on the CPU in the place of PyTorch's; all that are captured."""
    captured: list[Graph] = []

    @contextmanager
    def graph(mode: Graph, pool: Any, stream: Any) -> Iterator[None]:
        with mode:
            yield
        mode.end()
        captured.append(mode)

    fakes: dict[str, Any] = {"graph": graph, "CUDAGraph": Graph, "Stream": MagicMock, "current_stream": MagicMock}
    fakes |= {"stream": nullcontext, "graph_pool_handle": lambda: None}
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return captured


def fit(
    method: str, networks: tuple[str, str], captured: bool, device: str = "cpu", fused: bool = True, host: bool = False
) -> TrainResult:
    """Four epochs of 120 augmented digits, in batches of 25 and one of 20; the learning rate falls."""
    compute = Compute(torch.device(device), fuse_seeds=fused, cuda_graph=captured)
    return Small(method, networks, RECIPE, compute=compute, resident=not host).fit([1, 2])


CASES = [
    ("triplet", PLAIN, True),
    ("scratch", NORMED, True),  # dropout and batch norm
    ("dkd", RESNETS, False),  # a weight that grows with the epoch
    ("crd", RESNETS, True),  # adapters, and what they remember
]


@pytest.mark.parametrize(("method", "networks", "fused"), CASES)
def test_a_captured_run_gives_the_same_bits(
    method: str, networks: tuple[str, str], fused: bool, graphs: list[Graph]
) -> None:
    """Also of images that come from the host."""
    eager = fit(method, networks, captured=False, fused=fused)
    assert not graphs
    assert_same_bits(fit(method, networks, captured=True, fused=fused, host=method == "triplet"), eager)
    assert len(graphs) == 2  # one for either size of a batch


@pytest.mark.parametrize("method", every_method())
def test_no_step_waits_for_the_device_or_copies_from_the_host(method: str) -> None:
    trainer = Small(method, NORMED, RECIPE).trainer(digits(), [1, 2])
    trainer.begin_epoch(1)
    batch = next(trainer.data.train.batches(trainer.plan(1), 20))
    with Graph():
        terms = trainer.step(batch)
    assert {value.shape for value in terms.values()} == {(2,)}
    with Graph(), pytest.raises(AssertionError):  # that it would be noticed
        torch.tensor([1.0, 2.0, 3.0])


def test_a_number_frozen_in_a_graph_is_noticed(graphs: list[Graph]) -> None:
    """That the stand-in keeps a graph's rules: a step that counts in Python does not count when replayed."""
    count, weight = [0.0], torch.zeros(1)

    def step(batch: Plan) -> dict[str, Tensor]:
        count[0] += 1
        weight.add_(batch.index.sum())
        return {"count": torch.full((1,), count[0]), "weight": weight.clone()}

    captured: Callable[[Plan], dict[str, Tensor]] = Captured(step)
    found = [captured(Plan(torch.tensor([[[n]]]))) for n in (1, 2, 3, 4)]
    assert [terms["weight"].item() for terms in found] == [1, 3, 6, 10]
    assert [terms["count"].item() for terms in found] == [1, 2, 2, 2]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # cuDNN warns of each algorithm that it tries in vain
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("method", "networks", "fused"), [*CASES, *((m, RESNETS, True) for m in every_method())])
def test_a_cuda_graph_gives_the_same_bits(
    method: str, networks: tuple[str, str], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error")
    try:
        runs = [fit(method, networks, captured, "cuda", fused) for captured in (False, True, True)]
        runs += [fit(method, networks, captured, "cuda", fused, host=True) for captured in (False, True)]
    finally:
        torch.set_deterministic_debug_mode("default")
    for again in runs[1:]:
        assert_same_bits(again, runs[0])
