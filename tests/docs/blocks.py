"""The parts of README.md and docs/ that are computed: what stands between `<!-- name -->` and `<!-- end -->`.

    python -m tests.docs.blocks        # writes them anew, from the results in the working tree

`table: FILE TITLE` is the first table of FILE below the heading TITLE; `ablation: FILE SPLIT NAME` is made from the
measurements in FILE; any other name is a function here.
"""

import csv
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from scipy import stats

from tripletkd.analysis import ablation
from tripletkd.analysis.statistics import difference, summarise
from tripletkd.evaluation.measurement import read_ablation
from tripletkd.reporting import tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"<!-- (?!end -->)(.+?) -->\n(.*?)<!-- end -->", re.DOTALL)
RIVALS = ("scratch", "kd", "triplet")
EXPERIMENTS = {
    "cifar10": "[CIFAR-10, the paper's recipe](docs/paper.md)",
    "digits": "[8 x 8 digits, the paper's networks at a quarter of their width](docs/results.md#the-digits)",
    "digits_resnet": "[the same digits, small ResNets](docs/results.md#small-resnets)",
}
AUTHORS, CONTROL = "tripletkd/published/oki2020_cifar10_triplet.csv", "docs/cifar10_full/bfloat16.csv"
GPU = "docs/cifar10_full/gpu/triplet/seed-13/history.csv"
MEASURED = "results/cifar10/measured/test"
MACHINES = {11: 1, 12: 1, 13: 1, 14: -1, 15: -1}  # the processor or the GPU, by seed
EPOCHS = (5, 50, 100, 105, 200, 205, 300, 500)
Read = Callable[[str], str]  # the text of a file of the repository


def table_of(read: Read, suite: str) -> Any:
    return json.loads(read(f"results/{suite}/table.json"))


def claims(read: Read, suite: str) -> dict[str, Any]:
    return {claim["claim"]: claim for claim in table_of(read, suite)["verdicts"]}


def rows(text: str) -> list[dict[str, float]]:
    """Read a CSV file of numbers, without what is empty."""
    return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(text.splitlines())]


def markdown(head: str, align: str, lines: list[list[str]]) -> str:
    marks = " | ".join({"l": "---", "r": "---:"}[letter] for letter in align)
    return "\n".join([f"| {head} |", f"| {marks} |", *(f"| {' | '.join(line)} |" for line in lines)])


def interval(mean: float, half_width: float, digits: int) -> str:
    return f"{mean:+.{digits}f} ± {half_width:.{digits}f}".replace("-", "−")


def gap(first: dict[int, float], second: dict[int, float]) -> str:
    found = difference(first, second)
    assert found is not None
    return interval(found.mean, found.half_width, 2)


def accuracies(read: Read) -> dict[str, dict[int, float]]:
    """Test accuracy on CIFAR-10 in percent, by method and seed."""
    measured = {name: json.loads(read(f"{MEASURED}/{name}.json"))["seeds"] for name in RIVALS}
    return {name: {seed["seed"]: 100 * seed["test_accuracy"] for seed in measured[name]} for name in RIVALS}


def answer(read: Read) -> str:
    lines, verdicts = [], []
    for suite, name in EXPERIMENTS.items():
        found, means = (
            claims(read, suite),
            {row["method"]: row["test"]["mean"] for row in table_of(read, suite)["rows"]},
        )
        line = [name, str(found["triplet over kd"]["difference"]["n"]), *(f"{means[rival]:.2f}" for rival in RIVALS)]
        for base in ("scratch", "kd"):
            claim = found[f"triplet over {base}"]
            verdicts.append((base, claim["verdict"]))
            mean, half_width = claim["difference"]["mean"], claim["difference"]["half_width"]
            shown = interval(mean, half_width, 1)
            if claim["verdict"] != "undecided":
                shown = f"**{shown}**"
            elif abs(mean) > half_width:  # the interval, not corrected, would decide
                shown += f" (undecided: p = {claim['corrected_p']:.2g} after correction for {len(found)} claims)"
            line.append(shown)
        lines.append(line)
    counts = [("kd", "reproduced"), ("kd", "contradicted"), ("scratch", "reproduced")]
    better, worse, over = (("none", "one", "two", "three")[verdicts.count(each)] for each in counts)
    said = (
        f"**{'No' if better == 'none' else 'In part'}.** It is better than Hinton's distillation (KD) in {better} of our three "
        f"experiments, and worse in {worse}.\nIt is better than training the student from scratch in {over}."
    )
    head = "experiment | seeds | from scratch | KD | triplet | triplet − scratch | triplet − KD"
    return f"{said}\n\n{markdown(head, 'lrrrrll', lines)}"


