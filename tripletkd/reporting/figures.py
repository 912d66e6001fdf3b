"""The figures, each the text of one SVG: for a page or alone, for light and dark, told apart without color."""

from __future__ import annotations  # matplotlib's types are not imported

import io
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripletkd.analysis.ablation import Line
from tripletkd.analysis.comparison import CurvePoint, Results, better_lost_seeds
from tripletkd.analysis.statistics import significant
from tripletkd.evaluation.measurement import Measurement
from tripletkd.reporting.text import one_line, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # that of STYLE; in its place, the color of the text around the picture
STYLE = "figures.mplstyle"
# Of middle lightness, to be seen on white and on black; with the dashes and markers, told apart in gray too.
COLORS = ["#7f8c8d", "#2f7ed8", "#17a589", "#d68910", "#d1495b", "#8e6bbf", "#a0743b", "#3aa0c9"]
DASHES = ["-", "--", "-.", ":"]
EMPHASIS = ("scratch", "kd", "pair", "triplet", "kd_triplet")  # where there are more methods than colors
MARKERS = "osD^vPX*"
NAMED_CLASSES = 20  # with more, their names have no room
Look = dict[str, Any]  # arguments of matplotlib by name
ON_ITS_OWN = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"


def render(name: str, description: str, size: tuple[float, float], paint: Callable[..., None], columns: int = 1) -> str:
    """Draw a figure of one or more panels.

    Args:
        name: Makes the ids of this figure its own, in a page with others.
        description: For whoever does not see it.
        size: Width and height in inches.
        paint: Draws on the panels' axes, which are its arguments.
        columns: How many panels are side by side.

    Returns:
        The text of an SVG element for a page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = io.StringIO()
    with mpl.rc_context(fname=Path(__file__).with_name(STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has fonts of its own
        figure = Figure(figsize=size, layout="constrained")
        paint(*figure.subplots(1, columns, squeeze=False)[0])
        if layout := figure.get_layout_engine():
            layout.execute(figure)
            figure.set_layout_engine("none")  # once is enough: saving draws twice
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return printable(_embeddable(file.getvalue(), name, description, inches=size[0]))


def _embeddable(svg: str, name: str, description: str, inches: float) -> str:
    """Make an SVG file's text an element of a page.

    It loses the prologue, the metadata and rules that would hold for the whole page. Its ids begin with its name, its
    ink is the text's color, and it has a title. It fills the width there is, up to a quarter more than drawn.
    """
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", ""),
        (r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-"),
        (r"font-family: [^;]*;", "font-family: sans-serif;"),
        (r"\s+\n", "\n"),
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    width, said = f'style="max-width: {1.25 * inches:g}in"', escape(description)
    return f'{opening} {width} role="img" aria-label="{said}"><title>{said}</title>{rest}'


def standalone(svg: str) -> str:
    """Give a page's SVG element colors and a size of its own, for a file: some viewers show it minute without."""
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    sized = svg.replace("<svg", f'<svg width="{width}pt" height="{height}pt"', 1)
    return sized.replace("</title>", f"</title>{ON_ITS_OWN}", 1)


def _styles(names: Iterable[str]) -> dict[str, Look]:
    """Choose the style of each method's line, as matplotlib's `plot` takes it.

    Where the methods are more than the colors, all but EMPHASIS are thin and gray and share a label. These have a
    "zorder", which puts them behind the rest.
    """
    names, looks = list(names), dict[str, Look]()
    strong = names if len(names) <= len(COLORS) else [name for name in names if name in EMPHASIS]
    faint = [name for name in names if name not in strong]
    for i, name in enumerate(strong):
        looks[name] = {"color": COLORS[i % 8], "linestyle": DASHES[i % 4], "linewidth": 1.4, "label": name}
    for name in faint:
        label = f"{len(faint)} others" if name == faint[0] else None
        looks[name] = {"color": COLORS[0], "linestyle": "-", "linewidth": 0.5, "zorder": 0, "label": label}
    return {name: looks[name] for name in names}


