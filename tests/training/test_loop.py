"""The loop: seeds that do not see each other, interruption, failure, what is shown meanwhile."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import AUGMENTED, CPU, PARAMS, SHORT, Small, digits, every_method, with_lr
from torch.nn.functional import cross_entropy

from tripletkd.data import sources
from tripletkd.data.batches import Inputs
from tripletkd.errors import Paused, UserError
from tripletkd.methods import triplet_family
from tripletkd.training.checkpoint import Checkpoint, SavePolicy, read_header
from tripletkd.training.compute import Compute
from tripletkd.training.loop import TrainResult, fit
from tripletkd.types import Batch, Term

LONG = with_lr(SHORT, 0.003, epochs=12)  # 60 steps; at 0.01 rounding errors grow tenfold an epoch, in any one run
APART = Compute(CPU, torch.float64, fuse_seeds=False)
AT_ONCE = SavePolicy(deadline=0)
SINGLE = Compute(CPU, torch.float32, fuse_seeds=True)
NETWORKS = [("paper_teacher_quarter", student) for student in ("paper_student_quarter", "paper_teacher_quarter")]


def same(first: TrainResult, second: TrainResult, seed: int, tolerance: float) -> None:
    """One seed's history and weights in two runs."""
    one, two = ([row for row in result.history if row["seed"] == seed] for result in (first, second))
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    others = second.networks[seed].state_dict()
    for name, tensor in first.networks[seed].state_dict().items():
        assert torch.allclose(tensor.double(), others[name].double(), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("networks", NETWORKS, ids=str)
def test_a_seed_gives_alone_what_it_gives_in_a_group(networks: tuple[str, str]) -> None:
    """Also with batch norm and dropout, and whether the group is fused or not: 60 steps in float64, to 1e-9."""
    small = Small(networks=networks, recipe=LONG)
    group = small.fit([3, 1, 2])
    same(group, small.fit([1]), 1, 1e-9)
    same(group, replace(small, compute=APART).fit([2, 1]), 2, 1e-9)


@pytest.mark.parametrize("networks", NETWORKS, ids=str)
@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
def test_apart_a_seed_gives_the_same_bits_alone_and_in_a_group(networks: tuple[str, str], autocast_dtype: Any) -> None:
    """Where seeds are computed one after the other: what lets cores and machines share a run."""
    small = Small(networks=networks, compute=Compute(CPU, torch.float32, autocast_dtype))
    group = small.fit([3, 1, 2])
    for seed in (1, 2):
        same(group, small.fit([seed]), seed, 0.0)


@pytest.mark.parametrize("method", every_method())
def test_every_method_trains_ten_seeds_as_it_trains_one(method: str) -> None:
    """60 steps in float64, to 1e-9."""
    small = Small(method, recipe=LONG)
    same(small.fit(list(range(1, 11))), small.fit([7]), 7, 1e-9)


@pytest.mark.parametrize("inputs", [AUGMENTED, Inputs((0.3,), (0.38,))])
def test_a_teacher_s_outputs_for_x_prime_do_not_need_the_student_s(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images x' are drawn, and the same student comes out, whether or not it is asked for s(x')."""
    small = Small("triplet_family", inputs=inputs, params=replace(PARAMS["triplet_family"], anchor="student"))
    runs = []
    for needs in ({"teacher", "teacher_negative"}, {"teacher", "teacher_negative", "negative"}):
        monkeypatch.setattr(triplet_family, "needs", lambda _, needs=needs: frozenset(needs))
        runs.append(small.fit([1, 2]))
    same(runs[0], runs[1], 2, 1e-9)


def test_an_adapter_s_buffers_are_each_seed_s_own_and_change_after_the_step() -> None:
    """CRD's memories: the rows of the batch's images move, no other, and the constants are fixed at the first step."""
    trainer = Small("crd").trainer(digits(), [1, 2])
    before = [{name: tensor.clone() for name, tensor in trainer.adapter_buffers.items()}]
    batches = list(trainer.plan(1).batches(SHORT.batch_size))
    for batch in batches[:2]:
        trainer.step(batch)
        before.append({name: tensor.clone() for name, tensor in trainer.adapter_buffers.items()})
    for network in ("student", "teacher"):
        start, first, second = (state[f"embedding.{network}"] for state in before)
        assert not torch.equal(start[0], start[1])
        for seed in (0, 1):
            moved = (start[seed] != first[seed]).any(1).nonzero().flatten()
            assert torch.equal(moved, batches[0].index[seed, 0].sort().values)
            assert torch.allclose(second[seed][batches[1].index[seed, 0]].norm(dim=1), torch.ones(1).double())
        z = [state[f"embedding.z_{network}"] for state in before]
        assert (z[0] == 0).all() and (z[1] > 0).all() and torch.equal(z[1], z[2]) and z[1][0] != z[1][1]


def test_in_float32_a_group_learns_as_well_as_its_seeds_alone() -> None:
    """Rounding differs, and grows; the accuracies, of 80 to 90 % on 400 images, hardly do."""
    recipe = with_lr(SHORT, 0.05, epochs=8)
    small = Small("scratch", ("paper_teacher_quarter", "resnet8"), recipe, compute=SINGLE)
    images = sources.digits().limited(40)
    group = final_accuracies(small.fit([1, 2, 3], images))
    alone = {seed: final_accuracies(small.fit([seed], images))[seed] for seed in (1, 2, 3)}
    assert min(alone.values()) > 0.75
    assert group == pytest.approx(alone, abs=0.05)


def final_accuracies(result: TrainResult) -> dict[int, float]:
    return {int(row["seed"]): row["test_accuracy"] for row in result.history}


def test_two_runs_give_the_same_bits() -> None:
    small = Small(networks=NETWORKS[1], compute=SINGLE)
    first, second = small.fit([1, 2]), small.fit([1, 2])
    assert first.history == second.history
    same(first, second, 2, 0.0)


@pytest.mark.parametrize("networks", NETWORKS, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_is_of_the_passes_alone(networks: tuple[str, str], fused: bool) -> None:
    """Losses and weights stay float32, and near those of float32: bfloat16 has 8 bits, and its noise averages out."""
    seen: set[torch.dtype] = set()

    def loss(batch: Batch) -> dict[str, Term]:
        seen.update((batch.student.logits.dtype, *(feature.dtype for feature in batch.student.features.values())))
        return {"ce": Term(1.0, cross_entropy(batch.student.logits, batch.labels))}

    plain, low = (
        Small(networks=networks, compute=Compute(CPU, torch.float32, kind, fused)) for kind in (None, torch.bfloat16)
    )
    runs = [small.fit([1, 2], loss=loss) for small in (plain, low)]
    assert seen == {torch.float32}
    assert {p.dtype for net in runs[1].networks.values() for p in net.parameters()} == {torch.float32}
    losses = [[row["ce"] for row in result.history] for result in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    assert low.fit([1, 2], loss=loss).history == runs[1].history


@pytest.mark.parametrize("networks", NETWORKS, ids=str)
@pytest.mark.parametrize("method", ["kd_triplet", "vid", "crd"])
def test_an_interrupted_run_goes_on_to_the_same_bits(networks: tuple[str, str], method: str, tmp_path: Path) -> None:
    small, path = Small(method, networks, compute=SINGLE), tmp_path / "checkpoint.safetensors"
    whole = small.fit([1, 2])
    for epoch in range(1, SHORT.epochs):  # a limit of no time at all: stops after every epoch
        with pytest.raises(Paused, match=f"epoch {epoch} of 6.*{path.name}"):
            small.fit([1, 2], checkpoint=Checkpoint(path, "same", [1, 2], policy=AT_ONCE))
    assert read_header(path) == ("same", [1, 2])
    before = json.loads(load_file(path)["progress"].numpy().tobytes())["seconds"]
    resumed = small.fit([1, 2], checkpoint=Checkpoint(path, "same"))
    assert resumed.history == whole.history
    same(resumed, whole, 1, 0.0)
    assert resumed.seconds > before > 0  # of all epochs, not of the last one alone


def test_a_run_that_moves_to_another_machine_names_both(tmp_path: Path) -> None:
    path, small = tmp_path / "checkpoint.safetensors", Small("scratch")
    for machine in ("here", "here", "there"):
        with pytest.raises(Paused):
            small.fit([1], checkpoint=Checkpoint(path, "same", environment={"device": machine}, policy=AT_ONCE))
    result = small.fit([1], checkpoint=Checkpoint(path, "same", environment={"device": "there"}))
    assert result.environments == [{"device": "here"}, {"device": "there"}]
    same(result, small.fit([1]), 1, 0.0)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_gets_a_line_where_there_is_no_terminal(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tripletkd.training.loop.LOG_EVERY", 0.0)
    Small().fit([1, 2], quiet=quiet)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == (0 if quiet else 6)
    for epoch, line in enumerate(said, start=1):
        assert re.fullmatch(rf"training: epoch {epoch} of 6, .*loss \d.*test \d.*%; 00:\d\d left", line)


@pytest.mark.parametrize("damage", ["other run", "truncated", "empty"])
def test_a_checkpoint_that_does_not_fit_is_moved_aside(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, small = tmp_path / "checkpoint.safetensors", Small("scratch")
    with pytest.raises(Paused):
        small.fit([1], checkpoint=Checkpoint(path, "one", policy=AT_ONCE))
    if damage != "other run":
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
        assert read_header(path) is None
    before = path.read_bytes()
    result = small.fit([1], checkpoint=Checkpoint(path, "two" if damage == "other run" else "one"))
    assert [row["epoch"] for row in result.history] == list(range(1, 7))
    aside = path.with_suffix(".unused-1")
    assert aside.read_bytes() == before
    assert f"moved to {aside.name}, starting anew" in capsys.readouterr().out


def test_a_signal_stops_at_a_checkpoint(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    pending, path, small = [signal.SIGINT], tmp_path / "checkpoint.safetensors", Small("scratch")

    def loss(batch: Batch) -> dict[str, Term]:
        while pending:
            os.kill(os.getpid(), pending.pop())
        return {"ce": Term(1.0, cross_entropy(batch.student.logits, batch.labels))}

    with pytest.raises(Paused, match="SIGINT"):
        small.fit([1], loss=loss, checkpoint=Checkpoint(path, "same"))
    assert path.exists()
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = small.fit([1], loss=loss, checkpoint=Checkpoint(path, "same"))
    same(resumed, small.fit([1], loss=loss), 1, 0.0)


@pytest.mark.parametrize("fused", [True, False])
def test_a_seed_whose_loss_is_not_finite_fails_alone(
    fused: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 2's weights are made infinite: it is named with epoch, step and term; the others are what they were."""
    monkeypatch.setattr("tripletkd.training.loop.LOG_EVERY", 0.0)
    small = Small("scratch", compute=Compute(CPU, torch.float64, fuse_seeds=fused))
    trainer = small.trainer(digits(), [1, 2, 3])
    trainer.students.params["fc2.weight"].detach()[1] = float("inf")
    result = fit(trainer)
    assert list(result.networks) == [1, 3]
    assert result.failed == {2: "ce is nan at epoch 1, step 1"}
    last = [100 * row["test_accuracy"] for row in result.history if row["epoch"] == SHORT.epochs]
    assert f", test {sum(last) / len(last):.1f}%; " in capsys.readouterr().out.splitlines()[-1]
    same(result, small.fit([1]), 1, 1e-9)


@pytest.mark.fault
def test_a_last_batch_of_one_image_is_refused_where_there_is_batch_norm() -> None:
    recipe = replace(SHORT, batch_size=7)  # 120 = 17 * 7 + 1
    Small("scratch", recipe=recipe, networks=NETWORKS[0]).trainer(digits(), [1])
    with pytest.raises(UserError, match=r"recipe.batch_size: found 7, .* one of 120 images"):
        Small("scratch", recipe=recipe, networks=NETWORKS[1]).trainer(digits(), [1])
