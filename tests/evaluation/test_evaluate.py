"""What the evaluate stage refuses: records of a run under other parameters."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from conftest import ROOT

from stages import evaluate
from stages._command import Stage
from tripletkd.config.load import load
from tripletkd.errors import UserError
from tripletkd.training.run_record import Record, TrainedRun

STAGE = Stage("evaluate", load(ROOT, ["suite=digits", "method=kd", "suites.digits.seeds=[1,2]"]))
HASHES = {"data_sha256": "d" * 64, "teacher_sha256": "a" * 64, "weights_sha256": "b" * 64, "fingerprint": "f" * 64}


def of_seed(seed: int, **changes: Any) -> Record:
    """As distill leaves it, read again."""
    suite = STAGE.suite
    blocks = {"method": suite.methods["kd"], "recipe": suite.student.recipe, "inputs": suite.inputs}
    made = Record(
        suite="digits",
        split="test",
        name="kd",
        method="kd",
        network=suite.student.network,
        image_shape=(8, 8, 1),
        classes=10,
        seed=seed,
        params=json.loads(json.dumps({name: asdict(block) for name, block in blocks.items()})),
        environment={"torch": "2", "precision": "float32"},
        trained_with=[1, 2],
        **HASHES,
    )
    return replace(made, **changes)


def params(block: str, **values: Any) -> dict[str, Any]:
    found = of_seed(1).params
    return found | {block: found[block] | values}


def test_records_as_params_yaml_says_are_measured_wherever_they_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    other = of_seed(2, environment={"torch": "3", "precision": "float32"})
    evaluate.refuse_unlike_records(STAGE, TrainedRun([of_seed(1), other], {}, []))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": params("recipe", epochs=12)}, "recipe.epochs 12, params.yaml .*digits, its student.* has 28"),
        ({"params": params("method", kl=0.5)}, r"method.kl 0.5, params.yaml .*methods.kd\) has 0.9"),
        ({"params": params("inputs", mean=[0.5])}, r"inputs.mean \[0.5\], params.yaml .* has \[0.307\]"),
        ({"params": {}}, "inputs None, params.yaml .* has"),
        ({"network": "resnet8"}, "network resnet8, params.yaml .* has paper_student_quarter"),
        ({"environment": {"torch": "2"}}, "precision None, params.yaml .* has float32"),
        ({"split": "validation"}, "split validation, params.yaml .* has test"),
    ],
)
def test_records_of_a_run_under_other_parameters_are_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = TrainedRun([of_seed(1), of_seed(2, **changes)], {}, [])
    with pytest.raises(UserError, match=f"runs/digits/test/kd, seed 2: made with {message}"):
        evaluate.refuse_unlike_records(STAGE, run)