def curves(results: Results) -> str:
    """Draw accuracy by epoch: a line for each method, with a band from the lowest to the highest seed.

    Published curves, in percent, are dotted.
    """
    points, published = results.curves, results.published_curves
    looks = _styles(dict.fromkeys(point.method for point in points))
    last = max(point.epoch for point in points)

    def paint(axes: Axes) -> None:
        for name, look in looks.items():
            mine = [point for point in points if point.method == name]
            epochs = [point.epoch for point in mine]
            if "zorder" not in look:
                low, high = [point.lowest_percent for point in mine], [point.highest_percent for point in mine]
                axes.fill_between(epochs, low, high, alpha=0.12, linewidth=0, color=look["color"])
            axes.plot(epochs, [point.test_accuracy_percent for point in mine], **look)
        for name, rows in published.items():
            there = ([row[key] for row in rows] for key in ("epoch", "test_accuracy"))
            axes.plot(*there, ":", color=INK, linewidth=1, label=_published(name), zorder=0)
        emphasized = [point for point in points if "zorder" not in looks[point.method]] or points
        axes.set_ylim(*_end_of_training(emphasized, last, published.values()))
        axes.set(xlabel="epoch", ylabel=f"{results.split} accuracy, %")
        axes.legend(ncols=2, loc="lower right")

    ends = ", ".join(f"{p.method} {p.test_accuracy_percent:.1f}" for p in points if p.epoch == last)
    said = f"{results.split} accuracy by epoch, mean over seeds, band from lowest to highest. At the end: {ends}."
    return render("curves", f"{results.suite}: {said}", (8, 4.5), paint)


def _end_of_training(
    points: Sequence[CurvePoint], last: int, published: Collection[Sequence[Mapping[str, float]]]
) -> tuple[float, float]:
    """Choose the limits of the axis of accuracies: from below the final ones, or the first quartile of all, to the top.

    A learning rate that falls late lifts the ends of all methods far above what their epochs reach before. A published
    curve is shown to its top.
    """
    final = [point for point in points if point.epoch == last]
    lowest = min(point.test_accuracy_percent for point in final)
    highest = max([*(point.highest_percent for point in final), *(rows[-1]["test_accuracy"] for rows in published)])
    top = max([highest, *(row["test_accuracy"] for rows in published for row in rows)])
    plateau = float(np.percentile([point.test_accuracy_percent for point in points], 25))
    return min(lowest - 1.5 * max(highest - lowest, 2), plateau - 2), top + 0.5


def losses(results: Results) -> str | None:
    """Draw the loss on either split by epoch, in eval mode, of the methods that have a published one, which is dotted.

    Means over seeds, with a band from the lowest to the highest. None where there are no such losses.
    """
    compared = {}
    for name, rows in results.published_curves.items():
        ours = [row for row in results.histories.get(name, ()) if "test_loss" in row]
        theirs = [row for row in rows if "train_loss" in row and "test_loss" in row]
        if ours and theirs:
            there, all_of_them = (len({row["seed"] for row in of}) for of in (ours, results.histories[name]))
            label = name if there == all_of_them else f"{name} ({there} of {all_of_them} seeds)"
            compared[label] = {split: _by_epoch(ours, f"{split}_loss") for split in ("train", "test")}, theirs
    if not compared:
        return None

    def paint(*panels: Axes) -> None:
        for axes, split in zip(panels, ("train", "test"), strict=True):
            for (name, (ours, theirs)), color in zip(compared.items(), COLORS[1:], strict=False):
                epochs, values = list(ours[split]), list(ours[split].values())
                axes.fill_between(epochs, [*map(min, values)], [*map(max, values)], alpha=0.2, linewidth=0, color=color)
                axes.plot(epochs, [float(np.mean(each)) for each in values], color=color, label=name)
                there = ([row[key] for row in theirs] for key in ("epoch", f"{split}_loss"))
                axes.plot(*there, ":", color=INK, linewidth=1, label=_published(name))
            axes.set(xlabel="epoch", title=f"loss on the {split} images", yscale="log")
        panels[0].legend()

    ends = [
        f"{name} {np.mean([*ours['test'].values()][-1]):.3f}, published {theirs[-1]['test_loss']:.3f}"
        for name, (ours, theirs) in compared.items()
    ]
    said = f"Loss by epoch, mean over seeds, band from lowest to highest. At the end, test images: {'; '.join(ends)}."
    return render("losses", said, (9, 3.2), paint, 2)


