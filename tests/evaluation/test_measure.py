"""From a trained run to its measurement and its output map."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tripletkd import models
from tripletkd.data import sources
from tripletkd.data.batches import DeviceSplit, Inputs
from tripletkd.errors import UserError
from tripletkd.evaluation import measure, metrics
from tripletkd.evaluation.measurement import Environment
from tripletkd.training.run_record import Record, TrainedRun

DATASET = sources.digits().limited(10)
TRAIN, TEST = (DeviceSplit(s, Inputs(), torch.device("cpu"), torch.float32) for s in (DATASET.train, DATASET.test))
DATA: Any = SimpleNamespace(dataset=DATASET, train=TRAIN, test=TEST)
NETWORK = models.build("paper_student_quarter", DATASET.image_shape, 10, seed=7)
REACHED = metrics.accuracy(measure.predict(NETWORK, TEST), TEST.labels)
HISTORY: list[dict[str, float]] = [
    {"seed": 1, "epoch": 1, "test_accuracy": 0.9, "train_accuracy": 0.1},
    {"seed": 1, "epoch": 2},
    {"seed": 2, "epoch": 3, "test_accuracy": 1.0, "train_accuracy": 0.1},
    {"seed": 1, "epoch": 3, "test_accuracy": REACHED, "train_accuracy": 0.1},
]


def of_seed(seed: int, **changes: Any) -> Record:
    made: dict[str, Any] = {
        "suite": "digits",
        "split": "test",
        "name": "kd",
        "method": "kd",
        "network": "paper_student_quarter",
    }
    made |= {"image_shape": DATASET.image_shape, "classes": 10, "seed": seed, "params": {"method": {"ce": 1.0}}}
    hashes = {"data_sha256": "d" * 64, "teacher_sha256": "a" * 64, "weights_sha256": "b" * 64, "code": "c" * 64}
    hashes |= {"fingerprint": "f" * 64}
    return Record(**(made | hashes | {"environment": {"torch": "2"}, "trained_with": [1, 2]} | changes))


def trained(networks: dict[int, nn.Module], history: list[dict[str, float]] = HISTORY, **changes: Any) -> TrainedRun:
    gone = {"failed": "loss is nan", "weights_sha256": None}
    records = [of_seed(seed, **({} if seed in networks else gone) | changes) for seed in (1, 2)]
    return TrainedRun(records, networks, history)


def test_what_a_run_is_and_what_its_network_costs() -> None:
    found = measure.measure(trained({1: NETWORK}), DATA, measure.predict(NETWORK, TEST))
    assert (found.suite, found.split, found.name, found.method) == ("digits", "test", "kd", "kd")
    assert found.parameters == sum(p.numel() for p in NETWORK.parameters())
    assert found.multiply_adds == 8 * 9 * 64 + 8 * 8 * 9 * 16 + 16 * 8 * 9 * 4 + 16 * 32 + 32 * 10
    assert found.weights_bytes == 4 * found.parameters
    assert (found.weights_sha256, found.failed) == ({1: "b" * 64}, {2: "loss is nan"})
    assert found.code == ("c" * 64,)
    assert found.environments == (Environment((1, 2), {"torch": "2"}),)
    assert found.test_images == 100
    assert found.class_names is None


@pytest.mark.fault
@pytest.mark.parametrize("name", ["fc2.bias", "bn1.running_var"])
def test_a_seed_whose_outputs_are_not_finite_has_failed(name: str) -> None:
    """It would be as accurate as the share of the first class, without a violated triplet."""
    network = "resnet8" if name.startswith("bn") else "paper_student_quarter"
    one, other = (models.build(network, DATASET.image_shape, 10, seed=7) for _ in range(2))
    other.state_dict()[name].fill_(float("nan"))
    found = measure.sound(trained({1: one, 2: other}, network=network), DATA)
    assert list(found.networks) == [1] and found.failed == {"2": "its outputs are not finite"}
    assert [record.weights_sha256 for record in found.records] == ["b" * 64, None]


def test_figures_of_a_seed() -> None:
    found = measure.measure(trained({1: NETWORK}), DATA, measure.predict(NETWORK, TEST)).seeds[0]
    assert found.seed == 1
    assert found.agreement == 1
    assert found.test_accuracy == REACHED
    correct = [NETWORK(x).logits.argmax(1) == y for x, y in TRAIN.chunks(7)]
    assert found.train_accuracy == pytest.approx(torch.cat(correct).double().mean().item())
    assert (found.best_test_accuracy, found.best_epoch) == (0.9, 1)


def test_the_teacher_is_measured_without_one_and_names_the_classes() -> None:
    found = measure.measure(trained({1: NETWORK}, method="teacher"), DATA, None)
    assert found.class_names == DATASET.classes
    alone = dataclasses.asdict(found.seeds[0])
    assert {name for name, value in alone.items() if value is None} == {
        "test_top5_accuracy",
        "agreement",
        "kl_to_teacher",
        "anchor_positive",
        "anchor_negative",
        "violated_triplets",
    }


def test_a_run_of_which_every_seed_failed() -> None:
    found = measure.measure(trained({}), DATA, measure.predict(NETWORK, TEST))
    assert found.seeds == ()
    assert found.weights_bytes == 4 * found.parameters
    assert measure.output_map(trained({}), measure.predict(NETWORK, TEST), DATA) == []


def test_weights_of_another_run_are_noticed() -> None:
    other = [{**HISTORY[-1], "test_accuracy": REACHED + 0.1}]
    with pytest.raises(UserError, match="they are not of one run"):
        measure.measure(trained({1: NETWORK}, other), DATA, measure.predict(NETWORK, TEST))


def test_environments_are_listed_once_with_their_seeds() -> None:
    versions = {1: "2", 2: "3", 3: "2"}
    records = [of_seed(seed, environment={"torch": version}) for seed, version in versions.items()]
    assert measure.distinct_environments(records) == (
        Environment((1, 3), {"torch": "2"}),
        Environment((2,), {"torch": "3"}),
    )


def test_predictions_are_in_eval_mode_and_leave_the_network_as_it_was() -> None:
    network = nn.Sequential(models.build("resnet8", DATASET.image_shape, 10, seed=1))[0].double().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = measure.predict(network, TEST), measure.predict(network, TEST)
    assert torch.equal(first, second) and first.dtype == torch.float32
    assert network.training and next(network.parameters()).dtype == torch.float64
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_output_map_shows_each_class_where_teacher_and_student_put_it() -> None:
    rows = measure.output_map(trained({1: NETWORK}), measure.predict(NETWORK, TEST), DATA)
    assert [row["label"] for row in rows] == [label for label in range(10) for _ in range(10)]
    assert all((row["after_x"], row["after_y"]) == (row["teacher_x"], row["teacher_y"]) for row in rows)
    assert any(row["before_x"] != row["after_x"] for row in rows)


@pytest.mark.parametrize("name", ["paper_teacher", "resnet8x4", "wrn_16_2", "vgg8"])
def test_multiply_adds_are_those_of_the_flop_counter(name: str) -> None:
    network = models.build(name, (32, 32, 3), 10, seed=1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert measure.multiply_adds(network, (32, 32, 3)) == counter.get_total_flops() // 2
