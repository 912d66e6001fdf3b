"""What identifies a run: which parameters count for it, and what is refused of what is in runs/."""

import copy
import operator
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import reduce
from typing import Any

import pytest
import yaml
from conftest import ROOT

from tripletkd.config.load import load
from tripletkd.config.schema import EquivalentCode, Variant
from tripletkd.errors import UserError
from tripletkd.pipeline.jobs import Runs, is_of, refuse_other_job
from tripletkd.pipeline.stage import Stage
from tripletkd.provenance import versions
from tripletkd.training.job import Job
from tripletkd.training.run_record import Record

STAGE = Stage("evaluate", load(ROOT, ["suite=digits", "method=kd", "suites.digits.seeds=[1,2]"]))
JOB = Runs(STAGE, "d" * 64, "a" * 64).student("kd")


def record(job: Job = JOB, **changes: Any) -> Record:
    """As distill leaves it."""
    of_seed = Record(job.identity, 2, job.code, versions("torch", "numpy"), (8, 8, 1), 10, weights_sha256="b" * 64)
    return replace(of_seed, **changes)


def test_a_record_of_the_job_is_of_it_and_one_of_other_versions_is_trained_anew_but_compared() -> None:
    other = record(versions={"torch": "3", "numpy": "3"})
    assert is_of(STAGE, JOB, record()) and not is_of(STAGE, JOB, other)
    refuse_other_job(STAGE, "seed-2", other.identity, [other.code], JOB)


def test_versions_are_of_all_packages_that_compute() -> None:
    def packages(network: str, **inputs: int) -> set[str]:
        identity = replace(JOB.identity, network=network, inputs=JOB.identity.inputs | inputs)
        return {*replace(JOB, identity=identity).versions}

    assert packages("resnet8") == {"torch", "numpy"} and packages("timm/resnet10t") == {"torch", "numpy", "timm"}
    assert packages("resnet8", size=64) == {"torch", "numpy", "torchvision", "pillow"}


def test_code_is_equivalent_for_the_methods_that_it_was_shown_for() -> None:
    shown = EquivalentCode(code="e" * 64, suite="digits", methods=["kd"], shown="docs")
    run = replace(STAGE.config.run, equivalent_code=[shown])
    stage = replace(STAGE, config=replace(STAGE.config, run=run))
    earlier, pair = record(code="e" * 64), Runs(stage, "d" * 64, "a" * 64).student("pair")
    assert is_of(stage, JOB, earlier) and not is_of(STAGE, JOB, earlier)
    refuse_other_job(stage, "seed-2", earlier.identity, [earlier.code], JOB)
    for job, asked in ((JOB, STAGE), (pair, stage)):
        with pytest.raises(UserError, match=f"computed by code of sha256 {'e' * 64}, the code here has {job.code}"):
            refuse_other_job(asked, "seed-2", job.identity, ["e" * 64], job)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"epochs": 12}}, r"recipe.epochs 12, params.yaml \(suites.digits, .* has 28"),
        ({"params": {"kl": 0.5}}, r"params.kl 0.5, params.yaml .*methods.kd\) has 0.9"),
        ({"split": "validation"}, "split validation, params.yaml .* has test"),
        ({"data_sha256": "e" * 64}, "data_sha256 e{64}, params.yaml .* has d"),
    ],
)
def test_a_record_of_another_job_is_refused_by_its_first_difference(change: dict[str, Any], message: str) -> None:
    merged = {key: getattr(JOB.identity, key) | v if isinstance(v, dict) else v for key, v in change.items()}
    other = replace(JOB.identity, **merged)
    assert not is_of(STAGE, JOB, record(identity=other))
    with pytest.raises(UserError, match=f"seed-2: made with {message}"):
        refuse_other_job(STAGE, "seed-2", other, [JOB.code], JOB)


def test_a_parameter_at_its_default_changes_no_identity() -> None:
    """So that one that is added later leaves what was trained before."""
    words = ["suite=digits", "method=kd", "methods.kd.standardize=false"]
    words += ["suites.digits.student.recipe.schedule.warmup_epochs=0"]
    assert Runs(Stage("distill", load(ROOT, words)), "d" * 64, "a" * 64).student("kd").identity == JOB.identity
    changed = Stage("distill", load(ROOT, [*words, "methods.kd.standardize=true"]))
    assert Runs(changed, "d" * 64, "a" * 64).student("kd").identity.params["standardize"] is True