def _by_epoch(rows: Iterable[Mapping[str, float]], key: str) -> dict[int, list[float]]:
    """Collect over seeds the values of each epoch."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(int(row["epoch"]), []).append(row[key])
    return found


def _published(name: str) -> str:
    """Label a published curve; a dollar would begin a formula."""
    return f"{one_line(name)}, published".replace("$", r"\$")


def forest(results: Results) -> str:
    """Draw the differences paired by seed with their 95 % intervals, one panel for each baseline."""
    table, bases, blue = results.rows, results.bases(), COLORS[1]

    def paint(*panels: Axes) -> None:
        for axes, base in zip(panels, bases, strict=True):
            rows = [row for row in table if base in row.over_points][::-1]
            for y, row in enumerate(rows):
                gap, decides = row.over_points[base], significant(row.corrected_p.get(base))
                decides = decides and not better_lost_seeds(results.measured, row.method, base, gap)
                face = blue if decides else "none"
                axes.errorbar(gap.mean, y, xerr=gap.half_width, fmt="s", color=blue, mfc=face, capsize=3)
            axes.set_yticks(range(len(rows)), [row.method for row in rows])
            axes.set_ylim(-0.6, len(rows) - 0.4)
            _gains(axes, f"over {base}")

    said = "; ".join(f"{row.method} over {b} {gap.mean:+.2f}" for row in table for b, gap in row.over_points.items())
    description = f"Differences in accuracy, paired by seed, with 95 % intervals: {said}."
    return render("forest", description, (8, 1 + 0.27 * len(table)), paint, len(bases))


def _gains(axes: Axes, title: str) -> None:
    """Dress a panel of differences: a line at zero, no grid across."""
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="percentage points", title=title)
    axes.grid(visible=False, axis="y")


TRIPLET_FIGURES = {
    "violated_triplets": ("violated triplets, %", 100),
    "anchor_positive": ("anchor to positive", 1),
    "anchor_negative": ("anchor to negative", 1),
}


def triplets(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Draw the paper's idea through training: violated triplets, and the two distances, means over seeds."""
    means: dict[str, dict[int, list[float]]] = {}  # method -> epoch -> the mean of each of TRIPLET_FIGURES
    for name, rows in histories.items():
        tracked = [row for row in rows if "violated_triplets" in row]
        for epoch in sorted({int(row["epoch"]) for row in tracked}):
            of_epoch = [[row[key] for key in TRIPLET_FIGURES] for row in tracked if row["epoch"] == epoch]
            means.setdefault(name, {})[epoch] = np.mean(of_epoch, axis=0).tolist()

    def paint(*panels: Axes) -> None:
        for i, (axes, (label, scale)) in enumerate(zip(panels, TRIPLET_FIGURES.values(), strict=True)):
            for name, look in _styles(means).items():
                axes.plot(list(means[name]), [scale * values[i] for values in means[name].values()], **look)
            axes.set(xlabel="epoch", title=label, ylim=(0, None))
        panels[0].legend(fontsize=7)

    said = ", ".join(f"{name} {100 * [*by_epoch.values()][-1][0]:.1f} %" for name, by_epoch in means.items())
    description = f"Violated triplets and distances through training. Violated at the end: {said}."
    return render("triplets", description, (9, 3.2), paint, 3)


def by_class(measured: Mapping[str, Measurement], names: Sequence[str], base: str, classes: Sequence[str]) -> str:
    """Draw how much more of each class a method gets right than the baseline does, means over seeds, sorted.

    Args:
        measured: By method.
        names: The methods, a panel each.
        base: The baseline.
        classes: The classes' names, shown where they are up to NAMED_CLASSES.
    """
    classes = [name if len(name) <= 20 else f"{name[:19]}…" for name in map(one_line, classes)]
    gains = {name: _gain_by_class(measured[name], measured[base]) for name in names}

    def paint(*panels: Axes) -> None:
        widest = max(abs(values).max() for values in gains.values()) or 1  # where none differs from the baseline
        for axes, (name, values) in zip(panels, gains.items(), strict=True):
            order = np.argsort(values)
            axes.barh(range(len(values)), values[order], color=COLORS[1], height=0.7)
            labels = [classes[c] for c in order] if len(classes) <= NAMED_CLASSES else []
            axes.set_yticks(range(len(labels)), labels, parse_math=False)
            axes.set(xlim=(-1.1 * widest, 1.1 * widest))
            _gains(axes, f"{name} over {base}")
        panels[0].set_ylabel("class")

    said = "; ".join(
        f"{name} from " + " to ".join(f"{values[c]:+.1f} ({classes[c]})" for c in (values.argmin(), values.argmax()))
        for name, values in gains.items()
    )
    return render("classes", f"Gain over {base} by class: {said}.", (9, 3.4), paint, len(names))


def _gain_by_class(ours: Measurement, theirs: Measurement) -> NDArray[np.float64]:
    """Subtract mean accuracies by class, in points: over the seeds that both have, or all where they share none."""
    shared = {s.seed for s in ours.seeds} & {s.seed for s in theirs.seeds}
    rates = [
        np.mean([s.test_accuracy_by_class for s in each.seeds if s.seed in shared or not shared], axis=0)
        for each in (ours, theirs)
    ]
    return 100 * np.asarray(rates[0] - rates[1], dtype=np.float64)


