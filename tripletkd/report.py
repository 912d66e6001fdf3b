"""Measurements -> the rows of a suite's table, its verdicts, its curves: the numbers behind all that people read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .statistics import Cell, Difference, cell, difference, holm, verdict

if TYPE_CHECKING:
    from .ablation import Line

BASELINES = ("scratch", "kd")


@dataclass(frozen=True)
class Row:
    """One method's line of the table; accuracies and differences in percent of the test images."""

    method: str
    n: int
    test: Cell
    train: Cell
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
    tested = {key: gap.p for key, gap in found.items() if gap.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    table = []
    for method, block in measured.items():
        test = cell(list(accuracies(block).values()))
        table.append(
            Row(
                method=method,
                n=test.n,
                test=test,
                train=cell(list(accuracies(block, "train_accuracy").values())),
                best_on_test=cell(list(accuracies(block, "best_test_accuracy").values())).mean,
                over={base: gap for (name, base), gap in found.items() if name == method},
                corrected_p={base: p for (name, base), p in corrected.items() if name == method},
                published=_published(published.get(method), test),
                parameters=block["parameters"],
                failed=block["failed"],
            )
        )
    return table


def _published(figure: Any, test: Cell) -> dict[str, Any] | None:
    if figure is None:
        return None
    inside = None if test.one_run is None else test.one_run[0] <= figure.accuracy <= test.one_run[1]
    return {"accuracy": figure.accuracy, "source": figure.source, "inside_one_run_interval": inside}


def verdicts(measured: Mapping[str, Mapping[str, Any]], claims: Sequence[Any]) -> list[dict[str, Any]]:
    """Each claim whose two methods were run, answered by the rule of statistics.verdict, Holm over these claims."""
    pairs = [(claim.method, base) for claim in claims for base in claim.over]
    judged = [(method, base) for method, base in pairs if method in measured and base in measured]
    gaps = [difference(accuracies(measured[method]), accuracies(measured[base])) for method, base in judged]
    tested = [i for i, gap in enumerate(gaps) if gap is not None and gap.p is not None]
    corrected = dict(zip(tested, holm([gaps[i].p for i in tested]), strict=True))  # type: ignore[union-attr,misc]
    return [
        {
            "claim": f"{method} over {base}",
            "method": method,
            "over": base,
            "verdict": verdict(gap, corrected.get(i)),
            "difference": None if gap is None else asdict(gap),
            "corrected_p": corrected.get(i),
        }
        for i, ((method, base), gap) in enumerate(zip(judged, gaps, strict=True))
    ]


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
