"""The results of a suite as pandas DataFrames, for a notebook: accuracies in percent, differences in points."""

from __future__ import annotations  # pandas is imported where it is used

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tripletkd.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from tripletkd.evaluation.measurement import Measurement
    from tripletkd.files import Json

SHARES = (  # of a seed's figures, those that are in [0, 1] in the files
    "train_accuracy",
    "test_accuracy",
    "test_calibration_error",
    "test_top5_accuracy",
    "agreement",
    "violated_triplets",
    "best_test_accuracy",
)
# In what students are compared
ALIKE = ("data_sha256", "teacher_sha256", "initial_sha256", "network", "recipe", "inputs", "precision")
SHARES_BY_EPOCH = ("train_accuracy", "test_accuracy", "violated_triplets")  # the others are terms of a loss


@dataclass(frozen=True)
class Results:
    """Holds what results/<suite>/ has of one split.

    Columns that end in `_percent` are percentages, those in `_points` differences of percentages. Cross-entropies and
    divergences are in nats. The distances `anchor_positive` and `anchor_negative` are those of logits.

    Attributes:
        seeds: A row for each method and seed, the teacher among them: the figures of the network of the last epoch.
        history: A row for each method, seed and epoch: learning rate, terms of the loss, and, in the epochs that were
            evaluated, accuracies and losses. `train_loss` and `test_loss` are of the whole split as one batch, in eval
            mode, with one x' an image and labels that are not smoothed. Seeds that failed are left out.
        claims: A row for each claim: `method` and `over`, the difference with its 95 % interval as a half-width, the
            corrected p-value and the verdict. Empty where the table is of another split.
    """

    seeds: pd.DataFrame
    history: pd.DataFrame
    claims: pd.DataFrame


def load(suite: str, split: str = "test", folder: str | Path = "results") -> Results:
    """Read the results of a suite.

    Args:
        suite: Such as "digits".
        split: "test" or "validation".
        folder: The project's results/.

    Raises:
        UserError: If there are no results of that suite and split, or its files do not belong together.
    """
    import pandas as pd

    from tripletkd.evaluation import measurement

    if not Path(folder).is_dir():
        raise UserError(f"{Path(folder).absolute()}: not there; expected the project's results/: give it as folder")
    place = Path(folder) / suite
    measured_in = place / "measured" / split
    files = sorted(measured_in.glob("*.json"))
    if not files or not (place / "table.json").is_file():
        there = ", ".join(sorted(path.parent.name for path in Path(folder).glob("*/table.json"))) or "none"
        raise UserError(
            f"{place}: no results of the {split} split; there are {there}; `dvc repro` makes others, with {suite} "
            "in run.suites"
        )
    table = json.loads((place / "table.json").read_text(encoding="utf-8"))
    if table["split"] == split:
        files = [measured_in / f"{row['method']}.json" for row in table["rows"]]
    rows, histories = list[dict[str, object]](), list[pd.DataFrame]()
    together = {file.stem: measurement.read(file, suite, file.stem) for file in files}
    _refuse_unlike(measured_in, together, table["rows"] if table["split"] == split else [])
    for file in files:
        measured = together[file.stem]
        rows += [{"method": file.stem, **_figures(asdict(seed))} for seed in measured.seeds]
        if measured.history_sha256:
            history = pd.DataFrame(measurement.read_beside(measured_in, measured))
            if "method" in history:
                raise UserError(f"{file}: a term of its loss is called method, as a column here; give it another name")
            histories.append(_in_percent(history, SHARES_BY_EPOCH, split).assign(method=file.stem))
    claims = pd.json_normalize(table["verdicts"] if table["split"] == split else [])
    if "difference_points.mean" in claims:  # beside it, None where the two methods share no seed
        claims = claims.drop(columns="difference_points", errors="ignore")
    names = {name: name.removeprefix("difference_points.") for name in claims}
    named = {"mean": "difference_points", "half_width": "half_width_points", "std": "std_points"}
    return Results(
        _in_percent(pd.DataFrame(rows), SHARES, split),
        pd.concat(histories, ignore_index=True) if histories else pd.DataFrame(columns=["method", "seed", "epoch"]),
        claims.rename(columns=names).rename(columns=named),
    )


def _refuse_unlike(place: Path, measured: Mapping[str, Measurement], rows: Sequence[Json]) -> None:
    """Raise UserError if the table has other mean accuracies, or the students are not of one experiment."""
    from tripletkd.training.identity import as_block, first_difference

    for row in rows:
        accuracies = [100 * seed.test_accuracy for seed in measured[row["method"]].seeds]
        found, said = (fmean(accuracies) if accuracies else None), row["test_accuracy_percent"]["mean"]
        if found is not None and not isclose(found, said or 0.0):
            raise UserError(
                f"{place / row['method']}.json: its mean accuracy is {found}, the table has {said}: it was measured "
                "again since; `dvc repro` makes the table anew"
            )
    teachers = {*measured["teacher"].weights_sha256.values()} if "teacher" in measured else set()
    for name, each in measured.items():
        if teachers and each.identity.teacher_sha256 not in (None, *teachers):
            raise UserError(
                f"{place / name}.json: of another teacher than teacher.json describes; figures of unlike runs are not "
                "compared: run their stages again"
            )
    students = [as_block(each.identity) for name, each in measured.items() if name != "teacher"]
    students.sort(key=lambda block: block["teacher_sha256"] is not None)  # those that have one stand together
    for one, other in pairwise(students):
        shared = [key for key in ALIKE if key != "teacher_sha256" or (one[key] and other[key])]
        if difference := first_difference({k: one.get(k) for k in shared}, {k: other.get(k) for k in shared}):
            key, value, another = difference
            raise UserError(
                f"{place}: {one['name']} was made with {key} {value}, {other['name']} with {another}; figures of "
                "unlike runs are not compared: run their stages again"
            )


def _figures(seed: dict[str, object]) -> dict[str, object]:
    """Return the figures of a seed that are one number."""
    return {name: value for name, value in seed.items() if isinstance(value, int | float)}


def _in_percent(frame: pd.DataFrame, shares: Sequence[str], split: str) -> pd.DataFrame:
    """Turn shares into percent, and call by its name what was measured on another split than the test split."""
    there = [name for name in shares if name in frame]
    frame = frame.assign(**{name: 100 * frame[name] for name in there})
    frame = frame.rename(columns={name: f"{name}_percent" for name in there})
    return frame.rename(columns=lambda name: re.sub("(^|_)test_", rf"\1{split}_", name))
