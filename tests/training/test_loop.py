"""The loop: seeds that do not see each other, interruption, failure, what is shown meanwhile."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import CPU, NORMED, PARAMS, PLAIN, SHORT, Small, assert_same_bits, digits, every_method, with_lr
from torch.nn.functional import cross_entropy

from tripletkd.errors import Paused, UserError
from tripletkd.methods import triplet_family
from tripletkd.training.checkpoint import Checkpoint, Progress, SavePolicy, read_header
from tripletkd.training.compute import Compute
from tripletkd.training.loop import Monitoring, TrainResult, fit
from tripletkd.training.optim import Cosine
from tripletkd.training.progress import ProgressBar, SeededOnly, Unseen
from tripletkd.types import Batch, Term

LONG = with_lr(SHORT, 0.003, epochs=12)  # 60 steps; at 0.01 rounding errors grow tenfold an epoch, in any one run
AT_ONCE = SavePolicy(deadline=0)
SINGLE = Compute(CPU, torch.float32, fuse_seeds=True)


def same(first: TrainResult, second: TrainResult, seed: int, tolerance: float) -> None:
    """One seed's history and weights in two runs."""
    one, two = ([row for row in result.history if row["seed"] == seed] for result in (first, second))
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    others = second.networks[seed].state_dict()
    for name, tensor in first.networks[seed].state_dict().items():
        assert torch.allclose(tensor.double(), others[name].double(), rtol=tolerance, atol=tolerance), name


def plain_loss(batch: Batch) -> dict[str, Term]:
    return {"ce": Term(1.0, cross_entropy(batch.student.logits, batch.labels))}


@pytest.mark.parametrize("method", every_method())
def test_every_method_trains_a_group_as_it_trains_one(method: str) -> None:
    """In float64, to 1e-9."""
    small = Small(method, recipe=with_lr(SHORT, 0.003, epochs=4, schedule=Cosine()))
    same(small.fit([3, 1, 2]), small.fit([2]), 2, 1e-9)


def test_a_seed_gives_alone_what_it_gives_in_a_group() -> None:
    """Also with batch norm and dropout, and whether the group is fused or not: 60 steps in float64, to 1e-9."""
    small = Small(networks=NORMED, recipe=LONG)
    group = small.fit([3, 1, 2])
    same(group, small.fit([1]), 1, 1e-9)
    same(group, replace(small, compute=Compute(CPU, torch.float64)).fit([2, 1]), 2, 1e-9)


def test_apart_a_seed_gives_the_same_bits_alone_and_in_a_group() -> None:
    """Where seeds are computed one after the other: what lets cores and machines share a run."""
    small = Small(networks=NORMED, compute=Compute(CPU, torch.float32, torch.bfloat16))
    same(small.fit([3, 1, 2]), small.fit([2]), 2, 0.0)


