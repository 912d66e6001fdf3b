"""Long runs survive: a file from which an interrupted run goes on, to the same bits."""

import hashlib
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import Tensor
from tqdm import tqdm

from tripletkd.errors import Paused
from tripletkd.files import whole

PROGRESS = "progress"  # a tensor of JSON's bytes: the header, where such things belong, is limited to 100 MB


@dataclass
class Progress:
    """Holds what of a training run is done: its last whole epoch and its time, the history, the seeds that failed."""

    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    environments: list[dict[str, object]] = field(default_factory=list)  # of the machines that trained it, in order


@dataclass(frozen=True)
class SavePolicy:
    """Says when a checkpoint is written, and when a run is stopped."""

    minutes: float = 5.0  # between two checkpoints
    deadline: float | None = None  # of time.monotonic(), after which the run is stopped
    more: bool = False  # whether other seeds are trained after these: a stop at the last epoch, too, raises Paused
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)  # that stop it

    def reason_to_stop(self, now: float) -> str | None:
        """Say why to stop at this time of time.monotonic(); None where there is no reason."""
        parent = parent_process()  # of a seed that is trained beside others
        if parent is not None and not parent.is_alive():
            return "the process that started this one is gone"
        return "--max-minutes" if self.deadline is not None and now >= self.deadline else None


class Checkpoint:
    """Saves the tensors that training changes, and the progress, between epochs.

    It is written after an epoch if some minutes have passed, if it was the last one, or if the run is to stop: after
    SIGINT or SIGTERM, after a deadline, or where the process that started this one is gone. A run that is to stop and
    has more to train then raises Paused. A second signal acts at once.

    Only whole epochs are saved: every random number is a function of seed, epoch and step, so no generator has a state
    to save. The last epoch is saved too: where the process dies before its results are written, the training is not
    done again. A file with another fingerprint, or a damaged one, is renamed and left there.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        seeds: Sequence[int] = (),
        environment: Mapping[str, object] | None = None,
        policy: SavePolicy | None = None,
    ) -> None:
        """Describe the file and when it is written.

        Args:
            path: of the file.
            fingerprint: of all that the run depends on; not the machine.
            seeds: that are trained together, for whoever looks for a checkpoint of theirs.
            environment: of this machine; a run that moves from one to another has both in its progress.
            policy: when to write it, and when to stop.
        """
        self.path, self.fingerprint, self.seeds = path, fingerprint, list(seeds)
        self.environment = dict(environment or {})
        self.policy = policy or SavePolicy()
        self.saved = time.monotonic()
        self.signal: str | None = None
        self.handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Checkpoint":
        for number in self.policy.signals:
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
        due, stop = self.decide()
        if progress.epoch == epochs or stop or due:
            self.save(tensors, progress)
        if stop and (progress.epoch < epochs or self.policy.more):
            raise Paused(
                f"stopped at epoch {progress.epoch} of {epochs} ({stop}); the same command goes on from {self.path}"
            )

    def decide(self) -> tuple[bool, str | None]:
        """Say whether it is time to save, and why to stop; None where there is no reason."""
        now = time.monotonic()
        return now - self.saved >= 60 * self.policy.minutes, self.signal or self.policy.reason_to_stop(now)

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Write the file, in the place of an earlier one."""
        from safetensors.torch import save

        state = torch.frombuffer(bytearray(json.dumps(vars(progress)).encode()), dtype=torch.uint8)
        content = {PROGRESS: state, **{name: tensor.contiguous() for name, tensor in tensors.items()}}
        with whole(self.path) as beside:
            beside.write_bytes(save(content, self._header(content)))
        self.saved = time.monotonic()

    def _header(self, content: Mapping[str, Tensor]) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "seeds": json.dumps(self.seeds), "sha256": _digest(content)}

    def load(self, tensors: Mapping[str, Tensor]) -> Progress:
        """Put the tensors where the file left them, and return what is done; nothing, if no file is of this run.

        A file that is not used is moved aside, and its new place is named.
        """
        from safetensors import SafetensorError, safe_open

        anew = Progress(environments=[self.environment])
        if not self.path.exists():
            return anew
        try:
            with safe_open(self.path, "pt") as file:
                if file.metadata()["fingerprint"] != self.fingerprint:
                    self._set_aside("belongs to a run with other inputs")
                    return anew
                saved = {name: file.get_tensor(name) for name in (PROGRESS, *tensors)}
                if file.metadata()["sha256"] != _digest(saved):
                    raise ValueError("its bytes are not those that were written")
            state = json.loads(saved[PROGRESS].numpy().tobytes())
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            self._set_aside(f"cannot be read ({error})")
            return anew
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        failed = {int(seed): why for seed, why in state["failed"].items()}
        tqdm.write(f"{self.path}: going on after epoch {state['epoch']}")
        environments = [*state["environments"]]
        if self.environment not in environments[-1:]:
            environments.append(self.environment)
        return Progress(state["epoch"], state["seconds"], state["history"], failed, environments)

    def _set_aside(self, reason: str) -> None:
        aside = next(path for i in count(1) if not (path := self.path.with_suffix(f".unused-{i}")).exists())
        self.path.replace(aside)
        tqdm.write(f"{self.path}: {reason}; moved to {aside.name}, starting anew")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save(dict(tensors))).hexdigest()


def read_header(path: Path) -> tuple[str, list[int]] | None:
    """Read of which run a checkpoint is, and of which seeds; None if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
        return header["fingerprint"], [int(seed) for seed in json.loads(header["seeds"])]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def is_complete(path: Path, epochs: int) -> bool:
    """Tell whether nothing is left to train after a checkpoint: its last epoch is done, or every seed has failed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.get_tensor(PROGRESS).numpy().tobytes())
            seeds = json.loads(file.metadata()["seeds"])
        return bool(state["epoch"] == epochs or len(state["failed"]) == len(seeds))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return False
