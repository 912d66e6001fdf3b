"""Measurements -> the table, its verdicts, the curves: what tabulate writes for one suite."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .statistics import Cell, Difference, cell, difference, holm, verdict

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
    judged = [claim for claim in claims if claim.method in measured and claim.over in measured]
    gaps = [difference(accuracies(measured[c.method]), accuracies(measured[c.over])) for c in judged]
    tested = [i for i, gap in enumerate(gaps) if gap is not None and gap.p is not None]
    corrected = dict(zip(tested, holm([gaps[i].p for i in tested]), strict=True))  # type: ignore[union-attr,misc]
    return [
        {
            "claim": f"{claim.method} over {claim.over}",
            "verdict": verdict(gap, corrected.get(i)),
            "difference": None if gap is None else asdict(gap),
            "corrected_p": corrected.get(i),
        }
        for i, (claim, gap) in enumerate(zip(judged, gaps, strict=True))
    ]


# --- what people read -------------------------------------------------------------------------------------------------


def markdown(
    suite: str,
    table: Sequence[Row],
    answers: Sequence[Mapping[str, Any]],
    published: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """table.md: the table, the verdicts in sentences, and how to read both.

    published: name -> figure; those of methods that were not run here stand below the others, as references.
    """
    references = {name: figure for name, figure in published.items() if name not in {row.method for row in table}}
    bases = [base for base in BASELINES if any(base in row.over for row in table)]
    head = [
        "method",
        "n",
        "test accuracy, %",
        "95 % interval",
        *(f"over {base}" for base in bases),
        "published",
        "best on test",
        "train, %",
    ]
    lines = [f"# {suite}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in table:
        differences = [_gap(row.over.get(base), row.corrected_p.get(base)) for base in bases]
        figure = "" if row.published is None else f"{row.published['accuracy']:.2f}"
        interval = "" if row.test.half_width is None else f"± {row.test.half_width:.2f}"
        best, train = f"*{row.best_on_test:.2f}*", f"{row.train.mean:.2f}"
        lines.append(_line([row.method, str(row.n), _mean(row.test), interval, *differences, figure, best, train]))
    for name, reference in references.items():
        own = {"method": name, "published": f"{reference.accuracy:.2f}"}
        lines.append(_line([own.get(column, "") for column in head]))
    lines += [
        "",
        "Mean ± standard deviation over n seeds, last epoch, and the 95 % interval of the mean. A difference is paired "
        "by seed, with its 95 % interval; **bold** where its p-value, Holm-corrected over the table's comparisons, is "
        "below 0.05. *Best on test* picks each run's best epoch by the test images: no result, there to compare with "
        "papers that report it. The teacher is one run.",
    ]
    sources = [f"- {row.method}: {_against(row)}" for row in table if row.published]
    sources += [f"- {name}: published {f.accuracy:.2f} ({f.source}); not run here" for name, f in references.items()]
    lines += ["", "## Against published figures", "", *sources] if sources else []
    lines += ["", "## Verdicts", "", *[f"- {sentence(answer)}" for answer in answers]] if answers else []
    failed = [f"- {row.method}, seed {seed}: {why}" for row in table for seed, why in row.failed.items()]
    lines += ["", "## Failed seeds", "", *failed] if failed else []
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(value: Cell) -> str:
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def _gap(gap: Difference | None, corrected_p: float | None) -> str:
    if gap is None:
        return ""
    text = f"{gap.mean:+.2f}" if gap.half_width is None else f"{gap.mean:+.2f} ± {gap.half_width:.2f}"
    return f"**{text}**" if corrected_p is not None and corrected_p < 0.05 else text


def _against(row: Row) -> str:
    assert row.published is not None
    text = f"published {row.published['accuracy']:.2f} ({row.published['source']})"
    if row.test.one_run is None:
        return f"{text}; ours {row.test.mean:.2f}, too few runs for a prediction interval"
    where = "inside" if row.published["inside_one_run_interval"] else "OUTSIDE"
    low, high = row.test.one_run
    return f"{text}; {where} our 95 % prediction interval of one run, {low:.2f} to {high:.2f}"


def sentence(answer: Mapping[str, Any]) -> str:
    """A verdict with the numbers behind it."""
    gap = answer["difference"]
    if gap is None or gap["p"] is None:
        return f"{answer['claim']}: **undecided**, fewer than two seeds in common"
    return (
        f"{answer['claim']}: **{answer['verdict']}**, {gap['mean']:+.2f} ± {gap['half_width']:.2f} points over "
        f"{gap['n']} seeds, corrected p = {answer['corrected_p']:.2g}; {gap['detectable']:.2f} points would have been "
        "found with 80 % power"
    )


def table_csv(table: Sequence[Row]) -> str:
    """A line a method, plain numbers."""
    out = io.StringIO()
    columns = [
        "method",
        "n",
        "test_mean",
        "test_std",
        "test_half_width",
        "train_mean",
        "best_on_test",
        "published",
        "parameters",
    ]
    columns += [f"over_{base}{suffix}" for base in BASELINES for suffix in ("", "_half_width", "_corrected_p")]
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in table:
        line: dict[str, Any] = {
            "method": row.method,
            "n": row.n,
            "test_mean": row.test.mean,
            "test_std": row.test.std,
            "test_half_width": row.test.half_width,
            "train_mean": row.train.mean,
            "best_on_test": row.best_on_test,
            "published": row.published and row.published["accuracy"],
            "parameters": row.parameters,
        }
        for base, gap in row.over.items():
            line |= {
                f"over_{base}": gap.mean,
                f"over_{base}_half_width": gap.half_width,
                f"over_{base}_corrected_p": row.corrected_p.get(base),
            }
        writer.writerow(
            {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in line.items()
                if value is not None
            }
        )
    return out.getvalue()


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


def plot_curves(path: Path, suite: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Test accuracy by epoch: a line a method, a band from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    methods = list(dict.fromkeys(line["method"] for line in lines))
    styles = ["-", "--", "-.", ":"]  # readable without colour
    for i, method in enumerate(methods):
        mine = [line for line in lines if line["method"] == method]
        epochs = [line["epoch"] for line in mine]
        axes.fill_between(
            epochs,
            [line["lowest"] for line in mine],
            [line["highest"] for line in mine],
            alpha=0.12,
            linewidth=0,
            color=f"C{i % 10}",
        )
        axes.plot(
            epochs,
            [line["test_accuracy"] for line in mine],
            styles[i % 4],
            color=f"C{i % 10}",
            label=method,
            linewidth=1.4,
        )
    final = [line["test_accuracy"] for line in lines if line["epoch"] == max(other["epoch"] for other in lines)]
    low, high = min(final), max(line["highest"] for line in lines)
    axes.set_ylim(low - 1.5 * max(high - low, 2), high + 0.5)  # the end of training, where methods differ
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title=f"{suite}: mean over seeds, band from lowest to highest")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, frameon=False, loc="lower right")
    figure.savefig(path, dpi=120, format="png", metadata={"Software": None})
    pyplot.close(figure)