def by_seed(read: Read) -> str:
    scratch, kd, triplet = accuracies(read).values()
    lines = [
        [str(seed), *(f"{x:.2f}" for x in values), f"{values[2] - values[0]:+.2f}", f"{values[2] - values[1]:+.2f}"]
        for seed, values in ((seed, (scratch[seed], kd[seed], triplet[seed])) for seed in triplet)
    ]
    return markdown("seed | scratch | kd | triplet | triplet − scratch | triplet − kd", "rrrrrr", lines)


def sensitivity(read: Read) -> str:
    found = accuracies(read)
    p = {}
    for base in ("scratch", "kd"):
        gaps = {seed: found["triplet"][seed] - found[base][seed] for seed in MACHINES}
        fit = stats.linregress([MACHINES[seed] - mean(MACHINES.values()) for seed in gaps], list(gaps.values()))
        residuals = [
            gaps[seed] - fit.intercept - fit.slope * (MACHINES[seed] - mean(MACHINES.values())) for seed in gaps
        ]
        error = (sum(x * x for x in residuals) / (len(gaps) - 2) / len(gaps)) ** 0.5
        p[base] = 2 * stats.t.sf(abs(mean(gaps.values())) / error, len(gaps) - 2)
    gpu = 100 * rows(read(GPU))[-1]["test_accuracy"]
    uncorrected = claims(read, "cifar10")["triplet over kd"]["difference"]["p"]
    return "\n".join(
        [
            f"- With the machine as an effect of its own, p is {p['scratch']:.3f} over `scratch` and {p['kd']:.3f} over "
            "`kd`, without correction.",
            f"- The GPU also trained `triplet` with seed 13, to {gpu:.2f} %, {gpu - found['triplet'][13]:.2f} points above "
            "the processor: another machine is like another seed. With it, the difference to `kd` is "
            f"{gap(found['triplet'] | {13: gpu}, found['kd'])}.",
            f"- With `pair` and `kd_triplet` there would be six claims, and p over `kd` would be at most {5 * uncorrected:.3f}.",
        ]
    )


def against_the_authors(read: Read) -> str:
    authors, ours = {row["epoch"]: row for row in rows(read(AUTHORS))}, rows(read(f"{MEASURED}/triplet.csv"))
    found: dict[str, dict[float, list[float]]] = {"test_accuracy": {}, "train_accuracy": {}}
    for row in ours:
        for key in found.keys() & row.keys():
            found[key].setdefault(row["epoch"], []).append(100 * row[key])
    outside = {
        (key, epoch)
        for key, epochs in found.items()
        for epoch, values in epochs.items()
        if (one := summarise(values).one_run) and not one[0] <= authors[epoch][key] <= one[1]
    }
    lines = []
    for epoch in EPOCHS:
        line = [str(epoch)]
        for key, epochs in found.items():
            low, high = summarise(epochs[epoch]).one_run or (0, 0)
            theirs = f"{authors[epoch][key]:.2f}{' (outside)' if (key, epoch) in outside else ''}"
            line += [theirs, f"{mean(epochs[epoch]):.2f}, {low:.2f} to {high:.2f}"]
        lines.append(line)
    test, train = found["test_accuracy"], found["train_accuracy"]
    above = [epoch for epoch, values in test.items() if authors[epoch]["test_accuracy"] > max(values)]
    late = [epoch for epoch in test if epoch >= 105]
    lead = mean(authors[epoch]["test_accuracy"] - mean(test[epoch]) for epoch in late)
    out = sorted(epoch for key, epoch in outside if key == "test_accuracy")
    apart = max(abs(authors[epoch]["train_accuracy"] - mean(train[epoch])) for epoch in train if epoch >= 200)
    said = [
        f"Their test accuracy is above each of our five runs at {len(above)} of {len(test)} evaluated epochs. From epoch 105 on, this "
        f"holds at {sum(epoch >= 105 for epoch in above)} of {len(late)} epochs, and their run is\n{lead:.1f} points above our mean.",
        f"It is outside the interval at {len(out)} epochs, all from {out[0]:.0f} to {out[-1]:.0f}. From epoch 200 on, the mean "
        f"training accuracies differ by at\nmost {apart:.2f} points.",
    ]
    head = f"epoch | authors: test, % | ours, n = {len(test[500])} | authors: train, % | ours"
    return "\n".join([markdown(head, "rrrrr", lines), "", *said])


def teachers(read: Read) -> str:
    row = next(row for row in table_of(read, "cifar10")["rows"] if row["method"] == "teacher")
    loss = json.loads(read(f"{MEASURED}/teacher.json"))["seeds"][0]["test_cross_entropy"]
    ours = [
        "**60 epochs, weight decay 0.01**",
        f"{row['test']['mean']:.2f}",
        f"{row['train']['mean']:.2f}",
        f"{loss:.3f}",
    ]
    lines = [
        ["authors, training not published", "83.75", "99.20", "0.575", "0.189"],
        [*ours, "0.024"],
        ["60 epochs, weight decay 0.005", "83.26", "99.99", "0.614", "0.007"],
    ]
    return markdown("teacher | test, % | train, % | cross-entropy: test | train", "lrrrr", lines)


