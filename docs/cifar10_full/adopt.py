"""Take students that were trained at a36df7f over as runs of this version: records in its format, weights as they are.

    PYTHONPATH=. python docs/cifar10_full/adopt.py FOLDER

FOLDER holds <method>/seed-<N>/, and teacher/, as the stages of that commit wrote them. What they compute is what the
code computes now: README.md beside this file says how that was shown. params.yaml has to name their code as equivalent.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any

from stages._command import Stage
from stages._setup import job_of_method, job_of_teacher, set_up
from tripletkd.config.load import load
from tripletkd.errors import UserError
from tripletkd.files import whole, write_json
from tripletkd.provenance import sha256
from tripletkd.training import run_record
from tripletkd.training.job import Job

ROOT = Path(__file__).parents[2]
COMMIT = "a36df7f712e7e6aff9e4bb991d17af1cb9d94f0e"
RENAMED = {"folded": "fused_seeds", "captured": "cuda_graph"}  # in the environment


def main(source: Path) -> None:
    teacher = source / "teacher"
    weights = sha256(teacher / "weights" / "seed-0.safetensors")
    setup = set_up(stage("scratch"))
    adopt(teacher, job_of_teacher(replace(stage("scratch"), name="train_teacher"), setup), 0)
    for folder in sorted(source.glob("*/seed-*")):
        method, seed = folder.parent.name, int(folder.name.removeprefix("seed-"))
        adopt(folder, job_of_method(stage(method), setup, weights), seed)


def stage(method: str) -> Stage:
    return Stage("distill", load(Path.cwd(), ["suite=cifar10", "split=test", f"method={method}"]))


def code() -> str:
    """Hash what git has of the code at that commit."""
    words = ["git", "ls-tree", "-r", COMMIT, "tripletkd", "stages"]
    return digest(subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout).hexdigest()


def adopt(folder: Path, job: Job, seed: int) -> None:
    """Write the record of a seed, with weights and history copied, where the stages of this version look for it."""
    old = json.loads((folder / "record.json").read_text())
    job = replace(job, conditions=replace(job.conditions, code=code()))
    refuse_other(folder, old, job, seed)
    place = run_record.seed_folder(Path("runs", "cifar10", "test", job.key.name), seed)
    with whole(place) as beside:
        beside.mkdir(parents=True)
        shutil.copy(folder / "weights" / f"seed-{seed}.safetensors", beside / run_record.WEIGHTS)
        shutil.copy(folder / "history.csv", beside / run_record.HISTORY)
        write_json(beside / run_record.RECORD, record(old, job, seed, beside))
    log = json.loads((folder / "log.json").read_text())
    del log["belongs_to_sha256"]
    run_record.write_log(Path("logs", *place.parts[1:-1], f"seed-{seed}.json"), place / run_record.RECORD, log)
    run_record.read_run(place.parent, [seed])
    print(f"{place}: taken over")


def refuse_other(folder: Path, old: dict[str, Any], job: Job, seed: int) -> None:
    """Raise UserError if the old record is of anything else than params.yaml describes."""
    params = job.described_params()
    recipe = {**params["recipe"], **params["recipe"]["optimizer"], **params["recipe"]["schedule"]}
    expected = {
        "seeds": [seed],
        "failed": {},
        "network": job.network,
        "data_sha256": job.conditions.data_sha256,
        "teacher_sha256": job.conditions.teacher_sha256,
        **{key: params["method"][key] for key in old["params"].get("method", {})},
        **{key: recipe[key] for key in old["params"]["recipe"]},
        "inputs": params["inputs"],
        "precision": job.conditions.precision,
        "deterministic": job.conditions.deterministic,
    }
    found = old | old["params"] | old["params"].get("method", {}) | old["params"]["recipe"] | old["environment"]
    for key, value in expected.items():
        if json.dumps(found[key]) != json.dumps(value):
            raise UserError(f"{folder}: {key} is {found[key]}, params.yaml has {value}")
    rows = run_record.read_history(folder / "history.csv")
    evaluated = [row["epoch"] for row in rows if "test_accuracy" in row]
    if len(rows) != job.recipe.epochs or evaluated[0] != job.conditions.evaluate_every:
        raise UserError(f"{folder}: history of {len(rows)} epochs, evaluated first after {evaluated[0]}")


def record(old: dict[str, Any], job: Job, seed: int, files: Path) -> dict[str, Any]:
    """Make the record of this version."""
    if sha256(files / run_record.WEIGHTS) != old["weights_sha256"][str(seed)]:
        raise UserError(f"{files}: the weights are not those of the record")
    kept = ("suite", "split", "method", "network", "image_shape", "classes", "data_sha256", "teacher_sha256")
    return {
        **{key: old[key] for key in kept},
        "name": old["cell"],
        "seed": seed,
        "params": job.described_params(),
        "code": job.conditions.code,
        "fingerprint": job.fingerprint(seed),
        "environment": {RENAMED.get(key, key): value for key, value in old["environment"].items()},
        "trained_with": [seed],
        "failed": None,
        "weights_sha256": old["weights_sha256"][str(seed)],
        "history_sha256": sha256(files / run_record.HISTORY),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
