"""Where each seed of a suite was computed: results/<suite>/environment.json, which git shows and DVC does not hash.

What was computed is hashed, where it was computed is told: on another machine with the same arithmetic every other file
of results/ stays the same.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.files import Json, write_json
from tripletkd.training.run_record import RECORD, read_log, seed_folder

if TYPE_CHECKING:
    from tripletkd.evaluation.measurement import Measurement
    from tripletkd.pipeline.stage import Stage

FILE = "environment.json"


def refresh(stage: "Stage", measured: "list[Measurement]") -> list[str]:
    """Write where the seeds of a suite were computed, as far as it is known.

    The log of a seed that is here says it. Of a seed without a log, the file of before says it for the same weights.

    Args:
        stage: Of the suite.
        measured: Its runs.

    Returns:
        A line for each environment: the processor or the GPU, and the seeds where there are several environments.
    """
    path = stage.path("results", FILE)
    before, environments, seeds = _read(path), list[Json](), dict[str, dict[str, Json]]()
    for run in measured:
        for seed, weights in run.weights_sha256.items():
            found = _from_log(stage, run, seed) or before.get(weights)
            if found is None:
                continue
            if found not in environments:
                environments.append(found)
            name = f"{run.identity.split}/{run.identity.name}"
            where = {"environment": environments.index(found), "weights_sha256": weights}
            seeds.setdefault(name, {})[str(seed)] = where
    write_json(path, {"environments": environments, "seeds": seeds})
    known = sum(len(of) for of in seeds.values())
    unknown = sum(len(run.weights_sha256) for run in measured) - known
    said = [f"{unknown} other seeds: no log says where they were computed"] if unknown else []
    return [*_summary(environments, seeds, is_whole=not unknown), *said]


def _read(path: Path) -> dict[str, Json]:
    """Read the environments that the file has, by the weights that were computed there."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        places = [place for run in known["seeds"].values() for place in run.values()]
        return {place["weights_sha256"]: known["environments"][place["environment"]] for place in places}
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # it is told, not computed from
        return {}


def _from_log(stage: "Stage", run: "Measurement", seed: int) -> Json | None:
    place = (run.identity.split, run.identity.name)
    record = seed_folder(stage.path("runs", *place), seed) / RECORD
    log = read_log(stage.path("logs", *place, f"seed-{seed}.json"), record) if record.is_file() else {}
    return log.get("environment")


def _summary(environments: list[Json], seeds: dict[str, dict[str, Json]], is_whole: bool) -> Iterator[str]:
    for number, environment in enumerate(environments):
        runs = {name: [s for s, place in of.items() if place["environment"] == number] for name, of in seeds.items()}
        names = "; ".join(f"{name} {', '.join(of)}" for name, of in runs.items() if of)
        place = f"{environment.get('device')}, PyTorch {environment.get('torch')}"
        yield f"all seeds on {place}" if len(environments) == 1 and is_whole else f"{place}: {names}"
