"""Measurements against plain loops, scikit-learn and cases worked out by hand."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch.utils.flop_counter import FlopCounterMode

from tripletkd import models
from tripletkd.data import sources
from tripletkd.data.batches import DeviceSplit, Inputs
from tripletkd.errors import UserError
from tripletkd.evaluation import measure as evaluate
from tripletkd.files import whole
from tripletkd.tracking import run_record as record
from tripletkd.training.loop import Fitted

torch.manual_seed(0)
LOGITS, TARGET = torch.randn(200, 30).double(), torch.randn(200, 30).double()
LABELS = torch.arange(200) % 30


def test_figures_of_a_student() -> None:
    found = evaluate.of_student(LOGITS, LABELS)
    assert found["test_accuracy"] == pytest.approx(accuracy_score(LABELS, LOGITS.argmax(1)))
    assert found["test_cross_entropy"] == pytest.approx(log_loss(LABELS, LOGITS.softmax(1)))
    assert found["test_top5_accuracy"] == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5))
    hits = "".join(f"{byte:08b}" for byte in bytes.fromhex(found["test_correct"]))[:200]
    assert hits == "".join("01"[LOGITS[i].argmax() == LABELS[i]] for i in range(200))
    third = [int(LOGITS[i].argmax() == 3) for i in range(200) if LABELS[i] == 3]
    assert found["test_accuracy_by_class"][3] == pytest.approx(sum(third) / len(third))
    assert "test_top5_accuracy" not in evaluate.of_student(LOGITS[:, :10], LABELS % 10)


def test_calibration_error_in_a_plain_loop() -> None:
    probabilities = LOGITS.softmax(1)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(probabilities, LABELS, strict=True):
        confidence = row.max().item()
        bins[min(max(math.ceil(confidence * 15), 1), 15) - 1].append((confidence, bool(row.argmax() == label)))
    expected = sum(abs(sum(hit - confidence for confidence, hit in group)) for group in bins) / 200
    found = evaluate.of_student(LOGITS, LABELS)
    assert found["test_calibration_error"] == pytest.approx(expected)
    assert found["test_calibration"]["share"] == pytest.approx([len(group) / 200 for group in bins])
    sure = torch.eye(30)[LABELS] * 100
    assert evaluate.of_student(sure, LABELS)["test_calibration_error"] == pytest.approx(0, abs=1e-9)
    assert evaluate.of_student(sure.roll(1, 1), LABELS)["test_calibration_error"] == pytest.approx(1)


def test_figures_of_student_and_teacher() -> None:
    same = evaluate.of_both(TARGET, TARGET, LABELS)
    assert same["agreement"] == 1
    assert same["kl_to_teacher"] == pytest.approx(0, abs=1e-12)
    assert (same["anchor_positive"], same["violated_triplets"]) == (0, 0)
    constant = evaluate.of_both(torch.zeros(200, 30), TARGET, LABELS)  # as near to any image as to any other
    assert constant["violated_triplets"] == 1
    assert constant["anchor_positive"] == pytest.approx(constant["anchor_negative"])
    watched = evaluate.Triplets(TARGET, LABELS)(torch.stack([LOGITS, TARGET]))
    assert watched["violated_triplets"][1] == 0
    assert watched["anchor_positive"][0] == pytest.approx((TARGET - LOGITS).norm(dim=1).mean().item())
    other = evaluate.of_both(LOGITS, TARGET, LABELS)
    p, q = TARGET.softmax(1), LOGITS.softmax(1)
    assert other["kl_to_teacher"] == pytest.approx((p * (p / q).log()).sum(1).mean().item())


RECORD = record.Record(
    suite="digits",
    split="test",
    cell="kd",
    method="kd",
    network="paper_student_quarter",
    image_shape=(8, 8, 1),
    classes=10,
    seeds=[1],
    failed={},
    params={},
    data_sha256="d" * 64,
    teacher_sha256=None,
    environment={},
)


def test_weights_of_another_run_are_noticed(tmp_path: Path) -> None:
    dataset = sources.digits().limited(10)
    train, test = (DeviceSplit(s, Inputs(), torch.device("cpu"), torch.float32) for s in (dataset.train, dataset.test))
    network = models.build("paper_student_quarter", dataset.image_shape, 10, seed=7)
    made = dataclasses.replace(RECORD, data_sha256=dataset.sha256())
    reached = evaluate.of_student(network(next(test.chunks(100))[0]).logits.detach(), test.labels)["test_accuracy"]
    history = [{"seed": 1, "epoch": 1, "test_accuracy": reached, "train_accuracy": 0.1}]
    made = record.write(tmp_path / "run", made, Fitted({1: network}, history, {}, seconds=1.0), {})
    networks = record.read(tmp_path / "run").load_networks(tmp_path / "run")
    measured = evaluate.measure(made, networks, history, train, test, teacher=network)
    assert measured["seeds"][0]["agreement"] == 1
    rows = evaluate.output_map(made, networks, network, test)
    assert [row["label"] for row in rows] == [label for label in range(10) for _ in range(10)]
    assert all((row["after_x"], row["after_y"]) == (row["teacher_x"], row["teacher_y"]) for row in rows)
    assert any(row["before_x"] != row["after_x"] for row in rows)
    assert evaluate.measure(made, {}, history, train, test, teacher=network)["seeds"] == []
    assert evaluate.output_map(made, {}, network, test) == []
    assert measured["parameters"] == sum(p.numel() for p in network.parameters())
    assert measured["multiply_adds"] == 8 * 9 * 64 + 8 * 8 * 9 * 16 + 16 * 8 * 9 * 4 + 16 * 32 + 32 * 10
    with pytest.raises(UserError, match="they are not of one run"):
        evaluate.measure(made, networks, [{**history[0], "test_accuracy": reached + 0.1}], train, test)
    record.weights_path(tmp_path / "run", 1).write_bytes(b"other")
    with pytest.raises(UserError, match=r"seed-1.safetensors: sha256 is"):
        made.load_networks(tmp_path / "run")


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    network = models.build("paper_student_quarter", (8, 8, 1), 10, seed=7).double()
    with torch.no_grad():
        network.get_parameter("fc2.bias").fill_(1 / 3)
    made = record.write(tmp_path / "run", RECORD, Fitted({1: network}, [], {}, seconds=1.0), {})
    [(_, found)] = made.load_networks(tmp_path / "run").items()
    assert found.get_parameter("fc2.bias")[0].item() == 1 / 3
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_log_is_of_the_record_beside_it(tmp_path: Path) -> None:
    """DVC brings back an earlier record from its cache, and leaves the log that lies there: it is another run's."""
    fitted = Fitted({1: models.build("paper_student_quarter", (8, 8, 1), 10, seed=7)}, [], {}, seconds=1.0)
    first, second = tmp_path / "first", tmp_path / "second"
    record.write(first, RECORD, fitted, {"commit": "a"})
    record.write(second, dataclasses.replace(RECORD, params={"margin": 10}), fitted, {"commit": "b"})
    assert record.read_log(first, "record.json") == {"commit": "a"}
    shutil.copy(second / "log.json", first / "log.json")
    assert record.read_log(first, "record.json") == {}
    (first / "log.json").unlink()
    assert record.read_log(first, "record.json") == {}


def test_an_earlier_folder_survives_a_failed_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "file").write_text("earlier")
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name == ".results.partial":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"), whole(folder) as beside:
        beside.mkdir()
    assert [path.read_text() for path in tmp_path.rglob("file")] == ["earlier"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_left_aside_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    aside = tmp_path / ".results.earlier.partial"
    aside.mkdir()
    (aside / "file").write_text("earlier")
    with pytest.raises(OSError, match="No space left"), whole(tmp_path / "results"):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "results" / "file").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("name", ["paper_teacher", "resnet8x4", "wrn_16_2", "vgg8"])
def test_multiply_adds_are_those_of_the_flop_counter(name: str) -> None:
    network = models.build(name, (32, 32, 3), 10, seed=1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert evaluate.multiply_adds(network, (32, 32, 3)) == counter.get_total_flops() // 2
