"""A training step as a CUDA graph: its kernels launched by one call, not by Python one after the other."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from tripletkd.data.batches import Plan
from tripletkd.training.trainer import Terms


class Recording(NamedTuple):
    """Holds a graph, where it reads the batch, and where it leaves the terms."""

    graph: torch.cuda.CUDAGraph
    batch: Plan
    terms: Terms


class Captured:
    """`step`, captured at the second batch of each size and replayed from then on: the same kernels, the same numbers.

    The first batch of a size runs as ever, for libraries choose their algorithms and allocate what they need at a
    first call, which a capture does not allow. A capture freezes every number of Python and every address: what
    changes from step to step must be a tensor that is changed in place. Nor may the step make a tensor from such a
    number, or wait for the device to read one.
    """

    def __init__(self, step: Callable[[Plan], Terms]) -> None:
        self.step = step
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.recordings: dict[torch.Size, Recording | None] = {}

    def __call__(self, batch: Plan) -> Terms:
        """Do the step on a batch; returns its terms."""
        size = batch.index.shape
        if size not in self.recordings:
            self.recordings[size] = None
            return self._warm_up(batch)
        recording = self.recordings[size] or self._capture(batch)
        self.recordings[size] = recording
        recording.batch.copy_(batch)
        recording.graph.replay()
        return {name: value.clone() for name, value in recording.terms.items()}  # the next replay writes there again

    def _warm_up(self, batch: Plan) -> Terms:
        """Do the step on the stream of the captures, as PyTorch's notes on CUDA graphs ask for."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            terms = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return terms

    def _capture(self, batch: Plan) -> Recording:
        """Record the step; nothing is computed. The graphs share their memory: only one runs at a time."""
        graph, batch = torch.cuda.CUDAGraph(), batch.map(torch.clone)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            terms = self.step(batch)
        return Recording(graph, batch, terms)
