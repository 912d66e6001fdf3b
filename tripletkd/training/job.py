"""What is to be trained, and the one place that makes a trainer of it."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tripletkd import methods, models
from tripletkd.data.batches import DeviceData
from tripletkd.provenance import fingerprint, versions
from tripletkd.streams import torch_seed
from tripletkd.training.compute import Compute
from tripletkd.training.optim import Recipe
from tripletkd.training.trainer import Objective, Teacher, Trainer


@dataclass(frozen=True)
class RunKey:
    """Names a run: its place below runs/, and a line of a table."""

    suite: str
    split: str  # on which it is measured, and which it has not seen
    name: str  # "teacher", the method, or "ablations/<ablation>/<variant>"

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True)
class Conditions:
    """Holds what the jobs of one suite and split have in common, beside their networks and methods."""

    inputs: dict[str, Any]  # of the suite, as the record has them
    precision: str
    deterministic: bool
    evaluate_every: int
    data_sha256: str
    teacher_sha256: str | None = None
    code: str = ""  # sha256 of what computes weights and history


@dataclass(frozen=True)
class Job:
    """Describes a network to be trained by a method from several seeds: all that its weights and history depend on."""

    key: RunKey
    network: str
    method: str  # of tripletkd.methods
    params: Any  # the method's Params
    recipe: Recipe
    seeds: Sequence[int]
    conditions: Conditions

    def described_params(self) -> dict[str, Any]:
        """Collect the blocks of params.yaml that make the run, for its record."""
        own = {} if self.key.name == "teacher" else {"method": asdict(self.params)}
        common = {"inputs": self.conditions.inputs, "evaluate_every": self.conditions.evaluate_every}
        return own | {"recipe": asdict(self.recipe)} | common

    def fingerprint(self, seed: int) -> str:
        """Hash all that a seed's files should depend on: not the device, nor what else is trained beside it."""
        described = [self.network, self.method, asdict(self.params), asdict(self.recipe), asdict(self.conditions)]
        return fingerprint(described, seed, versions("torch", "numpy"))

    def group_fingerprint(self, seeds: Sequence[int]) -> str:
        """Hash what the checkpoint of several seeds depends on."""
        return fingerprint([self.fingerprint(seed) for seed in seeds])


def build_trainer(
    job: Job, seeds: Sequence[int], data: DeviceData, compute: Compute, teacher: Teacher | None = None
) -> Trainer:
    """Make the trainer of a job for some of its seeds, every network in its initial state.

    Args:
        job: what is to be trained.
        seeds: of this group; each is initialised and fed alike, whichever others there are.
        data: on the device of `compute`.
        compute: where and how.
        teacher: may be None for a method that needs none.

    Raises:
        UserError: if the network or the method does not fit the images.
    """
    method = methods.load(job.method)
    shape, classes = data.dataset.image_shape, len(data.dataset.classes)
    students = {seed: models.build(job.network, shape, classes, seed) for seed in seeds}
    objective = Objective(
        loss=partial(method.loss, params=job.params),
        needs=methods.needs(method, job.params),
        contrasts=methods.contrasts(method, job.params),
        teacher=teacher,
        adapters=_adapters(job, students, data, teacher),
    )
    return Trainer(students, objective, job.recipe, data, compute)


def _adapters(
    job: Job, students: dict[int, nn.Module], data: DeviceData, teacher: Teacher | None
) -> list[nn.Module] | None:
    """Make what the method trains beside the students, for the shapes of the two networks; drawn from each seed."""
    method = methods.load(job.method)
    if not hasattr(method, "adapters"):
        return None
    assert teacher is not None
    height, width, channels = data.dataset.image_shape
    images = torch.zeros(2, channels, height, width, device="meta")  # shapes are all that is wanted
    first = next(iter(students.values()))
    outputs = [copy.deepcopy(network).float().to("meta").eval()(images) for network in (first, teacher.network)]
    images_known = {"images": len(data.train)} if "index" in methods.needs(method, job.params) else {}
    make = partial(method.adapters, *outputs, job.params, **images_known)
    return [models.seeded(torch_seed(seed, "adapters"), make) for seed in students]
