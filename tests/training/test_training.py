"""The loop: two reference trajectories, seeds that do not see each other, interruption, failure."""

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, fill, golden, unit_hash
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stages import Stage
from stages._training import PRECISIONS, Setting, set_up
from tripletkd import methods, models
from tripletkd.config import load as config
from tripletkd.data import sources
from tripletkd.data.batches import DeviceSplit, Inputs, Sampler
from tripletkd.data.dataset import Dataset
from tripletkd.errors import UserError
from tripletkd.training.checkpoint import Checkpoint, Paused
from tripletkd.training.loop import Fitted, fit
from tripletkd.training.optim import SGD, Recipe
from tripletkd.training.trainer import Teacher, Trainer
from tripletkd.types import Batch, Outputs, Term

CPU, DOUBLE = torch.device("cpu"), torch.float64
TRAJECTORIES = [content for content in golden("runs") if "setup" in content]


def images(count: int, seed: int) -> Tensor:
    """The reference's images: a pattern by class under noise, pixels / 255."""
    i, ch, r, c = torch.meshgrid(*(torch.arange(n) for n in (count, 3, 32, 32)), indexing="ij")
    y = i % 10
    k = ((1 + y % 5) * r + (1 + y // 5) * c + 3 * y + 5 * ch) % 32
    triangle = (k - 16).abs().double() / 8 - 1
    return torch.floor(128 + 48 * triangle + 64 * torch.from_numpy(unit_hash((count, 3, 32, 32), seed))) / 255


def load(network: nn.Module, params: list[dict[str, Any]], gain: float) -> nn.Module:
    """Weights by the reference's formula; batch norm stays at 1 and 0, dropout is off, as there."""
    network.double()
    with torch.no_grad():
        for spec in params:
            network.get_parameter(spec["name"]).copy_(
                fill(tuple(spec["shape"]), spec["seed"], gain * spec["scale_at_gain_1"])
            )
    for module in network.modules():
        if isinstance(module, models.Dropout):
            module.p = 0.0
    return network


def recipe(weight_decay: float) -> Recipe:
    return Recipe(1, 20, lr=0.01, momentum=0.9, weight_decay=weight_decay, decay_epochs=[], decay_factor=1.0)


def check_final(network: nn.Module, expected: dict[str, dict[str, float]]) -> None:
    state = network.state_dict()
    for name, sums in expected.items():
        tensor = state[name]
        found = {"sum": tensor.sum(), "l2": tensor.norm(), "dot": (tensor * fill(tuple(tensor.shape), 999, 1.0)).sum()}
        for key, value in found.items():
            assert value.item() == pytest.approx(sums[key], rel=1e-8, abs=1e-8 * sums["l2"]), f"{name}: {key}"


@pytest.mark.parametrize("content", TRAJECTORIES)
@pytest.mark.parametrize("folded", [False, True])
def test_teacher_follows_the_reference_trajectory(content: dict[str, Any], folded: bool) -> None:
    setup, run = content["setup"], content["runs"].get("T_teacher")
    if run is None:
        pytest.skip("no teacher trajectory in this file")
    teacher = load(models.PaperTeacher(3, 32, 10), setup["teacher_params"], gain=1.0)
    scratch = methods.load("scratch")
    loss = partial(scratch.loss, params=scratch.Params(ce=1.0))
    members = [teacher, teacher] if folded else [teacher]  # a second seed, so that there is something to fold
    trainer = Trainer(members, loss, recipe(0.0005), CPU, DOUBLE, folded)
    x, y = images(setup["N"], 5000), torch.arange(setup["N"]) % 10
    for expected in run["steps"]:
        index = (expected["step"] * setup["B"] + torch.arange(setup["B"])) % setup["N"]
        batch = [t[index].expand(len(members), *t[index].shape) for t in (x, y)]
        terms = trainer.step(batch[0], batch[1])
        assert terms["ce"].tolist() == pytest.approx([expected["ce"]] * len(members), rel=1e-8)
    check_final(trainer.students.member(0), run["final"]["params"])
    logits = trainer.students.predict(images(setup["M"], 6000))[0]
    assert cross_entropy(logits, torch.arange(setup["M"]) % 10).item() == pytest.approx(
        run["final"]["eval_test_ce"], rel=1e-8
    )


STUDENTS = [(content, name) for content in TRAJECTORIES for name, run in content["runs"].items() if "loss" in run]


@pytest.mark.parametrize(("content", "name"), STUDENTS, ids=[name for _, name in STUDENTS])
@pytest.mark.parametrize("folded", [False, True])
def test_student_follows_the_reference_trajectory(content: dict[str, Any], name: str, folded: bool) -> None:
    setup, run = content["setup"], content["runs"][name]
    if not run["teacher"].startswith("untrained"):
        pytest.skip(f"{name}: its teacher, {run['teacher']!r}, is not described by a formula")
    teacher = load(
        models.PaperTeacher(3, 32, 10), setup["teacher_params"], float(run["teacher"].rsplit(" ", 1)[1])
    ).eval()
    student = load(models.PaperStudent(3, 32, 10), setup["student_params"], run["student_gain"])
    method = methods.load({"old": "triplet", "new": "kd_triplet"}[run["loss"]])
    weights = {"ce": 1.0, "kl": 1.0, "temperature": 1.0, "triplet": run["triplet_weight"], "margin": run["margin"]}
    params = method.Params(**{key: weights[key] for key in method.Params.__dataclass_fields__})
    members = [student, student] if folded else [student]
    trainer = Trainer(members, partial(method.loss, params=params), recipe(run["weight_decay"]), CPU, DOUBLE, folded)
    x, y = images(setup["N"], 5000), torch.arange(setup["N"]) % 10
    with torch.no_grad():
        target = teacher(x).logits
    assert target[0].tolist() == pytest.approx(run["probe"]["teacher_logits_train0"], rel=1e-9)
    for expected in run["steps"]:
        step = expected["step"]
        index = (step * setup["B"] + torch.arange(setup["B"])) % setup["N"]
        other = (index + 1 + step % 9) % setup["N"]
        trainer.begin_epoch(1, expected["lr"])
        batch = [t.expand(len(members), *t.shape) for t in (x[index], y[index], x[other], target[index])]
        terms = trainer.step(batch[0], batch[1], batch[2], teacher=Outputs(batch[3], {}))
        for term in terms:
            key = "total" if term == "loss" else term
            if key in expected:
                assert terms[term].tolist() == pytest.approx([expected[key]] * len(members), rel=1e-8), f"step {step}"
    check_final(trainer.students.member(0), run["final"]["params"])


# --- seeds, interruption, failure -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return sources.digits().limited(12)


SHORT = Recipe(epochs=6, batch_size=25, lr=0.01, momentum=0.9, weight_decay=1e-3, decay_epochs=[4], decay_factor=0.1)
LONG = replace(SHORT, epochs=12, lr=0.003)  # 60 steps; at 0.01 rounding errors grow tenfold an epoch, in any one run
INPUTS = Inputs((0.3,), (0.38,), crop_padding=1, flip=True)
METHODS = config.load(ROOT, []).methods


def run(
    dataset: Dataset,
    seeds: list[int],
    folded: bool = True,
    network: str = "paper_student_quarter",
    method: str = "kd_triplet",
    dtype: torch.dtype = DOUBLE,
    checkpoint: Checkpoint | None = None,
    inputs: Inputs = INPUTS,
    loss: Any = None,
    autocast: torch.dtype | None = None,
    quiet: bool = False,
    recipe: Recipe = SHORT,
) -> Fitted:
    """A method on 120 digits, augmented, five steps an epoch, under an untrained teacher."""
    module, params = methods.load(method), METHODS[method]
    needs = methods.needs(module, params)
    features = "features" in needs
    train, test = (DeviceSplit(split, inputs, CPU, dtype) for split in (dataset.train, dataset.test))
    students = [models.build(network, dataset.image_shape, 10, seed) for seed in seeds]
    network_above = models.build("paper_teacher_quarter", dataset.image_shape, 10, 1)
    layers = None
    if hasattr(module, "layers"):
        with torch.no_grad():
            outputs = [n(torch.zeros(2, 1, 8, 8)) for n in (students[0], network_above)]
        layers = [models.seeded(seed, partial(module.layers, *outputs, params)) for seed in seeds]
    teacher = Teacher(network_above, train, features, "teacher_negative" in needs, autocast)
    loss = loss or partial(module.loss, params=params)
    return fit(
        Trainer(students, loss, recipe, CPU, dtype, folded, features=features, layers=layers, autocast=autocast),
        seeds,
        recipe,
        Sampler(dataset.train.labels, inputs, "negative" in needs),
        train,
        test,
        teacher=teacher if "teacher" in needs else None,
        checkpoint=checkpoint,
        quiet=quiet,
    )


def same(first: Fitted, second: Fitted, seed: int, tolerance: float) -> None:
    """One seed's history and weights in two runs."""
    one, two = ([row for row in fitted.history if row["seed"] == seed] for fitted in (first, second))
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    others = second.networks[seed].state_dict()
    for name, tensor in first.networks[seed].state_dict().items():
        assert torch.allclose(tensor.double(), others[name].double(), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("network", ["paper_student_quarter", "paper_teacher_quarter"])
def test_a_seed_gives_alone_what_it_gives_in_a_group(digits: Dataset, network: str) -> None:
    """Also with batch norm and dropout, and whether the group is folded or not: 60 steps in float64, to 1e-9."""
    group = run(digits, [3, 1, 2], folded=True, network=network, recipe=LONG)
    same(group, run(digits, [1], network=network, recipe=LONG), 1, 1e-9)
    same(group, run(digits, [2, 1], folded=False, network=network, recipe=LONG), 2, 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_ten_seeds_as_it_trains_one(digits: Dataset, method: str) -> None:
    """60 steps in float64, to 1e-9."""
    group = run(digits, list(range(1, 11)), method=method, recipe=LONG)
    same(group, run(digits, [7], method=method, recipe=LONG), 7, 1e-9)


def test_in_float32_a_group_learns_as_well_as_its_seeds_alone() -> None:
    """Rounding differs, and grows; the accuracies, of 80 to 90 % on 400 images, hardly do."""
    images, recipe = sources.digits().limited(40), replace(SHORT, epochs=8, lr=0.05, decay_epochs=[6])
    learn = partial(run, images, network="resnet8", method="scratch", recipe=recipe, dtype=torch.float32)
    group = final_accuracies(learn([1, 2, 3]))
    alone = {seed: final_accuracies(learn([seed]))[seed] for seed in (1, 2, 3)}
    assert min(alone.values()) > 0.75
    assert group == pytest.approx(alone, abs=0.05)


def final_accuracies(fitted: Fitted) -> dict[int, float]:
    return {int(row["seed"]): row["test_accuracy"] for row in fitted.history}


def test_two_runs_give_the_same_bits(digits: Dataset) -> None:
    first, second = (run(digits, [1, 2], dtype=torch.float32, network="paper_teacher_quarter") for _ in range(2))
    assert first.history == second.history
    same(first, second, 2, 0.0)


@pytest.mark.parametrize("network", ["paper_student_quarter", "paper_teacher_quarter"])
@pytest.mark.parametrize("folded", [True, False])
def test_bfloat16_is_of_the_passes_alone(digits: Dataset, network: str, folded: bool) -> None:
    """Losses and weights stay float32, and near those of float32: bfloat16 has 8 bits, and its noise averages out."""
    seen: set[torch.dtype] = set()

    def loss(batch: Batch) -> dict[str, Term]:
        seen.update((batch.student.logits.dtype, *(feature.dtype for feature in batch.student.features.values())))
        return {"ce": Term(1.0, cross_entropy(batch.student.logits, batch.labels))}

    settings: dict[str, Any] = {"folded": folded, "network": network, "dtype": torch.float32, "loss": loss}
    plain, low = (run(digits, [1, 2], autocast=kind, **settings) for kind in (None, torch.bfloat16))
    assert seen == {torch.float32}
    assert {p.dtype for net in low.networks.values() for p in net.parameters()} == {torch.float32}
    losses = [[row["ce"] for row in fitted.history] for fitted in (plain, low)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    again = run(digits, [1, 2], autocast=torch.bfloat16, **settings)
    assert again.history == low.history


@pytest.mark.parametrize("network", ["paper_student_quarter", "paper_teacher_quarter"])
def test_an_interrupted_run_goes_on_to_the_same_bits(digits: Dataset, network: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "checkpoint.safetensors", run(digits, [1, 2], network=network, dtype=torch.float32)
    for epoch in range(1, SHORT.epochs):  # a limit of no time at all: stops after every epoch
        with pytest.raises(Paused, match=f"epoch {epoch} of 6.*{path.name}"):
            run(digits, [1, 2], network=network, dtype=torch.float32, checkpoint=Checkpoint(path, "same", deadline=0))
    before = json.loads(load_file(path)["progress"].numpy().tobytes())["seconds"]
    resumed = run(digits, [1, 2], network=network, dtype=torch.float32, checkpoint=Checkpoint(path, "same"))
    assert resumed.history == whole.history
    same(resumed, whole, 1, 0.0)
    assert resumed.seconds > before > 0  # of all epochs, not of the last one alone


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_gets_a_line_where_there_is_no_terminal(
    digits: Dataset, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tripletkd.train.TELL_EVERY", 0.0)
    run(digits, [1, 2], quiet=quiet)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == (0 if quiet else 6)
    for epoch, line in enumerate(said, start=1):
        assert re.fullmatch(rf"training: epoch {epoch} of 6, .*loss \d.*test \d.*%; 00:\d\d left", line)


@pytest.mark.parametrize("damage", ["other run", "truncated", "empty"])
def test_a_checkpoint_that_does_not_fit_is_not_used(digits: Dataset, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Paused):
        run(digits, [1], checkpoint=Checkpoint(path, "one", deadline=0))
    if damage != "other run":
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    fitted = run(digits, [1], checkpoint=Checkpoint(path, "two" if damage == "other run" else "one"))
    assert [row["epoch"] for row in fitted.history] == list(range(1, 7))


def test_a_signal_stops_at_a_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    pending = [signal.SIGINT]

    def loss(batch: Batch) -> dict[str, Term]:
        while pending:
            os.kill(os.getpid(), pending.pop())
        return {"ce": Term(1.0, cross_entropy(batch.student.logits, batch.labels))}

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Paused, match=r"stopped at epoch 1 of 6 \(SIGINT\)"):
        run(digits, [1], loss=loss, checkpoint=Checkpoint(path, "same"))
    assert path.exists()
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = run(digits, [1], loss=loss, checkpoint=Checkpoint(path, "same"))
    same(resumed, run(digits, [1], loss=loss), 1, 0.0)


def test_a_seed_whose_loss_is_not_finite_fails_alone(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 2's weights are made infinite: it is named with epoch, step and term; the others are what they were."""
    monkeypatch.setattr("tripletkd.train.TELL_EVERY", 0.0)
    module = methods.load("scratch")
    train, test = (DeviceSplit(split, INPUTS, CPU, DOUBLE) for split in (digits.train, digits.test))
    students = [models.build("paper_student_quarter", digits.image_shape, 10, seed) for seed in (1, 2, 3)]
    with torch.no_grad():
        students[1].get_parameter("fc2.weight").fill_(float("inf"))
    loss = partial(module.loss, params=module.Params(ce=1.0))
    for folded in (True, False):
        trainer = Trainer(students, loss, SHORT, CPU, DOUBLE, folded)
        fitted = fit(trainer, [1, 2, 3], SHORT, Sampler(digits.train.labels, INPUTS, False), train, test)
        assert list(fitted.networks) == [1, 3]
        assert fitted.failed == {2: "ce is nan at epoch 1, step 1"}
        last = [100 * row["test_accuracy"] for row in fitted.history if row["epoch"] == SHORT.epochs]
        assert f", test {sum(last) / len(last):.1f}%; " in capsys.readouterr().out.splitlines()[-1]
        same(fitted, run(digits, [1], method="scratch"), 1, 1e-9)


def test_learning_rate_falls_after_the_epochs_named() -> None:
    paper = Recipe(500, 100, 0.01, 0.9, 0.007, decay_epochs=[100, 200, 300, 400], decay_factor=0.1)
    rates = {epoch: paper.lr_at(epoch) for epoch in (1, 100, 101, 200, 201, 500)}
    assert rates == pytest.approx({1: 1e-2, 100: 1e-2, 101: 1e-3, 200: 1e-3, 201: 1e-4, 500: 1e-6})


def test_sgd_equals_that_of_pytorch() -> None:
    ours = [torch.randn(4, 3, dtype=DOUBLE), torch.randn(5, dtype=DOUBLE)]
    theirs = [p.clone().requires_grad_() for p in ours]
    sgd = SGD(ours, SHORT)
    reference = torch.optim.SGD(theirs, lr=SHORT.lr, momentum=SHORT.momentum, weight_decay=SHORT.weight_decay)
    for _ in range(5):
        grads = [torch.randn_like(p) for p in ours]
        sgd.step(grads)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad.clone()
        reference.step()
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(ours, theirs, strict=True))


# --- how the machine computes -----------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a CUDA device")
@pytest.mark.parametrize(
    ("override", "message"),
    [("run.device=cuda", "run.device: cuda, but PyTorch finds no"), ("run.precision=tf32", "run.precision: tf32 is")],
)
def test_what_the_machine_lacks_is_said(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Setting.of(Stage(config.load(ROOT, ["suite=digits", override]), {}), sources.digits())


@pytest.fixture
def process() -> Iterator[None]:
    """As PyTorch sets itself up; put back afterwards."""
    cudnn, matmul, mode = torch.backends.cudnn, torch.backends.cuda.matmul, torch.get_deterministic_debug_mode()
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    torch.set_deterministic_debug_mode("default")
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
    torch.set_deterministic_debug_mode(mode)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_float32_is_float32(precision: str, deterministic: bool, process: None) -> None:
    """On a GPU, PyTorch's convolutions use TF32 and any algorithm unless told not to."""
    set_up(precision, deterministic)
    assert torch.get_deterministic_debug_mode() == (2 if deterministic else 0)
    assert torch.backends.cudnn.benchmark is not deterministic
    allowed = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    assert allowed == ((True, True) if precision == "tf32" else (False, False))
