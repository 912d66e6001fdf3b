"""A suite's tables and its verdicts in sentences, as text in which ** and * stand for bold and italic.

Accuracies are shown in percent, differences in percentage points.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tripletkd.analysis.ablation import Line
from tripletkd.analysis.comparison import BASELINES, Results, Row, Verdict, at_chance, better_lost_seeds, left_out
from tripletkd.analysis.statistics import Difference, Summary, significant, summarise
from tripletkd.reporting.text import in_markdown, p_value, render

TEMPLATE = "table.md.j2"
PAPERS = ("triplet", "kd_triplet", "pair")  # the paper's own; of the first that was run is the figure of one method
BARS = {  # why a difference decides nothing -> its mark, and the phrase
    "failed baseline": ("†", "is above {} (not judged: below scratch)"),
    "unknown baseline": ("§", "is above {} (not judged: not compared with scratch)"),
    "failed seeds": ("‡", "is not judged against {} (seeds of the better one failed)"),
}
PHRASES = {  # by verdict or bar
    "reproduced": "is better than {}",
    "contradicted": "is worse than {}",
    "undecided": "is not distinguishable from {}",
    **{bar: phrase for bar, (_, phrase) in BARS.items()},
}
FIGURES: dict[str, tuple[str, int]] = {  # figure of a SeedMeasurement -> title, factor
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
    """Make the main table: a row for each method, then one for each published figure of a method not run here.

    Where there are no published figures, as on another split than the test images, there is no column for them.
    """
    bases, split = results.bases(), results.split
    over, beside = [f"over {base}" for base in bases], ["published"] if results.published else []
    head = ["method", "n", f"{split} accuracy, %", "95 % interval", *over, *beside, f"best on {split}", "train, %"]
    rows = []
    for row in results.rows:
        test, best = row.test_accuracy_percent, f"*{row.best_test_accuracy_percent:.2f}*"
        differences = [over_baseline(results, row, base) for base in bases]
        figures = ["" if row.published is None else f"{row.published.accuracy_percent:.2f}" for _ in beside]
        ours = [row.method, str(row.n), mean_and_deviation(test), interval(test)]
        rows.append([*ours, *differences, *figures, best, f"{row.train_accuracy_percent.mean:.2f}"])
    for name, figure in results.published.items():
        own = {"method": name, "published": f"{figure.accuracy:.2f}"}
        rows += [[own.get(column, "") for column in head]] if name not in results.measured else []
    return Table(head, rows)


def over_baseline(results: Results, row: Row, base: str) -> str:
    """Write a method's difference from a baseline: ‡ where it decides nothing, n where that is not the method's."""
    if (gap := row.over_points.get(base)) is None:
        return ""
    is_barred = better_lost_seeds(results.measured, row.method, base, gap)
    text = with_interval(gap, None if is_barred else row.corrected_p.get(base)) + " ‡" * is_barred
    return text if gap.n == row.n else f"{text} (n = {gap.n})"


def measures(results: Results) -> Table:
    """Make the table of what else was measured: a row for each method, mean and standard deviation over seeds."""
    measured = results.measured
    shown = {key: c for key, c in FIGURES.items() if any(each.by_seed(key) for each in measured.values())}
    rows = []
    for name, each in measured.items():
        values = [[factor * value for value in each.by_seed(key).values()] for key, (_, factor) in shown.items()]
        size = [f"{count:,}" for count in (each.parameters, each.multiply_adds, each.weights_bytes)]
        rows.append([name, *(mean_and_deviation(summarise(v)) for v in values), *size])
    head = ["method", *(title for title, _ in shown.values()), "parameters", "multiply-adds", "bytes"]
    return Table(head, rows)


def ablation(split: str, found: Sequence[Line]) -> Table:
    """Make the table of an ablation measured on the split: a row for each variant."""
    reference = next(line for line in found if line.reference)
    head = ["variant", "n", f"{split} accuracy, %", "95 % interval", f"over {reference.label}", "violated triplets, %"]
    rows = []
    for line in found:
        accuracy, gap = line.accuracy_percent, with_interval(line.over_reference_points, line.corrected_p)
        violated = mean_and_deviation(line.violated_triplets_percent)
        rows.append([line.label, str(accuracy.n), mean_and_deviation(accuracy), interval(accuracy), gap, violated])
    return Table(head, rows)


def in_common(results: Results, ablation: str) -> list[str]:
    """Say what all variants of an ablation change alike, which their labels leave out, where there is something."""
    said = [f"{key} {value}" for key, value in results.in_common[ablation].items()]
    return [f"All variants have {', '.join(said)}."] if said else []


def families(results: Results) -> dict[str, int]:
    """Count how many comparisons of the table, and how many claims, are corrected together by Holm's procedure."""
    compared = {frozenset((row.method, base)) for row in results.rows for base in row.corrected_p}
    return {"comparisons": len(compared), "claims": next((v.corrected_together for v in results.verdicts), 0)}


def markdown(results: Results) -> str:
    """Write table.md: the tables, the verdicts in sentences, and how to read them."""
    return render(TEMPLATE, results=results, tables=sys.modules[__name__], left_out=left_out)


def warnings(results: Results) -> list[str]:
    """Say which students are no better than guessing."""
    chance, names = at_chance(results.measured)
    if not names:
        return []
    who, meaning = f"at chance level ({chance:.2f} %): {', '.join(names)}", "differences from them say little"
    if names == list(results.students):
        who, meaning = f"all students are at chance level ({chance:.2f} %)", "nothing here tells the methods apart"
    return [f"{who[0].upper()}{who[1:]}, which guessing gives too; {meaning}."]


