"""A suite's tables and its verdicts in sentences, as text in which ** and * stand for bold and italic."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tripletkd.analysis.ablation import Line
from tripletkd.analysis.comparison import BASELINES, Barred, Published, PublishedComparison, Results, Row, Verdict
from tripletkd.analysis.statistics import ALPHA, Difference, Summary, significant, summarise
from tripletkd.evaluation.measurement import Measurement
from tripletkd.reporting.text import in_markdown

BARS: dict[Barred, tuple[str, str]] = {  # why a difference decides nothing -> its mark, and the sentence
    "failed baseline": ("†", "is above {} (not judged: below scratch)"),
    "failed seeds": ("‡", "is not judged against {} (seeds of the better one failed)"),
}
COLUMNS: dict[str, tuple[str, int]] = {  # figure of a SeedMeasurement -> title, factor
    "test_top5_accuracy": ("top 5, %", 100),
    "test_cross_entropy": ("cross-entropy", 1),
    "test_calibration_error": ("calibration error, %", 100),
    "agreement": ("agreement with teacher, %", 100),
    "kl_to_teacher": ("KL to teacher", 1),
    "violated_triplets": ("violated triplets, %", 100),
}


@dataclass(frozen=True)
class Table:
    """Text in rows, of which the first column holds names and the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        """Return the lines of the table in Markdown."""
        head, rule = [in_markdown(title) for title in self.head], ["---", *["---:"] * (len(self.head) - 1)]
        rows = [[in_markdown(name), *numbers] for name, *numbers in self.rows]
        return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def comparison(results: Results) -> Table:
    """Make the main table: a row a method, and below one for each published figure of a method not run here.

    Where there are no published figures, as on another split than the test images, there is no column for them.
    """
    bases, split = results.bases(), results.split
    over, beside = [f"over {base}" for base in bases], ["published"] if results.published else []
    head = ["method", "n", f"{split} accuracy, %", "95 % interval", *over, *beside, f"best on {split}", "train, %"]
    rows = []
    for row in results.rows:
        differences = [with_interval(row.over.get(base), row.corrected_p.get(base)) for base in bases]
        figures = ["" if row.published is None else f"{row.published.accuracy:.2f}" for _ in beside]
        interval = "" if row.test.half_width is None else f"± {row.test.half_width:.2f}"
        best, train = f"*{row.best_on_test:.2f}*", f"{row.train.mean:.2f}"
        mean = mean_and_deviation(row.test)
        rows.append([row.method, str(row.n), mean, interval, *differences, *figures, best, train])
    for name, reference in _references(results).items():
        own = {"method": name, "published": f"{reference.accuracy:.2f}"}
        rows.append([own.get(column, "") for column in head])
    return Table(head, rows)


def _references(results: Results) -> dict[str, Published]:
    """Select the published figures of methods that were not run here."""
    run = {row.method for row in results.rows}
    return {name: figure for name, figure in results.published.items() if name not in run}


def measures(results: Results) -> Table:
    """Make the table of what else was measured: a row a method, mean and standard deviation over seeds."""
    measured = results.measured
    shown = {key: c for key, c in COLUMNS.items() if any(each.by_seed(key) for each in measured.values())}
    rows = []
    for name, each in measured.items():
        values = [[factor * value for value in each.by_seed(key).values()] for key, (_, factor) in shown.items()]
        size = [f"{count:,}" for count in (each.parameters, each.multiply_adds, each.weights_bytes)]
        rows.append([name, *(mean_and_deviation(summarise(v)) for v in values), *size])
    head = ["method", *(title for title, _ in shown.values()), "parameters", "multiply-adds", "bytes"]
    return Table(head, rows)


def ablation(split: str, found: Sequence[Line]) -> Table:
    """Make the table of an ablation measured on the split: a row a variant."""
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
    """Say how to read each of the tables, by the table's name."""
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
    """Write table.md: the tables, the verdicts in sentences, and how to read them."""
    reading = notes(results)
    lines = [f"# {results.suite}", "", *comparison(results).markdown(), "", reading["comparison"]]
    lines += _section("Against published figures", [f"- {in_markdown(line)}" for line in against_published(results)])
    if results.verdicts:
        short = [f"- {line}" for line in in_short(results)]
        lines += _section("Verdicts", [*short, "", *verdicts(results).markdown(), "", reading["verdicts"]])
    lines += _section("Failed seeds", [f"- {in_markdown(line)}" for line in failures(results)])
    lines += _section("Cells of different environments or code", [f"- {in_markdown(line)}" for line in mixed(results)])
    lines += _section("More than accuracy", [*measures(results).markdown(), "", reading["measures"]])
    for name, found in results.ablations.items():
        table = ablation(results.ablation_split, found).markdown()
        lines += _section(f"Ablation: {name}", [*table, "", outcome(found), "", reading["ablations"]])
    return "\n".join(lines) + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def failures(results: Results) -> list[str]:
    """List each seed that did not come through, and why."""
    of_rows = [f"{row.method}, seed {seed}: {why}" for row in results.rows for seed, why in row.failed.items()]
    return of_rows + [
        f"{name}, {line.label}, seed {seed}: {why}"
        for name, found in results.ablations.items()
        for line in found
        for seed, why in line.failed.items()
    ]


def environments(measured: Iterable[Measurement]) -> dict[str, list[str]]:
    """List what the runs were computed with, by the entry's name: one value if all have the same, else each."""
    blocks = [each.values for measurement in measured for each in measurement.environments]
    names = dict.fromkeys(name for block in blocks for name in block)
    values = {name: dict.fromkeys(str(block.get(name)) for block in blocks) for name in names}
    return {name: list(found) for name, found in values.items() if list(found) != ["None"]}


