"""Long runs survive: a file from which an interrupted run goes on, to the same bits."""

import hashlib
import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tripletkd.errors import UserError
from tripletkd.files import whole

PROGRESS = "progress"  # a tensor of JSON's bytes: the header, where such things belong, is limited to 100 MB


class Paused(UserError):
    """The run was stopped at a checkpoint; it goes on from there when it is started again."""


@dataclass
class Progress:
    """What of a training run is done: its last whole epoch and its time, the history, which seeds failed and why."""

    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


class Checkpoint:
    """Saves the tensors that training changes, and the progress, between epochs.

    It is written every `minutes`, after `deadline` (of time.monotonic()), and after the first SIGINT or SIGTERM, which
    let the epoch end; the last two then raise Paused. A second signal acts at once. Only whole epochs are saved: every
    random number is a function of seed, epoch and step, so that no generator has a state to save. The last epoch is
    saved too: training that is done is not done again when the process dies before its results are written. A file is
    ignored if its fingerprint, of all that the run depends on, or the hash of its content does not match.
    """

    def __init__(
        self, path: Path, fingerprint: str, minutes: float = 5.0, deadline: float | None = None, more: bool = False
    ) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.minutes, self.deadline, self.more = minutes, deadline, more
        self.saved = time.monotonic()
        self.signal: str | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> "Checkpoint":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore_handlers()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        tqdm.write(f"{self.signal}: stopping at a checkpoint after this epoch; again to stop at once")
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def after_epoch(self, tensors: Mapping[str, Tensor], progress: Progress, epochs: int) -> None:
        """Save if it is time to, or the last epoch; raises Paused if it is time to stop and there is more to train."""
        now = time.monotonic()
        stop = self.signal or ("--max-minutes" if self.deadline is not None and now >= self.deadline else None)
        if progress.epoch == epochs or stop or now - self.saved >= 60 * self.minutes:
            self.save(tensors, progress)
        if stop and (progress.epoch < epochs or self.more):
            raise Paused(
                f"stopped at epoch {progress.epoch} of {epochs} ({stop}); the same command goes on from {self.path}"
            )

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        from safetensors.torch import save

        state = torch.frombuffer(bytearray(json.dumps(vars(progress)).encode()), dtype=torch.uint8)
        content = {PROGRESS: state, **{name: tensor.contiguous() for name, tensor in tensors.items()}}
        with whole(self.path) as beside:
            beside.write_bytes(save(content, {"fingerprint": self.fingerprint, "sha256": _digest(content)}))
        self.saved = time.monotonic()

    def load(self, tensors: Mapping[str, Tensor]) -> Progress:
        """Put the tensors where the file left them; a new Progress if there is no file of this run that can be read."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return Progress()
        try:
            with safe_open(self.path, "pt") as file:
                if file.metadata()["fingerprint"] != self.fingerprint:
                    tqdm.write(f"{self.path}: belongs to a run with other inputs; starting anew")
                    return Progress()
                saved = {name: file.get_tensor(name) for name in (PROGRESS, *tensors)}
                if file.metadata()["sha256"] != _digest(saved):
                    raise ValueError("its bytes are not those that were written")
            state = json.loads(saved[PROGRESS].numpy().tobytes())
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            tqdm.write(f"{self.path}: cannot be read ({error}); starting anew")
            return Progress()
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        failed = {int(seed): why for seed, why in state["failed"].items()}
        tqdm.write(f"{self.path}: going on after epoch {state['epoch']}")
        return Progress(state["epoch"], state["seconds"], state["history"], failed)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save(dict(tensors))).hexdigest()
