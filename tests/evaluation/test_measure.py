"""From a trained run to its measurement and its output map."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measurements import HASH, KD
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from tripletkd import models
from tripletkd.data import sources
from tripletkd.data.batches import DeviceSplit, Inputs
from tripletkd.errors import UserError
from tripletkd.evaluation import measure
from tripletkd.training.run_record import Record, TrainedRun
from tripletkd.training.trainer import Teacher

DATASET = sources.digits().limited(10)
TRAIN, TEST = (DeviceSplit(s, Inputs(), torch.device("cpu"), torch.float32) for s in (DATASET.train, DATASET.test))
DATA: Any = SimpleNamespace(dataset=DATASET, train=TRAIN, test=TEST)
NETWORK = models.build("paper_student_quarter", DATASET.image_shape, 10, seed=7)
TEACHER = Teacher(NETWORK, DATA)
HISTORY: list[dict[str, float]] = [
    {"seed": 1, "epoch": 1, "test_accuracy": 0.9, "train_accuracy": 0.1},
    {"seed": 1, "epoch": 2},
    {"seed": 2, "epoch": 3, "test_accuracy": 1.0, "train_accuracy": 0.1},
    {"seed": 1, "epoch": 3, "test_accuracy": TEACHER.test_accuracy, "train_accuracy": 0.1},
]


def trained(networks: dict[int, nn.Module], **identity: Any) -> TrainedRun:
    """Of two seeds; one without a network failed."""
    made = replace(KD, **({"network": "paper_student_quarter"} | identity))
    records = []
    for seed in (1, 2):
        failed, weights = (None, HASH) if seed in networks else ("loss is nan", None)
        common: dict[str, Any] = {"versions": {"torch": "2"}, "image_shape": DATASET.image_shape, "classes": 10}
        records.append(Record(identity=made, seed=seed, code="c" * 64, failed=failed, weights_sha256=weights, **common))
    return TrainedRun(records, networks, HISTORY)


def test_what_a_run_is_and_what_its_network_costs() -> None:
    run = trained({1: NETWORK})
    found = measure.measure(run, DATA, TEACHER.test_logits)
    assert found.identity == run.records[0].identity
    assert found.parameters == sum(p.numel() for p in NETWORK.parameters())
    assert found.weights_bytes == 4 * found.parameters
    assert found.multiply_adds == 8 * 9 * 64 + 8 * 8 * 9 * 16 + 16 * 8 * 9 * 4 + 16 * 32 + 32 * 10
    assert (found.weights_sha256, found.failed, found.code) == ({1: HASH}, {2: "loss is nan"}, {"c" * 64: (1, 2)})
    assert found.test_images == 100 and found.class_names is None
    [seed] = found.seeds
    assert (seed.seed, seed.agreement, seed.best_test_accuracy, seed.best_epoch) == (1, 1, 0.9, 1)
    hits = {split: [NETWORK(x).logits.argmax(1) == y for x, y in split.chunks(7)] for split in (TRAIN, TEST)}
    assert seed.train_accuracy == pytest.approx(torch.cat(hits[TRAIN]).double().mean().item())
    assert seed.test_accuracy == pytest.approx(torch.cat(hits[TEST]).double().mean().item())
    expected = [cross_entropy(NETWORK(x).logits, y) for x, y in TRAIN.chunks(len(TRAIN))]
    assert seed.train_cross_entropy == pytest.approx(expected[0].item())


@pytest.mark.fault
@pytest.mark.parametrize(("network", "name"), [("paper_student_quarter", "fc2.bias"), ("resnet8", "bn1.running_var")])
def test_a_seed_whose_outputs_are_not_finite_has_failed(network: str, name: str) -> None:
    """It would be as accurate as the share of the first class, without a violated triplet."""
    one, other = (models.build(network, DATASET.image_shape, 10, seed=7) for _ in range(2))
    other.state_dict()[name].fill_(float("nan"))
    found = measure.sound(trained({1: one, 2: other}, network=network), DATA)
    assert list(found.networks) == [1] and found.failed == {2: "its outputs are not finite"}
    assert [record.weights_sha256 for record in found.records] == [HASH, None]


def test_the_teacher_is_measured_without_one_and_names_the_classes() -> None:
    found = measure.measure(trained({1: NETWORK}, name="teacher"), DATA, None)
    assert found.class_names == DATASET.classes
    absent = {name for name, value in asdict(found.seeds[0]).items() if value is None}
    of_both = {"agreement", "kl_to_teacher", "anchor_positive", "anchor_negative", "violated_triplets"}
    assert absent == {"test_top5_accuracy"} | of_both


def test_a_run_of_which_every_seed_failed() -> None:
    found = measure.measure(trained({}), DATA, TEACHER.test_logits)
    assert found.seeds == () and found.weights_bytes == 4 * found.parameters
    assert measure.output_map(trained({}), TEACHER.test_logits, DATA) == []


def test_weights_of_another_run_are_noticed() -> None:
    other = replace(trained({1: NETWORK}), history=[{**HISTORY[-1], "test_accuracy": TEACHER.test_accuracy + 0.1}])
    with pytest.raises(UserError, match=r"seed 1: .* not of one run"):
        measure.measure(other, DATA, TEACHER.test_logits)


def test_predictions_leave_the_network_as_it_was() -> None:
    """Batch norm's statistics too, of a network that is in training mode and in another precision."""
    network = models.build("resnet8", DATASET.image_shape, 10, seed=1).double().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure.sound(trained({1: network}), DATA)
    assert network.training and all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_the_output_map_shows_each_class_where_teacher_and_student_put_it() -> None:
    rows = measure.output_map(trained({1: NETWORK}), TEACHER.test_logits, DATA)
    assert [row["label"] for row in rows] == [label for label in range(10) for _ in range(10)]
    assert all((row["after_x"], row["after_y"]) == (row["teacher_x"], row["teacher_y"]) for row in rows)
    assert any(row["before_x"] != row["after_x"] for row in rows)


def test_multiply_adds_are_those_of_the_flop_counter() -> None:
    network = models.build("resnet8x4", (32, 32, 3), 10, seed=1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert measure.multiply_adds(network, (32, 32, 3)) == counter.get_total_flops() // 2


class Own(nn.Module):
    """Multiplies by a matrix that is no layer's, and attends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4, 10))
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).mT  # [B, 36, 4] of images of 8 x 8 pixels
        attended: torch.Tensor = self.attention(tokens, tokens, tokens)[0]
        return attended.mean(1) @ self.weight


def test_multiply_adds_of_a_network_of_one_s_own_are_all_counted() -> None:
    attention = 4 * 36 * 4**2 + 2 * 36**2 * 4
    assert measure.multiply_adds(Own(), (8, 8, 3)) == 36 * 4 * 27 + attention + 40


def test_multiply_adds_of_attention_are_counted() -> None:
    """ViT-B/16: patches, and in 12 layers queries, keys, values, their products, the projection and the perceptron."""
    width, tokens, patches = 768, 197, 196
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2
    expected = patches * (3 * 16 * 16) * width + 12 * layer + 10 * width
    network = models.build("torchvision/vit_b_16", (224, 224, 3), 10, seed=1)
    assert measure.multiply_adds(network, (224, 224, 3)) == expected
