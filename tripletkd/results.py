"""The results of a suite as pandas DataFrames, for a notebook: accuracies in percent, differences in points."""

from __future__ import annotations  # pandas is imported where it is used

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SHARES = (  # of images, in [0, 1] in the files
    "train_accuracy",
    "test_accuracy",
    "validation_accuracy",
    "test_calibration_error",
    "test_top5_accuracy",
    "agreement",
    "violated_triplets",
    "best_test_accuracy",
)


@dataclass(frozen=True)
class Results:
    """Holds what results/<suite>/ has of one split.

    Columns that end in `_percent` are percentages, those in `_points` differences of percentages. Cross-entropies and
    divergences are in nats. The distances `anchor_positive` and `anchor_negative` are those of logits.

    Attributes:
        seeds: A row for each method and seed, the teacher among them: the figures of the network of the last epoch.
        history: A row for each method, seed and epoch: learning rate, terms of the loss, and, in the epochs that were
            evaluated, accuracies.
        claims: A row for each claim: `method` and `over`, the difference with its 95 % interval as a half-width, the
            corrected p-value and the verdict.
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
        UserError: If there are no results of that suite and split.
    """
    import pandas as pd

    place = Path(folder) / suite
    files = sorted((place / "measured" / split).glob("*.json"))
    if not files or not (place / "table.json").is_file():
        raise UserError(f"{place}: no results of the {split} split; run `dvc repro` with {suite} in run.suites")
    rows, histories = [], []
    for file in files:
        measured = json.loads(file.read_text(encoding="utf-8"))
        rows += [{"method": file.stem, **_figures(seed)} for seed in measured["seeds"]]
        if (history := file.with_suffix(".csv")).is_file():
            histories.append(_in_percent(pd.read_csv(history)).assign(method=file.stem))
    claims = pd.json_normalize(json.loads((place / "table.json").read_text(encoding="utf-8"))["verdicts"])
    claims.columns = claims.columns.str.replace("difference_points.", "", regex=False)
    named = {"mean": "difference_points", "half_width": "half_width_points", "std": "std_points"}
    return Results(
        _in_percent(pd.DataFrame(rows)), pd.concat(histories, ignore_index=True), claims.rename(columns=named)
    )


def _figures(seed: dict[str, object]) -> dict[str, object]:
    """Return the figures of a seed that are one number."""
    return {name: value for name, value in seed.items() if isinstance(value, int | float)}


def _in_percent(frame: pd.DataFrame) -> pd.DataFrame:
    shares = [name for name in SHARES if name in frame]
    return frame.assign(**{name: 100 * frame[name] for name in shares}).rename(
        columns={n: f"{n}_percent" for n in shares}
    )