def calibration(measured: Mapping[str, Measurement]) -> str:
    """Draw the accuracy of the predictions made with a given confidence; on the diagonal, confidence is deserved."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.6)
        for i, (name, look) in enumerate(_styles(measured).items()):
            bins = [seed.test_calibration for seed in measured[name].seeds]
            share, confidence, accuracy = np.mean([(b.share, b.confidence, b.accuracy) for b in bins], axis=0)
            seen = share > 0.002
            marker = "" if "zorder" in look else MARKERS[i % 8]
            x, y = (100 * values[seen] / share[seen] for values in (confidence, accuracy))
            axes.plot(x, y, marker=marker, markersize=3, **look)
        axes.set(xlabel="confidence, %", ylabel="accuracy, %")
        axes.legend(fontsize=7, loc="upper left")

    errors = {name: np.mean([seed.test_calibration_error for seed in m.seeds]) for name, m in measured.items()}
    said = ", ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items())
    return render("calibration", f"Accuracy by confidence. Calibration errors: {said}.", (6, 4.2), paint)


def outputs(name: str, points: Sequence[Mapping[str, float]]) -> str:
    """Draw test images where teacher and student, before and after training, put them: see measure.output_map.

    Args:
        name: The student's method.
        points: A row for each image, label and the coordinates teacher_x, teacher_y, before_x, ... after_y.
    """
    titles = {"teacher": "teacher", "before": "student before training (enlarged)", "after": "student after training"}

    def paint(*panels: Axes) -> None:
        for axes, (who, title) in zip(panels, titles.items(), strict=True):
            for label in sorted({int(p["label"]) for p in points}):
                mine = [p for p in points if p["label"] == label]
                x, y = ([p[f"{who}_{axis}"] for p in mine] for axis in "xy")
                axes.plot(x, y, linestyle="", marker=f"${label}$", markersize=5, color=COLORS[label % 8])
            axes.set(title=title, xticks=[], yticks=[])
            axes.grid(visible=False)
        for axis in "xy":  # teacher and trained student at one scale
            both = [p[f"{who}_{axis}"] for who in ("teacher", "after") for p in points]
            room = 0.06 * (max(both) - min(both)) or 1
            for axes in (panels[0], panels[2]):
                axes.set(**{f"{axis}lim": (min(both) - room, max(both) + room)})

    said = (
        f"Test images by two directions of the outputs of the teacher and of one {name} student, numbers for classes."
    )
    return render("outputs", said, (9, 3.2), paint, 3)


def ablation(name: str, split: str, lines: Sequence[Line]) -> str:
    """Draw each variant's mean with its 95 % interval, and every seed.

    The variants are along the value where just one number is varied, else side by side.

    Args:
        name: The ablation's.
        split: What the accuracies are measured on.
        lines: Its variants.
    """
    keys = {key for line in lines for key in line.changed}
    values = [next(iter(line.changed.values()), None) for line in lines]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    is_along = len(keys) == 1 and len(numbers) == len(lines)
    places: Sequence[float] = numbers if is_along else range(len(lines))

    def paint(axes: Axes) -> None:
        for x, line in zip(places, lines, strict=True):
            color, seeds = COLORS[3] if line.reference else COLORS[1], list(line.seeds_percent.values())
            axes.plot([x] * len(seeds), seeds, "o", color=color, alpha=0.45, markersize=3)
            if seeds:
                found, face = line.accuracy_percent, color if line.reference else "none"
                axes.errorbar(x, found.mean, found.half_width, fmt="s", color=color, mfc=face, capsize=4, markersize=7)
        if is_along:
            means = [line.accuracy_percent.mean for line in lines]
            axes.plot(places, means, "--", color=COLORS[0], linewidth=0.8, zorder=0)
            if min(places) > 0 and max(places) >= 8 * min(places):
                axes.set_xscale("log")
            axes.set_xticks(places, [str(x) for x in places])
            axes.minorticks_off()
        else:
            axes.set_xticks(places, [line.label.replace(", ", "\n") for line in lines])
            axes.margins(x=0.15)
        axes.set(xlabel=keys.pop() if len(keys) == 1 else name, ylabel=f"{split} accuracy, %")

    means = ", ".join(f"{line.label} {line.accuracy_percent.mean:.2f}" for line in lines if line.accuracy_percent.n)
    description = f"{name}: {split} accuracy of each variant, mean with 95 % interval and every seed. {means}."
    return render(f"ablation-{name}", description, (6.5, 3.6), paint)
