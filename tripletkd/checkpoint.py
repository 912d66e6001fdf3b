"""Long runs survive: a file from which an interrupted run goes on, to the same bits."""

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from . import Problem
from .provenance import whole


class Paused(Problem):
    """The run was stopped at a checkpoint; it goes on from there when it is started again."""


@dataclass
class Progress:
    """What of a training run is done: the last whole epoch, the history so far, the seeds that failed and why."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


class Checkpoint:
    """Saves the tensors that training changes, and the progress, between epochs.

    It is written every `minutes`, after `deadline` (of time.monotonic()), and after the first SIGINT or SIGTERM, which
    let the epoch end; the last two then raise Paused. A second signal acts at once. With `keep` the last epoch is saved
    too. Only whole epochs are saved: every random number is a function of seed, epoch and step, so that no generator
    has a state to save. A file whose fingerprint, of all that the run depends on, is another one is not used.
    """

    def __init__(
        self, path: Path, fingerprint: str, minutes: float = 5.0, deadline: float | None = None, keep: bool = False
    ) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.minutes, self.deadline, self.keep = minutes, deadline, keep
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
        """Save if it is time to; raises Paused if it is time to stop and there is something left to do."""
        now = time.monotonic()
        stop = self.signal or ("--max-minutes" if self.deadline is not None and now >= self.deadline else None)
        last = progress.epoch >= epochs
        if (last and self.keep) or (not last and (stop or now - self.saved >= 60 * self.minutes)):
            self.save(tensors, progress)
            if stop:
                raise Paused(
                    f"stopped at epoch {progress.epoch} of {epochs} ({stop}); the same command goes on from {self.path}"
                )

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        from safetensors.torch import save_file

        state = json.dumps({"fingerprint": self.fingerprint, **vars(progress)})
        with whole(self.path) as beside:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, {"progress": state})
        self.saved = time.monotonic()

    def load(self, tensors: Mapping[str, Tensor]) -> Progress:
        """Put the tensors where the file left them; a new Progress if there is no file of this run that can be read."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return Progress()
        try:
            with safe_open(self.path, "pt") as file:
                state = json.loads(file.metadata()["progress"])
                if state.pop("fingerprint") != self.fingerprint:
                    tqdm.write(f"{self.path}: belongs to a run with other inputs; starting anew")
                    return Progress()
                saved = {name: file.get_tensor(name) for name in tensors}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            tqdm.write(f"{self.path}: cannot be read ({error}); starting anew")
            return Progress()
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        failed = {int(seed): why for seed, why in state["failed"].items()}
        tqdm.write(f"{self.path}: going on after epoch {state['epoch']}")
        return Progress(state["epoch"], state["history"], failed)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