def failures(results: Results) -> list[str]:
    """List each seed that did not come through, and why."""
    failed = {row.method: row.failed for row in results.rows}
    failed |= {f"{name}, {line.label}": line.failed for name, lines in results.ablations.items() for line in lines}
    return [f"{who}, seed {seed}: {why}" for who, seeds in failed.items() for seed, why in seeds.items()]


def against_published(results: Results) -> list[str]:
    """Hold each published figure against our prediction interval of one run."""
    found: dict[str, str] = {}
    for row in [row for row in results.rows if row.method in results.published]:
        ours, at = row.test_accuracy_percent, row.published
        found[row.method] = f"ours {ours.mean:.2f}, too few runs for a prediction interval"
        if at and ours.one_run:
            where = "inside" if at.inside_one_run_interval else "OUTSIDE"
            span = f"{ours.one_run[0]:.2f} to {ours.one_run[1]:.2f}"
            found[row.method] = f"{where} our 95 % prediction interval of one run, {span}"
    figures = {name: results.published[name] for name in [*found, *results.published]}
    return [
        f"{name}: published {figure.accuracy:.2f} ({figure.source}); {found.get(name, 'not run here')}"
        for name, figure in figures.items()
    ]


def mean_and_deviation(value: Summary) -> str:
    """Write a mean ± its standard deviation, as far as there are any."""
    if not value.n:
        return ""
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def interval(value: Summary) -> str:
    """Write half the width of the mean's 95 % interval."""
    return "" if value.half_width is None else f"± {value.half_width:.2f}"


def with_interval(gap: Difference | None, corrected_p: float | None = None) -> str:
    """Write a difference ± half its interval, in bold where it is significant."""
    if gap is None:
        return ""
    text = f"{gap.mean:+.2f}" if gap.half_width is None else f"{gap.mean:+.2f} ± {gap.half_width:.2f}"
    return f"**{text}**" if significant(corrected_p) else text


def verdicts(results: Results) -> Table:
    """Make the table of verdicts: a row for each claim, with the numbers behind it."""
    head = ["claim", "verdict", "difference", "other images too", "seeds", "corrected p", "found with 80 % power"]
    rows = []
    for answer in results.verdicts:
        mark = f" {BARS[answer.barred][0]}" if answer.barred else ""
        gap, p, numbers = answer.difference_points, answer.corrected_p, [""] * 5
        if gap is not None and p is not None:
            other_images = f"± {answer.half_width_over_images_too_points:.2f}"
            numbers = [with_interval(gap), other_images, str(gap.n), p_value(p), f"{answer.detectable_points:.2f}"]
        rows.append([answer.claim, f"**{answer.verdict}**{mark}", *numbers])
    return Table(head, rows)


def finding(results: Results) -> str:
    """Count the verdicts in a sentence: those of claims on the paper's methods, then those of claims on others."""
    papers = [given for given in results.verdicts if given.method in PAPERS]
    others = [given for given in results.verdicts if given.method not in PAPERS]
    names = ", ".join(dict.fromkeys(given.method for given in others))
    groups = {"": papers, f" for {names}, not the paper's": others}
    sentences = [_count(whose, given) for whose, given in groups.items() if given]
    return " ".join(sentences) or "Nothing to judge: of no claim were both methods run."


def _count(whose: str, given: Sequence[Verdict]) -> str:
    counts = Counter(each.verdict for each in given)
    seeds = {each.difference_points.n if each.difference_points else 0 for each in given}
    n = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("reproduced", "contradicted", "undecided"))
    claims = "claim" if len(given) == 1 else "claims"
    return f"Of {len(given)} {claims}{whose}, each compared over {n} seeds: {words}."


def in_short(results: Results) -> list[str]:
    """Say the verdicts in a sentence for each method that a claim is about, over the baselines with the difference."""
    claimed: dict[str, dict[str, list[str]]] = {}  # method -> verdict or bar -> the methods that it is over
    for answer in results.verdicts:
        gap, over = answer.difference_points, answer.over
        if gap and over in BASELINES and not answer.barred:
            over = f"{over} ({gap.mean:+.2f} points)"
        claimed.setdefault(answer.method, {}).setdefault(answer.barred or answer.verdict, []).append(over)
    said = {
        method: [phrase.format(listed(found[key])) for key, phrase in PHRASES.items() if key in found]
        for method, found in claimed.items()
    }
    return [f"**{method}** {'; '.join(phrases)}." for method, phrases in said.items()]


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def outcome(found: Sequence[Line]) -> str:
    """Say which variant is best, by differences paired by seed, and whether it differs from the reference."""
    reference = next(line for line in found if line.reference)
    if not reference.accuracy_percent.n:
        return f"Nothing to compare with: no seed of {reference.label} came through."
    gains = {line.label: gap.mean for line in found if (gap := line.over_reference_points)}
    best = max(found, key=lambda line: 0 if line is reference else gains.get(line.label, -math.inf))
    gap, p, tested = best.over_reference_points, best.corrected_p, [x for x in found if x.corrected_p is not None]
    below = [line.label for line in tested if significant(line.corrected_p) and gains[line.label] < 0]
    if best.failed:
        said = "which is not judged: seeds of it failed"
    elif best is reference and tested:
        rest = f"significantly below it: {', '.join(below)}" if below else "no other differs significantly"
        said = f"the reference; {rest}"
    elif gap is None or p is None:
        against = "" if best is reference else f" against {reference.label}"
        said = f"not tested{against}: too few seeds, or identical differences"
    else:
        known = "significant" if significant(p) else "not significant"
        said = f"{with_interval(gap)} points over {reference.label} (corrected p = {p_value(p)}): {known}"
    return f"Best: **{best.label}**, {said}."
