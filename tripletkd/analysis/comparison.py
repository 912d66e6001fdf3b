"""Measurements -> the rows of a suite's table, its verdicts, its curves: the numbers behind all that people read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripletkd.analysis.statistics import (
    Difference,
    Summary,
    detectable,
    difference,
    holm,
    over_images_too,
    significant,
    summarise,
    verdict,
)

if TYPE_CHECKING:
    from tripletkd.analysis.ablation import Line

BASELINES = ("scratch", "kd")


@dataclass(frozen=True)
class Row:
    """One method's line of the table; accuracies and differences in percent of the test images."""

    method: str
    n: int
    test: Summary
    train: Summary
    best_on_test: float  # mean over seeds of the best epoch's test accuracy: optimistic, and marked so
    over: dict[str, Difference]  # baseline -> difference paired by seed
    corrected_p: dict[str, float]  # Holm, over all comparisons of the table
    published: dict[str, Any] | None  # accuracy, source, and whether it lies in our prediction interval of one run
    parameters: int
    failed: dict[str, str]


@dataclass(frozen=True)
class Results:
    """All there is to say of a suite, for tables, pictures and the page."""

    suite: str
    about: str
    split: str
    measured: Mapping[str, Mapping[str, Any]]  # method, the teacher first -> what evaluate.measure found
    histories: Mapping[str, list[dict[str, float]]]  # method -> a row a seed and epoch
    maps: Mapping[str, list[dict[str, float]]]  # method -> what evaluate.output_map found
    rows: Sequence[Row]
    verdicts: Sequence[Mapping[str, Any]]
    published: Mapping[str, Any]
    published_curves: Mapping[str, list[dict[str, float]]]
    ablation_split: str
    ablations: Mapping[str, "Sequence[Line]"]

    def bases(self) -> list[str]:
        """The baselines that were run."""
        return [base for base in BASELINES if any(base in row.over for row in self.rows)]


def accuracies(measured: Mapping[str, Any], key: str = "test_accuracy") -> dict[int, float]:
    """Seed -> percent."""
    return {seed["seed"]: 100 * seed[key] for seed in measured["seeds"]}


def rows(measured: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]) -> list[Row]:
    """The table: the teacher first, then the methods in the order given. measured: method -> its measurements."""
    found = {
        (method, base): gap
        for method in measured
        for base in BASELINES
        if method not in ("teacher", base) and base in measured
        if (gap := difference(accuracies(measured[method]), accuracies(measured[base])))
    }
    # One baseline over another and that one over it are one comparison.
    tested = {frozenset(pair): gap.p for pair, gap in found.items() if gap.p is not None}
    by_pair = dict(zip(tested, holm(list(tested.values())), strict=True))
    corrected = {pair: by_pair[frozenset(pair)] for pair in found if frozenset(pair) in by_pair}
    table = []
    for method, block in measured.items():
        test = summarise(list(accuracies(block).values()))
        table.append(
            Row(
                method=method,
                n=test.n,
                test=test,
                train=summarise(list(accuracies(block, "train_accuracy").values())),
                best_on_test=summarise(list(accuracies(block, "best_test_accuracy").values())).mean,
                over={base: gap for (name, base), gap in found.items() if name == method},
                corrected_p={base: p for (name, base), p in corrected.items() if name == method},
                published=_published(published.get(method), test),
                parameters=block["parameters"],
                failed=block["failed"],
            )
        )
    return table


def _published(figure: Any, test: Summary) -> dict[str, Any] | None:
    if figure is None:
        return None
    inside = None if test.one_run is None else test.one_run[0] <= figure.accuracy <= test.one_run[1]
    return {"accuracy": figure.accuracy, "source": figure.source, "inside_one_run_interval": inside}


def verdicts(measured: Mapping[str, Mapping[str, Any]], claims: Sequence[Any]) -> list[dict[str, Any]]:
    """Each claim whose two methods were run, answered by the rule of README.md, Holm over these claims."""
    pairs = [(claim.method, base) for claim in claims for base in claim.over]
    judged = [(method, base) for method, base in pairs if method in measured and base in measured]
    found = {pair: difference(*(accuracies(measured[name]) for name in pair)) for pair in judged}
    tested = {pair: gap.p for pair, gap in found.items() if gap is not None and gap.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    answers = []
    for (method, base), gap in found.items():
        p, barred = corrected.get((method, base)), bar(measured, method, base)
        answers.append(
            {
                "claim": f"{method} over {base}",
                "method": method,
                "over": base,
                "verdict": "undecided" if barred else verdict(gap, p),
                "barred": barred,
                "difference": None if gap is None else asdict(gap),
                "half_width_over_images_too": over_images_too(_gaps(measured[method], measured[base])),
                "corrected_p": p,
                "detectable": _detectable(gap, len(tested)),
            }
        )
    return answers


def bar(measured: Mapping[str, Mapping[str, Any]], method: str, base: str) -> str | None:
    """Why a difference of the two decides nothing, whatever its p-value; None where it may.

    "failed baseline": the method is above one that is itself below training without a teacher, p < 0.05 uncorrected:
    to beat what does not work here shows nothing. "failed seeds": of the better of the two, seeds failed; those that
    came through are a selection in its favour.
    """
    gap = difference(accuracies(measured[method]), accuracies(measured[base]))
    if gap is None or not gap.mean:
        return None
    if measured[method if gap.mean > 0 else base]["failed"]:
        return "failed seeds"
    if gap.mean > 0 and base != "scratch" and "scratch" in measured:
        below = difference(accuracies(measured[base]), accuracies(measured["scratch"]))
        if below is not None and significant(below.p) and below.mean < 0:
            return "failed baseline"
    return None


def _gaps(first: Mapping[str, Any], second: Mapping[str, Any]) -> NDArray[np.float64]:
    """[S, I], in percent: of each seed that both have and each image, first - second."""
    ours, theirs = _hits(first), _hits(second)
    pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return np.array(pairs).reshape(len(pairs), first["test_images"])


def _hits(block: Mapping[str, Any]) -> dict[int, NDArray[Any]]:
    """Seed -> of each image of the split 100 where its class was predicted, else 0."""
    packed = {seed["seed"]: np.frombuffer(bytes.fromhex(seed["test_correct"]), np.uint8) for seed in block["seeds"]}
    return {seed: 100.0 * np.unpackbits(bits, count=block["test_images"]) for seed, bits in packed.items()}


def _detectable(gap: Difference | None, tests: int) -> float | None:
    if gap is None or gap.p is None or gap.std is None:
        return None
    return detectable(gap.n, gap.std, tests)


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Mean over seeds and, for the band, lowest and highest test accuracy by method and epoch, in percent."""
    lines = []
    for method, history in histories.items():
        by_epoch: dict[int, list[Mapping[str, float]]] = {}
        for row in history:
            if "test_accuracy" in row:
                by_epoch.setdefault(int(row["epoch"]), []).append(row)
        for epoch, group in by_epoch.items():
            test, train = ([100 * row[key] for row in group] for key in ("test_accuracy", "train_accuracy"))
            lines.append(
                {
                    "method": method,
                    "epoch": epoch,
                    "test_accuracy": round(sum(test) / len(test), 4),
                    "lowest": round(min(test), 4),
                    "highest": round(max(test), 4),
                    "train_accuracy": round(sum(train) / len(train), 4),
                }
            )
    return lines
