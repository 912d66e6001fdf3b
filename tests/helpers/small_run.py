"""Training runs of a second: a few digits, small networks, an untrained teacher, through the project's own builder."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from conftest import ROOT

from tripletkd import methods, models
from tripletkd.config.load import load
from tripletkd.data import sources
from tripletkd.data.batches import DeviceData, Inputs
from tripletkd.data.dataset import Dataset
from tripletkd.training.checkpoint import Checkpoint
from tripletkd.training.compute import Compute
from tripletkd.training.identity import RunIdentity, described
from tripletkd.training.job import Job, build_trainer
from tripletkd.training.loop import TrainResult, fit
from tripletkd.training.optim import SGD, MultiStep, Recipe
from tripletkd.training.trainer import Loss, Teacher, Trainer

CPU = torch.device("cpu")
PARAMS = load(ROOT, ["suite=digits"]).for_suite("digits").methods
SHORT = Recipe(  # five steps an epoch of 120 images
    epochs=6,
    batch_size=25,
    optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=1e-3),
    schedule=MultiStep(decay_epochs=(4,), decay_factor=0.1),
)
FUSED = Compute(CPU, torch.float64, fuse_seeds=True)
PLAIN = ("paper_teacher_quarter", "paper_student_quarter")
NORMED = ("paper_teacher_quarter", "paper_teacher_quarter")  # a student with batch norm and dropout
RESNETS = ("resnet14", "resnet8")
AUGMENTED = Inputs((0.3,), (0.38,), crop_padding=1, flip=True)


def with_lr(recipe: Recipe, lr: float, **changes: Any) -> Recipe:
    """The recipe at another learning rate."""
    return replace(recipe, optimizer=SGD(lr=lr, momentum=0.9, weight_decay=1e-3), **changes)


@dataclass(frozen=True)
class Small:
    """What is trained on what, with defaults that suit most tests."""

    method: str = "kd_triplet"
    networks: tuple[str, str] = PLAIN
    recipe: Recipe = SHORT
    inputs: Inputs = AUGMENTED
    compute: Compute = FUSED
    params: Any = None  # of the method; params.yaml's where it is None
    resident: bool = True  # whether the images lie on the device

    def job(self, seeds: list[int]) -> Job:
        """The job that a stage would make of it."""
        params = self.params or PARAMS[self.method]
        names = {"suite": "small", "split": "test", "name": self.method, "method": self.method}
        blocks = {"params": described(params), "recipe": described(self.recipe), "inputs": {}}
        rest = {"precision": "float64", "deterministic": True, "evaluate_every": 1, "data_sha256": "none"}
        made: dict[str, Any] = names | blocks | rest
        identity = RunIdentity(**made, network=self.networks[1], teacher_sha256=None)
        return Job(identity, params, self.recipe, seeds, self.networks[0])

    def trainer(self, dataset: Dataset, seeds: list[int], loss: Loss | None = None) -> Trainer:
        """Its trainer; loss: in the place of the method's."""
        data = DeviceData.load(dataset, self.inputs, self.compute.device, self.compute.dtype, self.resident)
        teacher = Teacher(models.build(self.networks[0], dataset.image_shape, len(dataset.classes), 1), data)
        trainer = build_trainer(self.job(seeds), seeds, data, self.compute, teacher)
        if loss:
            trainer.objective = replace(trainer.objective, loss=loss)
        return trainer

    def fit(
        self,
        seeds: list[int],
        dataset: Dataset | None = None,
        checkpoint: Checkpoint | None = None,
        loss: Loss | None = None,
    ) -> TrainResult:
        """Train it to the end."""
        return fit(self.trainer(dataset or digits(), seeds, loss), checkpoint=checkpoint)


def digits() -> Dataset:
    """120 training and 120 test images."""
    return sources.digits().limited(12)


def every_method() -> list[str]:
    """Those that params.yaml has a block for."""
    return [name for name in methods.names() if name in PARAMS]


def assert_same_bits(first: TrainResult, second: TrainResult) -> None:
    """History and weights of every seed."""
    assert first.history == second.history
    for seed, network in first.networks.items():
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, second.networks[seed].state_dict()[name]), (seed, name)