def test_a_teacher_s_outputs_for_x_prime_do_not_need_the_student_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images x' are drawn, and the same student comes out, whether or not it is asked for s(x')."""
    params = replace(PARAMS["triplet_family"], anchor="student")
    small, runs = Small("triplet_family", params=params), []
    for needs in ({"teacher", "teacher_negative"}, {"teacher", "teacher_negative", "negative"}):
        monkeypatch.setattr(triplet_family, "needs", lambda _, needs=needs: frozenset(needs))
        runs.append(small.fit([1, 2]))
    same(runs[0], runs[1], 2, 1e-9)


def test_an_adapter_s_buffers_change_after_the_step_where_the_batch_s_images_stand() -> None:
    trainer = Small("crd").trainer(digits(), [1, 2])
    before = trainer.adapter_buffers["embedding.student"].clone()
    batch = next(iter(trainer.plan(1).batches(SHORT.batch_size)))
    trainer.step(batch)
    for start, now, index in zip(before, trainer.adapter_buffers["embedding.student"], batch.index[:, 0], strict=True):
        assert torch.equal((start != now).any(1).nonzero().flatten(), index.sort().values)


def test_bfloat16_is_of_the_passes_alone() -> None:
    """Losses and weights stay float32, and near those of float32: bfloat16 has 8 bits, and its noise averages out."""
    seen: set[torch.dtype] = set()

    def loss(batch: Batch) -> dict[str, Term]:
        seen.update((batch.student.logits.dtype, *(feature.dtype for feature in batch.student.features.values())))
        return plain_loss(batch)

    runs = [
        Small(networks=NORMED, compute=Compute(CPU, torch.float32, kind, fuse_seeds=True)).fit([1, 2], loss=loss)
        for kind in (None, torch.bfloat16)
    ]
    assert seen == {torch.float32} == {p.dtype for net in runs[1].networks.values() for p in net.parameters()}
    losses = [[row["ce"] for row in result.history] for result in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


@pytest.mark.parametrize(("method", "networks"), [("kd_triplet", PLAIN), ("crd", NORMED)])
def test_an_interrupted_run_goes_on_to_the_same_bits(method: str, networks: tuple[str, str], tmp_path: Path) -> None:
    """And names the machines that it was on."""
    small, path = Small(method, networks, compute=SINGLE), tmp_path / "checkpoint.safetensors"
    whole = small.fit([1, 2])
    for epoch in range(1, SHORT.epochs):  # a limit of no time at all: stops after every epoch
        machine = {"device": "here" if epoch < 3 else "there"}
        with pytest.raises(Paused, match=rf"epoch {epoch} of 6.*{path.name}"):
            small.fit([1, 2], checkpoint=Checkpoint(path, "same", [1, 2], machine, AT_ONCE))
    assert read_header(path) == ("same", [1, 2])
    before = json.loads(load_file(path)["progress"].numpy().tobytes())["seconds"]
    resumed = small.fit([1, 2], checkpoint=Checkpoint(path, "same", environment=machine))
    assert_same_bits(resumed, whole)
    assert resumed.seconds > before > 0  # of all epochs, not of the last one alone
    assert resumed.environments == [{"device": "here"}, {"device": "there"}]


def test_a_log_gets_a_line_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tripletkd.training.progress.LOG_EVERY", 0.0)
    fit(Small("scratch").trainer(digits(), [1, 2]), Monitoring(watch=ProgressBar("training")))
    for epoch, line in enumerate(capsys.readouterr().out.splitlines(), start=1):
        assert re.fullmatch(rf"training: epoch {epoch} of 6, loss \d.*test \d.*%; 00:\d\d left", line)
    assert epoch == SHORT.epochs


@pytest.mark.parametrize("damaged", [True, False])
def test_a_checkpoint_that_is_damaged_or_of_another_run_is_moved_aside(damaged: bool, tmp_path: Path) -> None:
    path, small = tmp_path / "checkpoint.safetensors", Small("scratch")
    with pytest.raises(Paused):
        small.fit([1], checkpoint=Checkpoint(path, "one", policy=AT_ONCE))
    if damaged:
        path.write_bytes(path.read_bytes()[:1000])
        assert read_header(path) is None
    before = path.read_bytes()
    result = small.fit([1], checkpoint=Checkpoint(path, "one" if damaged else "two"))
    assert [row["epoch"] for row in result.history] == list(range(1, 7))
    assert path.with_suffix(".unused-1").read_bytes() == before


def test_a_signal_stops_at_a_checkpoint(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    pending, path, small = [signal.SIGINT], tmp_path / "checkpoint.safetensors", Small("scratch")

    def loss(batch: Batch) -> dict[str, Term]:
        while pending:
            os.kill(os.getpid(), pending.pop())
        return plain_loss(batch)

    with pytest.raises(Paused, match="SIGINT"):
        small.fit([1], loss=loss, checkpoint=Checkpoint(path, "same"))
    assert signal.getsignal(signal.SIGINT) is handler
    assert_same_bits(small.fit([1], loss=loss, checkpoint=Checkpoint(path, "same")), small.fit([1], loss=loss))


@pytest.mark.parametrize("fused", [True, False])
def test_a_seed_whose_loss_is_not_finite_fails_alone(fused: bool) -> None:
    """Seed 2's weights are made infinite: it is named with epoch, step and term; the others are what they were."""
    small = Small("scratch", compute=Compute(CPU, torch.float64, fuse_seeds=fused))
    trainer = small.trainer(digits(), [1, 2, 3])
    trainer.students.params["fc2.weight"].detach()[1] = float("inf")
    result = fit(trainer)
    assert list(result.networks) == [1, 3] and result.failed == {2: "ce is nan at epoch 1, step 1"}
    same(result, small.fit([1]), 1, 1e-9)


def test_weights_that_the_last_step_makes_infinite_are_no_result() -> None:
    trainer = Small("scratch", recipe=replace(SHORT, epochs=1)).trainer(digits(), [1, 2])

    def overflow(_: torch.Tensor) -> dict[str, list[float]]:
        trainer.students.params["fc2.weight"].detach()[1] = float("inf")
        return {}

    result = fit(trainer, Monitoring(metrics_fn=overflow))
    assert list(result.networks) == [1] and result.failed == {2: "weights are not finite after epoch 1"}


@pytest.mark.fault
def test_a_last_batch_of_one_image_is_refused_where_there_is_batch_norm() -> None:
    recipe = replace(SHORT, batch_size=7)  # 120 = 17 * 7 + 1
    Small("scratch", recipe=recipe, networks=PLAIN).trainer(digits(), [1])
    with pytest.raises(UserError, match=r"recipe.batch_size: found 7, .* one of 120 images"):
        Small("scratch", recipe=recipe, networks=NORMED).trainer(digits(), [1])


@pytest.mark.fault
def test_no_two_columns_of_a_history_have_one_name() -> None:
    """Else a term called loss would be trained on in the place of the sum."""
    trainer = Small("kd").trainer(digits(), [1], loss=lambda batch: plain_loss(batch) | {"loss": Term(0, batch.labels)})
    with pytest.raises(UserError, match="method kd: found a term called 'loss'"):
        fit(trainer)
    with pytest.raises(UserError, match="metrics_fn: found ce"):
        fit(Small("kd").trainer(digits(), [1]), Monitoring(metrics_fn=lambda _: {"ce": [0.0]}))


@pytest.mark.parametrize("per_epoch", [1, 2])
def test_numbers_of_no_seed_end_a_run_however_many_steps_an_epoch_has(per_epoch: int) -> None:
    watch = SeededOnly(Unseen(), "digits/own")
    watch.begin(Progress(), 2, per_epoch)
    watch.step()
    if per_epoch == 1:
        watch.epoch([], Progress(epoch=1))
    torch.rand(1)
    with pytest.raises(UserError, match="digits/own: a step draws from the generator of torch, which no seed"):
        watch.step()