def mixed(results: Results) -> list[str]:
    """Say which seeds were computed where, and which methods have seeds of equivalent code: a difference may be its."""
    differ = [name for name, values in environments(results.measured.values()).items() if len(values) > 1]
    seeds: dict[str, list[str]] = {}
    for name, each in results.measured.items():
        for one in each.environments:
            known = {key: one.values[key] for key in differ if one.values.get(key) is not None}
            where = ", ".join(f"{key} {value}" for key, value in known.items())
            seeds.setdefault(where, []).append(f"{name} {', '.join(map(str, one.seeds))}")
    lines = [f"{'; '.join(runs)}: {where}" for where, runs in seeds.items()] if differ else []
    for code in results.equivalent_code:
        if names := [name for name, each in results.measured.items() if code in each.code]:
            lines.append(f"code {code}, which params.yaml says computes the same bytes: seeds of {', '.join(names)}")
    return lines


def against_published(results: Results) -> list[str]:
    """Hold each published figure against our prediction interval of one run."""
    ours = [f"{row.method}: {_against(row.test, row.published)}" for row in results.rows if row.published]
    other = _references(results).items()
    return ours + [f"{name}: published {f.accuracy:.2f} ({f.source}); not run here" for name, f in other]


def _against(test: Summary, published: PublishedComparison) -> str:
    text = f"published {published.accuracy:.2f} ({published.source})"
    if test.one_run is None:
        return f"{text}; ours {test.mean:.2f}, too few runs for a prediction interval"
    where = "inside" if published.inside_one_run_interval else "OUTSIDE"
    low, high = test.one_run
    return f"{text}; {where} our 95 % prediction interval of one run, {low:.2f} to {high:.2f}"


def mean_and_deviation(value: Summary) -> str:
    """Write a mean ± its standard deviation, as far as there are any."""
    if not value.n:
        return ""
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def with_interval(gap: Difference | None, corrected_p: float | None) -> str:
    """Write a difference ± half its interval, in bold where it is significant."""
    if gap is None:
        return ""
    text = f"{gap.mean:+.2f}" if gap.half_width is None else f"{gap.mean:+.2f} ± {gap.half_width:.2f}"
    return f"**{text}**" if significant(corrected_p) else text


def verdicts(results: Results) -> Table:
    """Make the table of verdicts: a row a claim, with the numbers behind it."""
    head = ["claim", "verdict", "difference", "other images too", "seeds", "corrected p", "found with 80 % power"]
    return Table(head, [_verdict_row(answer) for answer in results.verdicts])


def _verdict_row(answer: Verdict) -> list[str]:
    mark = f" {BARS[answer.barred][0]}" if answer.barred else ""
    gap, p = answer.difference, answer.corrected_p
    numbers = [""] * 5
    if gap is not None and p is not None:
        numbers = [
            f"{gap.mean:+.2f} ± {gap.half_width:.2f}",
            f"± {answer.half_width_over_images_too:.2f}",
            str(gap.n),
            f"{p:.2g}",
            f"{answer.detectable:.2f}",
        ]
    return [answer.claim, f"**{answer.verdict}**{mark}", *numbers]


def in_short(results: Results) -> list[str]:
    """Say the verdicts in a sentence for each method that a claim is about."""
    phrases: dict[str, str] = {  # by verdict or bar
        "reproduced": "is better than {}",
        "contradicted": "is worse than {}",
        "undecided": "is not distinguishable from {}",
        **{str(bar): phrase for bar, (_, phrase) in BARS.items()},
    }
    claimed: dict[str, dict[str, list[str]]] = {}  # method -> verdict or bar -> the methods that it is over
    for answer in results.verdicts:
        of_method = claimed.setdefault(answer.method, {})
        of_method.setdefault(answer.barred or answer.verdict, []).append(answer.over)
    return [
        f"**{method}** "
        + "; ".join(phrase.format(_listed(found[v])) for v, phrase in phrases.items() if v in found)
        + "."
        for method, found in claimed.items()
    ]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def outcome(found: Sequence[Line]) -> str:
    """Say which variant is best, and whether it differs from the reference significantly."""
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


def table_csv(results: Results) -> str:
    """Write the main table as CSV, a line a method, plain numbers of up to four decimals."""
    out, lines = io.StringIO(), [_csv_line(row) for row in results.rows]
    if results.split != "test":
        for line in lines:
            del line["published"]
    writer = csv.DictWriter(out, lines[0], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: round(v, 4) if isinstance(v, float) else v for name, v in line.items()})
    return out.getvalue()


def _csv_line(row: Row) -> dict[str, str | float | None]:
    line: dict[str, str | float | None] = {
        "method": row.method,
        "n": row.n,
        "test_mean": row.test.mean,
        "test_std": row.test.std,
        "test_half_width": row.test.half_width,
        "train_mean": row.train.mean,
        "best_on_test": row.best_on_test,
        "published": None if row.published is None else row.published.accuracy,
        "parameters": row.parameters,
    }
    for base in BASELINES:
        gap = row.over.get(base)
        line[f"over_{base}"] = None if gap is None else gap.mean
        line[f"over_{base}_half_width"] = None if gap is None else gap.half_width
        line[f"over_{base}_corrected_p"] = row.corrected_p.get(base)
    return line
