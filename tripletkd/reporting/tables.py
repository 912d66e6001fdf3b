"""What people read as text: a suite's tables, its verdicts in sentences; ** and * stand for bold and italic."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tripletkd.analysis.ablation import Line
from tripletkd.analysis.comparison import BASELINES, Results, Row
from tripletkd.analysis.statistics import ALPHA, Difference, Summary, significant, summarise


@dataclass(frozen=True)
class Table:
    """Text in rows; the first column is names, the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        return ["| " + " | ".join(row) + " |" for row in (self.head, rule, *self.rows)]


def comparison(results: Results) -> Table:
    """A row a method, and below one for each published figure of a method that was not run here."""
    bases, split = results.bases(), results.split
    over = [f"over {base}" for base in bases]
    head = ["method", "n", f"{split} accuracy, %", "95 % interval", *over, "published", f"best on {split}", "train, %"]
    rows = []
    for row in results.rows:
        differences = [with_interval(row.over.get(base), row.corrected_p.get(base)) for base in bases]
        figure = "" if row.published is None else f"{row.published['accuracy']:.2f}"
        interval = "" if row.test.half_width is None else f"± {row.test.half_width:.2f}"
        best, train = f"*{row.best_on_test:.2f}*", f"{row.train.mean:.2f}"
        mean = mean_and_deviation(row.test)
        rows.append([row.method, str(row.n), mean, interval, *differences, figure, best, train])
    for name, reference in _references(results).items():
        own = {"method": name, "published": f"{reference.accuracy:.2f}"}
        rows.append([own.get(column, "") for column in head])
    return Table(head, rows)


def _references(results: Results) -> Mapping[str, Any]:
    run = {row.method for row in results.rows}
    return {name: figure for name, figure in results.published.items() if name not in run}


BARS = {  # of report.bar -> its mark, and the sentence
    "failed baseline": ("†", "is above {} (not judged: below scratch)"),
    "failed seeds": ("‡", "is not judged against {} (seeds of the better one failed)"),
}
MEASURES = {  # of evaluate.measure -> column, factor
    "test_top5_accuracy": ("top 5, %", 100),
    "test_cross_entropy": ("cross-entropy", 1),
    "test_calibration_error": ("calibration error, %", 100),
    "agreement": ("agreement with teacher, %", 100),
    "kl_to_teacher": ("KL to teacher", 1),
    "violated_triplets": ("violated triplets, %", 100),
}


def measures(results: Results) -> Table:
    """More than accuracy: a row a method, mean and standard deviation over seeds."""
    known = {key for block in results.measured.values() for seed in block["seeds"] for key in seed}
    shown = {key: column for key, column in MEASURES.items() if key in known}
    rows = []
    for name, block in results.measured.items():
        values = [[scale * s[key] for s in block["seeds"] if key in s] for key, (_, scale) in shown.items()]
        size = [f"{block['parameters']:,}", f"{block['multiply_adds']:,}", f"{block['weights_bytes']:,}"]
        rows.append([name, *(mean_and_deviation(summarise(v)) for v in values), *size])
    head = ["method", *(column for column, _ in shown.values()), "parameters", "multiply-adds", "bytes"]
    return Table(head, rows)


def of_ablation(split: str, found: Sequence[Line]) -> Table:
    """A row a variant."""
    reference = next(line for line in found if line.reference)
    head = ["variant", "n", f"{split} accuracy, %", "95 % interval", f"over {reference.label}", "violated triplets, %"]
    rows = []
    for line in found:
        interval = "" if line.accuracy.half_width is None else f"± {line.accuracy.half_width:.2f}"
        gap = with_interval(line.over_reference, line.corrected_p)
        violated = mean_and_deviation(line.violated_triplets)
        rows.append([line.label, str(line.accuracy.n), mean_and_deviation(line.accuracy), interval, gap, violated])
    return Table(head, rows)


def notes(results: Results) -> dict[str, str]:
    """How to read each of the tables, by its name."""
    split = results.split
    unseen = "images held out of the training split, under a teacher that has not seen them either"
    ablated_on = unseen if results.ablation_split == "validation" else "the test images"
    return {
        "comparison": "Mean ± standard deviation over n seeds, last epoch, and the 95 % interval of the mean. A "
        "difference is paired by seed, with its 95 % interval; **bold** where its p-value, Holm-corrected over the "
        f"table's comparisons, is below {ALPHA}; the intervals are not corrected. *Best on {split}* picks each run's "
        f"best epoch by the {split} images: not a result, shown only for comparison with papers that report it. The "
        "teacher is one run; the intervals are over students' seeds, under this teacher and on these images.",
        "verdicts": "Reproduced, or contradicted: the difference, paired by seed, has a p-value below "
        f"{ALPHA} in the claim's direction, or against it, after Holm's correction over these claims. Undecided: "
        "neither, or † the claim is over a method that is itself below scratch, or ‡ seeds of the better of the two "
        "failed. The intervals are not corrected. Verdict and p-value are of these images; *other images too* is the "
        "95 % interval were the images, too, drawn anew. The last column is the true difference that would be found "
        "with 80 % power, with this scatter, if it were the first in Holm's order.",
        "measures": f"On the {split} images, last epoch. A triplet is violated where the student's output for an image "
        "is no nearer to the teacher's output for that image than its output for an image of another class is.",
        "ablations": f"Measured on {ablated_on}. Differences are paired by seed; **bold** where Holm's correction over "
        f"the ablation's comparisons leaves p below {ALPHA}.",
    }


