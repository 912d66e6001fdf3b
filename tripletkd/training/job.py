"""What is to be trained, and the one place that makes a trainer of it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from tripletkd import methods, models
from tripletkd.code_hash import Definition, definition_of
from tripletkd.data.batches import DeviceData
from tripletkd.provenance import fingerprint, versions
from tripletkd.streams import torch_seed
from tripletkd.training import mixup
from tripletkd.training.compute import Compute
from tripletkd.training.identity import RunIdentity, as_block, code_of
from tripletkd.training.initial_weights import start_from
from tripletkd.training.optim import SGD, MultiStep, Recipe
from tripletkd.training.trainer import Objective, Teacher, Trainer

# Of a network that is taken as it is
NO_TRAINING = Recipe(0, 1, SGD(lr=1, momentum=0, weight_decay=0), MultiStep(decay_epochs=(), decay_factor=1))
# What makes inputs of photographs; it counts for no run on images of one size
PHOTOGRAPHS = [
    Definition("tripletkd.data.photograph_batches", "load"),
    Definition("tripletkd.config.schema", "SuiteInputs"),
]


@dataclass(frozen=True)
class Job:
    """Describes a network to be trained by a method from several seeds.

    Attributes:
        identity: All that the weights and the history depend on, beside the seed and the code.
        params: The method's Params.
        recipe: How the network is trained.
        seeds: Of initial weights, order of images and negatives.
        teacher_network: The teacher's network, whose code counts too; None where there is no teacher.
    """

    identity: RunIdentity
    params: methods.MethodParams
    recipe: Recipe
    seeds: Sequence[int]
    teacher_network: str | None = None

    @cached_property
    def code(self) -> str:
        """Hash what computes the weights and the history, as it is now."""
        networks = [models.definition(name) for name in (self.identity.network, self.teacher_network) if name]
        chosen = [type(self.recipe.optimizer), type(self.recipe.schedule), *(network for network, *_ in networks)]
        how_it_starts = [start_from] if self.identity.initial_sha256 else []
        how_seen = PHOTOGRAPHS if "size" in self.identity.inputs else []
        code = code_of(self.identity.method, [*map(definition_of, [*chosen, *how_it_starts]), *how_seen])
        return fingerprint(code, [arguments for _, *arguments in networks])

    def fingerprint(self, seed: int) -> str:
        """Hash all that a seed's files should depend on: not the device, nor what else is trained beside it."""
        return fingerprint(as_block(self.identity), self.code, self.versions, seed)

    @property
    def versions(self) -> dict[str, str]:
        """Look up the versions of the packages that compute it, those that its networks or its views come from too."""
        networks = [self.identity.network, self.teacher_network or ""]
        named = {package for package in ("timm", "torchvision") if any(n.startswith(f"{package}/") for n in networks)}
        seen = {"pillow", "torchvision"} if "size" in self.identity.inputs else set()
        return versions("torch", "numpy", *sorted(named | seen))

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
    method = methods.load(job.identity.method)
    shape, classes = data.dataset.image_shape, len(data.dataset.classes)
    students = {seed: models.build(job.identity.network, shape, classes, seed) for seed in seeds}
    mixup.check(job.identity.method, job.params, job.recipe)
    draw = partial(mixup.draw, recipe=job.recipe) if job.recipe.mixes else None
    if draw is None and hasattr(method, "draw"):
        draw = partial(method.draw, params=job.params)
    objective = Objective(
        loss=partial(method.loss, params=job.params),
        needs=methods.needs(method, job.params),
        draw=draw,
        teacher=teacher,
        adapters=_adapters(job, students, data, teacher),
        method=f"method {job.identity.method}",
    )
    return Trainer(students, objective, job.recipe, data, compute)


def _adapters(
    job: Job, students: dict[int, nn.Module], data: DeviceData, teacher: Teacher | None
) -> list[nn.Module] | None:
    """Make what the method trains beside the students, for the shapes of the two networks; drawn from each seed."""
    method = methods.load(job.identity.method)
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
