"""What a stage refuses of the records that stand in runs/: those of another job than params.yaml describes."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from conftest import ROOT
from small_run import CPU

from stages import _setup
from stages._command import Stage
from tripletkd.config.load import load
from tripletkd.data import sources
from tripletkd.data.batches import DeviceData
from tripletkd.errors import UserError
from tripletkd.training.compute import select_compute
from tripletkd.training.job import Job
from tripletkd.training.run_record import Record

TEACHER = "a" * 64
STAGE = Stage("evaluate", load(ROOT, ["suite=digits", "method=kd", "suites.digits.seeds=[1,2]"]))


@pytest.fixture(scope="module")
def job() -> Job:
    """What distill is asked for."""
    compute = select_compute("cpu", "float32", "auto", False, 8)
    data = DeviceData.load(sources.digits().limited(2), STAGE.suite.inputs.build(1), CPU, compute.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return _setup.job_of_method(STAGE, _setup.Setup(data, compute), TEACHER)


def of_seed(job: Job, seed: int, **changes: Any) -> Record:
    """As distill leaves it, read again."""
    made = Record(
        suite="digits",
        split="test",
        name="kd",
        method="kd",
        network=job.network,
        image_shape=(8, 8, 1),
        classes=10,
        seed=seed,
        params=json.loads(json.dumps(job.described_params())),
        data_sha256=job.conditions.data_sha256,
        teacher_sha256=TEACHER,
        code=job.conditions.code,
        fingerprint=job.fingerprint(seed),
        environment={"torch": "2", "precision": "float32", "deterministic": True},
        trained_with=[1, 2],
        weights_sha256="b" * 64,
    )
    return replace(made, **changes)


def test_a_record_of_the_job_is_accepted_wherever_it_was_trained(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    other = {"torch": "3", "precision": "float32", "deterministic": True}
    _setup.refuse_other_job(STAGE, of_seed(job, 2, environment=other), job)
    assert _setup.is_of(job, of_seed(job, 2), [])


def test_code_that_params_yaml_calls_equivalent_is_accepted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    earlier = replace(job, conditions=replace(job.conditions, code="e" * 64))
    record = of_seed(earlier, 1)
    with pytest.raises(UserError, match=f"code of sha256 {'e' * 64}, params.yaml .* has {job.conditions.code}"):
        _setup.refuse_other_job(STAGE, record, job)
    assert not _setup.is_of(job, record, [])
    assert _setup.is_of(job, record, ["e" * 64])
    assert not _setup.is_of(job, replace(record, fingerprint=job.fingerprint(1)), ["e" * 64])
    run = replace(STAGE.config.run, equivalent_code=["e" * 64])
    stage = replace(STAGE, config=replace(STAGE.config, run=run))
    _setup.refuse_other_job(stage, record, job)


RECIPE, METHOD = asdict(STAGE.suite.student.recipe), asdict(STAGE.suite.methods["kd"])


@pytest.mark.fault
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"params": {"recipe": RECIPE | {"epochs": 12}}},
            "recipe.epochs 12, params.yaml .*digits, its student.* 28",
        ),
        ({"params": {"method": METHOD | {"kl": 0.5}}}, r"method.kl 0.5, params.yaml .*methods.kd\) has 0.9"),
        ({"params": {"inputs": {"mean": [0.5]}}}, r"inputs.mean \[0.5\], params.yaml .* has \[0.307\]"),
        ({"params": {"evaluate_every": 1}}, "evaluate_every 1, params.yaml .* has 4"),
        ({"network": "resnet8"}, "network resnet8, params.yaml .* has paper_student_quarter"),
        ({"environment": {"precision": "tf32", "deterministic": True}}, "precision tf32, params.yaml .* has float32"),
        ({"environment": {"precision": "float32"}}, "deterministic None, params.yaml .* has True"),
        ({"split": "validation"}, "split validation, params.yaml .* has test"),
        ({"data_sha256": "e" * 64}, "images of sha256 e{64}, params.yaml .* has"),
        ({"teacher_sha256": "e" * 64}, "a teacher of sha256 e{64}, params.yaml .* has a{64}"),
        ({"code": "e" * 64}, "code of sha256 e{64}, params.yaml .* has"),
    ],
)
def test_a_record_of_another_job_is_refused(
    job: Job, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    record = of_seed(job, 2)
    if params := changes.get("params"):
        changes = {"params": record.params | params}
    with pytest.raises(UserError, match=f"runs/digits/test/kd/seed-2: made with {message}"):
        _setup.refuse_other_job(STAGE, replace(record, **changes), job)