def markdown(results: Results) -> str:
    """table.md: the table, the verdicts in sentences, the ablations, and how to read them."""
    reading = notes(results)
    lines = [f"# {results.suite}", "", *comparison(results).markdown(), "", reading["comparison"]]
    lines += _section("Against published figures", [f"- {line}" for line in against_published(results)])
    if results.verdicts:
        short = [f"- {line}" for line in in_short(results)]
        lines += _section("Verdicts", [*short, "", *verdicts(results).markdown(), "", reading["verdicts"]])
    lines += _section("Failed seeds", [f"- {line}" for line in failures(results)])
    lines += _section("Cells of different environments", [f"- {line}" for line in mixed(results)])
    lines += _section("More than accuracy", [*measures(results).markdown(), "", reading["measures"]])
    for name, found in results.ablations.items():
        table = of_ablation(results.ablation_split, found).markdown()
        lines += _section(f"Ablation: {name}", [*table, "", outcome(found), "", reading["ablations"]])
    return "\n".join(lines) + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def failures(results: Results) -> list[str]:
    """Each seed that did not come through, and why."""
    of_rows = [f"{row.method}, seed {seed}: {why}" for row in results.rows for seed, why in row.failed.items()]
    return of_rows + [
        f"{name}, {line.label}, seed {seed}: {why}"
        for name, found in results.ablations.items()
        for line in found
        for seed, why in line.failed.items()
    ]


def environments(results: Results) -> dict[str, list[str]]:
    """What the cells were computed with: of each entry the values that there are, one if all have the same."""
    blocks = [block["environment"] for block in results.measured.values()]
    names = dict.fromkeys(name for block in blocks for name in block)
    values = {name: dict.fromkeys(str(block.get(name)) for block in blocks) for name in names}
    return {name: list(found) for name, found in values.items() if list(found) != ["None"]}


def mixed(results: Results) -> list[str]:
    """In what the cells' environments differ: their differences may be the environments'."""
    return [f"{name}: {', '.join(found)}" for name, found in environments(results).items() if len(found) > 1]


def against_published(results: Results) -> list[str]:
    """Each published figure against our prediction interval of one run."""
    ours = [f"{row.method}: {_against(row)}" for row in results.rows if row.published]
    other = _references(results).items()
    return ours + [f"{name}: published {f.accuracy:.2f} ({f.source}); not run here" for name, f in other]


def mean_and_deviation(value: Summary) -> str:
    if not value.n:
        return ""
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def with_interval(gap: Difference | None, corrected_p: float | None) -> str:
    if gap is None:
        return ""
    text = f"{gap.mean:+.2f}" if gap.half_width is None else f"{gap.mean:+.2f} ± {gap.half_width:.2f}"
    return f"**{text}**" if significant(corrected_p) else text


def _against(row: Row) -> str:
    assert row.published is not None
    text = f"published {row.published['accuracy']:.2f} ({row.published['source']})"
    if row.test.one_run is None:
        return f"{text}; ours {row.test.mean:.2f}, too few runs for a prediction interval"
    where = "inside" if row.published["inside_one_run_interval"] else "OUTSIDE"
    low, high = row.test.one_run
    return f"{text}; {where} our 95 % prediction interval of one run, {low:.2f} to {high:.2f}"


def verdicts(results: Results) -> Table:
    """A row a claim: the verdict and the numbers behind it."""
    head = ["claim", "verdict", "difference", "other images too", "seeds", "corrected p", "found with 80 % power"]
    rows = []
    for answer in results.verdicts:
        row, gap, p = [answer["claim"], f"**{answer['verdict']}**"], answer["difference"], answer["corrected_p"]
        if answer["barred"]:
            row[1] += f" {BARS[answer['barred']][0]}"
        if gap is not None and p is not None:
            row += [
                f"{gap['mean']:+.2f} ± {gap['half_width']:.2f}",
                f"± {answer['half_width_over_images_too']:.2f}",
                str(gap["n"]),
                f"{p:.2g}",
                f"{answer['detectable']:.2f}",
            ]
        rows.append(row + [""] * (len(head) - len(row)))
    return Table(head, rows)


def in_short(results: Results) -> list[str]:
    """The verdicts in a sentence for each method that a claim is about."""
    words = {
        "reproduced": "is better than {}",
        "contradicted": "is worse than {}",
        "undecided": "is not distinguishable from {}",
        **{bar: sentence for bar, (_, sentence) in BARS.items()},
    }
    claimed: dict[str, dict[str, list[str]]] = {}
    for answer in results.verdicts:
        of_method = claimed.setdefault(answer["method"], {})
        of_method.setdefault(answer["barred"] or answer["verdict"], []).append(answer["over"])
    return [
        f"**{method}** " + "; ".join(words[v].format(_listed(found[v])) for v in words if v in found) + "."
        for method, found in claimed.items()
    ]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def outcome(found: Sequence[Line]) -> str:
    """Which variant is best, and whether it differs from the reference significantly."""
    reference = next(line for line in found if line.reference)
    ran = [line for line in found if line.accuracy.n]
    if not ran:
        return "No seed of any variant came through."
    best = max(ran, key=lambda line: line.accuracy.mean)
    if best is reference:
        apart = [line.label for line in ran if significant(line.corrected_p)]
        rest = f"significantly below it: {', '.join(apart)}" if apart else "no other differs significantly"
        return f"Best: **{best.label}**, the reference; {rest}."
    gap, p = best.over_reference, best.corrected_p
    if gap is None or p is None:
        return f"Best: **{best.label}**, not tested against {reference.label}: too few seeds, or no scatter."
    known = "significant" if significant(p) else "not significant"
    return (
        f"Best: **{best.label}**, {gap.mean:+.2f} ± {gap.half_width:.2f} points over {reference.label} "
        f"(corrected p = {p:.2g}): {known}."
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