def bfloat16(read: Read) -> str:
    lines = []
    spread = 0.0
    for split in ("test", "train"):
        found: dict[tuple[str, str], dict[int, float]] = {}
        for row in csv.DictReader(read(CONTROL).splitlines()):
            by_seed = found.setdefault((row["method"], row["precision"]), {})
            by_seed[int(row["seed"])] = 100 * float(row[f"{split}_accuracy"])
        for name in RIVALS:
            exact, rounded = found[name, "float32"], found[name, "bfloat16"]
            cells = [f"{mean(exact.values()):.2f}", f"{mean(rounded.values()):.2f}"]
            lines.append([f"{split}: {name}", str(len(exact)), *cells, gap(rounded, exact)])
            if (split, name) == ("test", "triplet"):
                spread = max(abs(rounded[seed] - exact[seed]) for seed in exact)
        for base in ("scratch", "kd"):
            gaps = []
            for kind in ("float32", "bfloat16"):
                ours, theirs = found["triplet", kind], found[base, kind]
                gaps.append({seed: ours[seed] - theirs[seed] for seed in theirs})
            cells = [gap(each, dict.fromkeys(each, 0.0)) for each in gaps]
            lines.append([f"{split}: triplet − {base}", str(len(gaps[0])), *cells, gap(gaps[1], gaps[0])])
    said = f"Single seeds of `triplet` differ between the precisions by up to {spread:.1f} points of test accuracy."
    return f"{markdown('accuracy, % | n | float32 | bfloat16 | bfloat16 − float32', 'lrrrr', lines)}\n\n{said}"


def resnets(read: Read) -> str:
    found = claims(read, "digits_resnet")
    against = [claim for claim in found if found[claim]["verdict"] == "contradicted"]
    undecided = [claim for claim in found if found[claim]["verdict"] == "undecided"]
    row = next(row for row in table_of(read, "digits_resnet")["rows"] if row["method"] == "triplet")
    return (
        f"Of {len(found)} claims, {len(found) - len(against) - len(undecided)} are reproduced, {len(against)} are contradicted "
        f"({', '.join(against)}),\nand {len(undecided)} are undecided. `triplet` over `kd` is filled in the picture "
        f"(p = {row['corrected_p']['kd']:.3g} over its comparisons) and\nundecided as a claim "
        f"(p = {found['triplet over kd']['corrected_p']:.2g} over all {len(found)} claims)."
    )


def variants(read: Read, source: str, suite: str, name: str) -> list[ablation.Line]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "measured.json")
        path.write_text(read(source))
        return ablation.lines(read_ablation(path, suite, name))


def longer(read: Read) -> str:
    source = "results/digits/measured/validation/ablations/longer.json"
    scratch, scratch_longer, triplet, triplet_longer = variants(read, source, "digits", "longer")
    found = difference(scratch_longer.seeds, triplet_longer.seeds)
    assert found is not None
    return (
        f"With four times the epochs, training from scratch gains {scratch_longer.accuracy.mean - scratch.accuracy.mean:.1f} "
        f"points and `triplet` gains {triplet_longer.accuracy.mean - triplet.accuracy.mean:.1f}. At that\nlength, training from "
        f"scratch is {found.mean:.1f} ± {found.half_width:.1f} points higher (p = {found.p:.2g}, not significant)."
    )


def copied(read: Read, source: str, title: str) -> str:
    section = read(source).split(f"# {title}\n", 1)[1]
    return next(block.strip() for block in section.split("\n\n") if block.strip().startswith("|"))


def ablated(read: Read, source: str, split: str, name: str) -> str:
    found = variants(read, source, "digits_resnet", name)
    p = ", ".join(f"{line.corrected_p:.2g}" for line in found if line.corrected_p is not None)
    return "\n".join([*tables.ablation(split, found).markdown(), "", f"Corrected p, in this order: {p}."])


def text_of(name: str, read: Read) -> str:
    kind, _, rest = name.partition(": ")
    if kind == "table":
        return copied(read, *rest.split(" ", 1))
    if kind == "ablation":
        return ablated(read, *rest.split())
    found: str = globals()[name.replace(" ", "_")](read)
    return found


def read_here(name: str) -> str:
    return (ROOT / name).read_text()


def main() -> None:
    for page in PAGES:
        text = page.read_text()

        def filled(match: re.Match[str]) -> str:
            return f"<!-- {match[1]} -->\n{text_of(match[1], read_here)}\n<!-- end -->"

        page.write_text(BLOCK.sub(filled, text))


if __name__ == "__main__":
    main()
