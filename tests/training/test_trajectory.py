"""Sixty steps of training, through the real step, end with the numbers of the authors' public code."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fill, golden, unit_hash
from small_run import CPU
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tripletkd.data.batches import DeviceData, Inputs, Plan
from tripletkd.data.dataset import Dataset, Split
from tripletkd.methods import kd_triplet, scratch, triplet
from tripletkd.models.dropout import Dropout
from tripletkd.models.paper import PaperStudent, PaperTeacher
from tripletkd.training.compute import Compute
from tripletkd.training.optim import SGD, MultiStep, Recipe
from tripletkd.training.trainer import Objective, Teacher, Trainer

TRAJECTORIES = [content for content in golden("runs") if "setup" in content]
STUDENTS = [(content, name) for content in TRAJECTORIES for name, run in content["runs"].items() if "loss" in run]
TEACHERS = [content for content in TRAJECTORIES if "T_teacher" in content["runs"]]
assert TEACHERS and STUDENTS  # pytest skips a test without parameters


def images(count: int, seed: int) -> Split:
    """The reference's images: a pattern by class under noise."""
    i, ch, r, c = torch.meshgrid(*(torch.arange(n) for n in (count, 3, 32, 32)), indexing="ij")
    y = i % 10
    k = ((1 + y % 5) * r + (1 + y // 5) * c + 3 * y + 5 * ch) % 32
    triangle = (k - 16).abs().double() / 8 - 1
    pixels = torch.floor(128 + 48 * triangle + 64 * torch.from_numpy(unit_hash((count, 3, 32, 32), seed)))
    return Split(pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy(), np.arange(count) % 10)


def data_of(setup: dict[str, Any]) -> DeviceData:
    dataset = Dataset(images(setup["N"], 5000), images(setup["M"], 6000), tuple(map(str, range(10))))
    return DeviceData.load(dataset, Inputs(), CPU, torch.float64)


def with_weights(network: nn.Module, params: list[dict[str, Any]], gain: float) -> nn.Module:
    """Weights by the reference's formula; batch norm stays at 1 and 0, dropout is off, as there."""
    network.double()
    with torch.no_grad():
        for spec in params:
            weights = fill(tuple(spec["shape"]), spec["seed"], gain * spec["scale_at_gain_1"])
            network.get_parameter(spec["name"]).copy_(weights)
    for module in network.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    return network


def trainer_of(network: nn.Module, objective: Objective, weight_decay: float, data: DeviceData) -> Trainer:
    optimizer = SGD(lr=0.01, momentum=0.9, weight_decay=weight_decay)
    recipe = Recipe(epochs=1, batch_size=20, optimizer=optimizer, schedule=MultiStep(decay_epochs=(), decay_factor=1.0))
    return Trainer({1: network}, objective, recipe, data, Compute(CPU, torch.float64))


def step_on(trainer: Trainer, *views: Tensor) -> dict[str, float]:
    """One step on the images of these indices, x and where there are any x'."""
    return {name: value.item() for name, value in trainer.step(Plan(torch.stack(views)[None])).items()}


def check_final(network: nn.Module, expected: dict[str, dict[str, float]]) -> None:
    state = network.state_dict()
    for name, sums in expected.items():
        tensor = state[name]
        found = {"sum": tensor.sum(), "l2": tensor.norm(), "dot": (tensor * fill(tuple(tensor.shape), 999, 1.0)).sum()}
        for key, value in found.items():
            assert value.item() == pytest.approx(sums[key], rel=1e-8, abs=1e-8 * sums["l2"]), f"{name}: {key}"


def trained_teacher(content: dict[str, Any], data: DeviceData) -> Trainer:
    """The run T_teacher, its cross-entropies compared step by step."""
    setup = content["setup"]
    network = with_weights(PaperTeacher(3, 32, 10), setup["teacher_params"], gain=1.0)
    trainer = trainer_of(network, Objective(partial(scratch.loss, params=scratch.Params(ce=1.0))), 0.0005, data)
    for expected in content["runs"]["T_teacher"]["steps"]:
        index = (expected["step"] * setup["B"] + torch.arange(setup["B"])) % setup["N"]
        assert step_on(trainer, index)["ce"] == pytest.approx(expected["ce"], rel=1e-8)
    return trainer


@pytest.mark.parametrize("content", TEACHERS)
def test_teacher_follows_the_reference_trajectory(content: dict[str, Any]) -> None:
    data, final = data_of(content["setup"]), content["runs"]["T_teacher"]["final"]
    trainer = trained_teacher(content, data)
    check_final(trainer.students.member(0), final["params"])
    loss = cross_entropy(trainer.predictions(data.test)[0], data.test.labels)
    assert loss.item() == pytest.approx(final["eval_test_ce"], rel=1e-8)


def teacher_of(content: dict[str, Any], run: dict[str, Any], data: DeviceData) -> nn.Module:
    """Untrained with a gain, or what the run T_teacher of the same file ends with."""
    if run["teacher"].startswith("T_teacher"):
        return trained_teacher(content, data).students.member(0)
    gain = float(run["teacher"].removeprefix("untrained, gain "))
    return with_weights(PaperTeacher(3, 32, 10), content["setup"]["teacher_params"], gain)


@pytest.mark.parametrize(("content", "name"), STUDENTS, ids=[name for _, name in STUDENTS])
def test_student_follows_the_reference_trajectory(content: dict[str, Any], name: str) -> None:
    setup, run = content["setup"], content["runs"][name]
    data = data_of(setup)
    teacher = Teacher(teacher_of(content, run, data), data)
    assert teacher.train_logits[0].tolist() == pytest.approx(run["probe"]["teacher_logits_train0"], rel=1e-9)
    student = with_weights(PaperStudent(3, 32, 10), setup["student_params"], run["student_gain"])
    method: Any = {"old": triplet, "new": kd_triplet}[run["loss"]]
    weights = {"ce": 1.0, "kl": 1.0, "temperature": 1.0, "triplet": run["triplet_weight"], "margin": run["margin"]}
    params = method.Params(**{key: weights[key] for key in method.Params.__dataclass_fields__ if key in weights})
    objective = Objective(partial(method.loss, params=params), method.NEEDS, teacher)
    trainer = trainer_of(student, objective, run["weight_decay"], data)
    for expected in run["steps"]:
        step = expected["step"]
        index = (step * setup["B"] + torch.arange(setup["B"])) % setup["N"]
        trainer.optimizer.lr.fill_(expected["lr"])
        terms = step_on(trainer, index, (index + 1 + step % 9) % setup["N"])
        terms["total"] = terms.pop("loss")
        known = {term: value for term, value in terms.items() if term in expected}
        assert known == pytest.approx({term: expected[term] for term in known}, rel=1e-8), f"step {step}"
    check_final(trainer.students.member(0), run["final"]["params"])