# --- dvc.yaml names the parameters that a stage depends on ------------------------------------------------------------

# Another value for every key of `run`, beside a suite's of another suite, and one of every method. What a stage makes
# must not depend on a key that dvc.yaml does not name for it.
OTHER: dict[str, Any] = {
    "run.suites": ["digits_resnet"],
    "run.methods": ["pair"],
    "run.ablations": ["lambda"],
    "run.splits": ["validation", "test"],
    "run.split": "validation",
    "run.ablation_split": "test",
    "run.device": "cpu",
    "run.residence": "host",
    "run.deterministic": False,
    "run.equivalent_code": [{"code": "c" * 64, "suite": "digits", "methods": ["kd", "teacher"], "shown": "docs"}],
    "run.cuda_graph": False,
    "run.fuse_seeds": "never",
    "run.checkpoint_minutes": 1,
    "run.export": ["kd"],
    "ablations.margin": [{"margin": 3}, {"margin": 4}],
    "ablations.longer": [{"margin": 3}, {"margin": 4}],
    "claims": [{"method": "kd", "over": ["pair"]}],
}  # fmt: skip


def test_every_key_has_another_value() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert {f"run.{key}" for key in params["run"]} <= OTHER.keys()
    assert not [key for key, value in params["suites"]["cifar10"].items() if value == params["suites"]["digits"][key]]


def of_job(stage: Stage, job: Job) -> list[Any]:
    accepted = [e.code for e in stage.config.run.equivalent_code]
    return [asdict(job.identity), list(job.seeds), accepted]


def of_student(stage: Stage, job: Job) -> list[Any]:
    return [*of_job(stage, job), stage.suite.teacher_floor, of_job(stage, Runs(stage, "d").teacher())]


def variants(stage: Stage) -> list[Variant]:
    return stage.suite.ablations["margin"]


MAKES: dict[str, Callable[[Stage], Any]] = {
    "fetch": lambda stage: [asdict(stage.suite.data), asdict(stage.suite.inputs)],
    "train_teacher": lambda stage: [of_job(stage, Runs(stage, "d").teacher()), stage.suite.holdout],
    "distill": lambda stage: of_student(stage, Runs(stage, "d", "t").student("kd")),
    "evaluate": lambda stage: of_student(stage, Runs(stage, "d", "t").student("kd")),
    "ablate": lambda stage: [of_student(stage, Runs(stage, "d", "t").variant("margin", v)) for v in variants(stage)],
    "export": lambda stage: [list(stage.suite.seeds), stage.suite.teacher.seed],
}  # fmt: skip


def block_of(params: Any, key: str) -> tuple[Any, str]:
    *blocks, last = key.split(".")
    return reduce(operator.getitem, blocks, params), last


@pytest.mark.parametrize("name", MAKES)
def test_a_stage_depends_on_no_key_that_dvc_yaml_does_not_name_for_it(name: str, tmp_path: Any) -> None:
    params_of_stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]["params"]
    item = {"suite": "digits", "method": "kd", "ablation": "margin", "split": "test"}
    named = [key for key in params_of_stage if isinstance(key, str)]
    for kind, value in item.items():
        named = [key.replace(f"${{item.{kind}}}", value) for key in named]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    other = copy.deepcopy(params)
    other["suites"]["digits"] = copy.deepcopy(params["suites"]["cifar10"])
    for method in other["methods"].values():
        method["ce"] = 7
    for key, value in OTHER.items():
        block, last = block_of(other, key)
        block[last] = value
    for key in named:  # which the stage may depend on: as they are
        (block, last), (source, _) = block_of(other, key), block_of(params, key)
        block[last] = source[last]
    words = [f"{kind}={value}" for kind, value in item.items()]
    (tmp_path / "tripletkd").symlink_to(ROOT / "tripletkd")
    made = []
    for content in (params, other):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        made.append(MAKES[name](Stage(name, load(tmp_path, words))))
    assert made[0] == made[1]
