"""The pictures, each the text of one SVG: for a page or alone, for light and dark, told apart without colour."""

import io
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tripletkd.analysis.statistics import significant
from tripletkd.reporting.text import one_line, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tripletkd.analysis.ablation import Line
    from tripletkd.analysis.comparison import CurvePoint, Row
    from tripletkd.evaluation.measurement import Measurement

INK = "#010203"  # in its place, the colour of the text around the picture
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tripletkd",  # the same picture, the same bytes
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
# Of middle lightness, to be seen on white and on black; with the dashes and markers, told apart in grey too.
COLOURS = ["#7f8c8d", "#2f7ed8", "#17a589", "#d68910", "#d1495b", "#8e6bbf", "#a0743b", "#3aa0c9"]
DASHES = ["-", "--", "-.", ":"]
EMPHASIS = ("scratch", "kd", "pair", "triplet", "kd_triplet")  # where there are more methods than colours
MARKERS = "osD^vPX*"
NAMED_CLASSES = 20  # with more, their names have no room
ON_ITS_OWN = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"


def render(name: str, description: str, size: tuple[float, float], paint: Callable[..., None], columns: int = 1) -> str:
    """Draw a picture of one or more panels.

    Args:
        name: makes the ids of this picture its own, in a page with others.
        description: for who does not see it.
        size: width and height in inches.
        paint: draws on the panels' axes, which are its arguments.
        columns: how many panels stand beside each other.

    Returns:
        The text of an SVG element for a page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
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

    The prologue, the metadata and the rules for the page around it go; the ids and the ink become its own; a text
    alternative is added. It fills the width there is, up to a quarter more than drawn.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg).replace(INK, "currentColor")
    svg = re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", svg)
    svg = re.sub(r"\s+\n", "\n", svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    width = f'style="max-width: {1.25 * inches:g}in"'
    return f'{opening} {width} role="img" aria-label="{escape(description)}"><title>{escape(description)}</title>{rest}'


def standalone(svg: str) -> str:
    """Give a page's SVG element colours and a size of its own, for a file: some viewers show it minute without."""
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    sized = svg.replace("<svg", f'<svg width="{width}pt" height="{height}pt"', 1)
    return sized.replace("</title>", f"</title>{ON_ITS_OWN}", 1)


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose the style of each method's line, as matplotlib's `plot` takes it.

    Where the methods are more than the colours, all but EMPHASIS are thin and grey and share a label. These have a
    "zorder", which puts them behind the rest.
    """
    names = list(names)
    strong = names if len(names) <= len(COLOURS) else [name for name in names if name in EMPHASIS]
    faint = [name for name in names if name not in strong]
    looks = {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % 4], "linewidth": 1.4, "label": name}
        for i, name in enumerate(strong)
    }
    thin: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-", "linewidth": 0.5, "zorder": 0}
    looks |= {name: thin | {"label": f"{len(faint)} others" if name == faint[0] else None} for name in faint}
    return {name: looks[name] for name in names}


def curves(
    suite: str,
    split: str,
    points: Sequence["CurvePoint"],
    published: Mapping[str, Sequence[Mapping[str, float]]] = MappingProxyType({}),
) -> str:
    """Draw accuracy by epoch: a line a method, with a band from the lowest to the highest seed.

    Args:
        suite: its name.
        split: what the accuracies are measured on.
        points: of comparison.curves.
        published: published curves by method, rows with epoch and test_accuracy.
    """
    looks = _styles(dict.fromkeys(point.method for point in points))
    last = max(point.epoch for point in points)
    final = [point for point in points if point.epoch == last]
    emphasised = [point for point in final if "zorder" not in looks[point.method]]

    def paint(axes: "Axes") -> None:
        for name, look in looks.items():
            mine = [point for point in points if point.method == name]
            epochs = [point.epoch for point in mine]
            if "zorder" not in look:
                low, high = [point.lowest for point in mine], [point.highest for point in mine]
                axes.fill_between(epochs, low, high, alpha=0.12, linewidth=0, color=look["color"])
            axes.plot(epochs, [point.test_accuracy for point in mine], **look)
        for name, rows in published.items():
            epochs_there, values = ([row[key] for row in rows] for key in ("epoch", "test_accuracy"))
            label = f"{one_line(name)}, published".replace("$", r"\$")  # which would begin a formula
            axes.plot(epochs_there, values, ":", color=INK, linewidth=1, label=label, zorder=0)
        axes.set_ylim(*_end_of_training(points, emphasised, published.values()))
        axes.set(xlabel="epoch", ylabel=f"{split} accuracy, %")
        axes.legend(ncols=2, loc="lower right")

    ends = ", ".join(f"{point.method} {point.test_accuracy:.1f}" for point in final)
    description = (
        f"{suite}: {split} accuracy by epoch, mean over seeds, band from lowest to highest. At the end: {ends}."
    )
    return render("curves", description, (8, 4.5), paint)


def _end_of_training(
    points: Sequence["CurvePoint"],
    emphasised: Sequence["CurvePoint"],
    published: Collection[Sequence[Mapping[str, float]]],
) -> tuple[float, float]:
    """Choose from where to where accuracies are shown: where methods differ, at the end, and what most epochs reach.

    A published curve is shown to its top.

    A learning rate that falls late lifts the ends of all methods far above what their epochs reach before.

    Args:
        points: of all methods and epochs.
        emphasised: of them, the last epoch's that stand out.
        published: the published curves.
    """
    named = {point.method for point in emphasised}
    lowest = min(point.test_accuracy for point in emphasised)
    highest = max(*(point.highest for point in emphasised), *(rows[-1]["test_accuracy"] for rows in published), lowest)
    top = max([highest, *(row["test_accuracy"] for rows in published for row in rows)])
    plateau = np.percentile([point.test_accuracy for point in points if point.method in named], 25)
    return min(lowest - 1.5 * max(highest - lowest, 2), float(plateau) - 2), top + 0.5


def forest(table: Sequence["Row"], bases: Sequence[str]) -> str:
    """Draw the differences paired by seed with their 95 % intervals, one panel a baseline."""

    def paint(*panels: "Axes") -> None:
        for axes, base in zip(panels, bases, strict=True):
            rows = [row for row in table if base in row.over][::-1]
            for y, row in enumerate(rows):
                gap, is_significant = row.over[base], significant(row.corrected_p.get(base))
                axes.errorbar(
                    gap.mean,
                    y,
                    xerr=gap.half_width,
                    fmt="s",
                    color=COLOURS[1],
                    markerfacecolor=COLOURS[1] if is_significant else "none",
                    capsize=3,
                )
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.set_yticks(range(len(rows)), [row.method for row in rows])
            axes.set_ylim(-0.6, len(rows) - 0.4)
            axes.set(xlabel="percentage points", title=f"over {base}")
            axes.grid(visible=False, axis="y")

    said = "; ".join(f"{row.method} over {base} {gap.mean:+.2f}" for row in table for base, gap in row.over.items())
    description = f"Differences in accuracy, paired by seed, with 95 % intervals: {said}."
    return render("forest", description, (8, 1 + 0.27 * len(table)), paint, len(bases))


TRIPLET_FIGURES = {
    "violated_triplets": ("violated triplets, %", 100),
    "anchor_positive": ("anchor to positive", 1),
    "anchor_negative": ("anchor to negative", 1),
}


def triplets(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Draw the paper's idea through training: violated triplets, and the two distances, means over seeds."""
    tracked = {name: [row for row in rows if "violated_triplets" in row] for name, rows in histories.items()}

    def paint(*panels: "Axes") -> None:
        for axes, (key, (label, scale)) in zip(panels, TRIPLET_FIGURES.items(), strict=True):
            for name, look in _styles(tracked).items():
                rows = tracked[name]
                epochs = sorted({row["epoch"] for row in rows})
                means = [scale * np.mean([row[key] for row in rows if row["epoch"] == epoch]) for epoch in epochs]
                axes.plot(epochs, means, **look)
            axes.set(xlabel="epoch", title=label, ylim=(0, None))
        panels[0].legend(fontsize=7)

    ends = {
        name: np.mean([row["violated_triplets"] for row in rows if row["epoch"] == rows[-1]["epoch"]])
        for name, rows in tracked.items()
        if rows
    }
    said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in ends.items())
    return render(
        "triplets",
        f"Violated triplets and distances through training. Violated at the end: {said}.",
        (9, 3.2),
        paint,
        3,
    )


def cost(measured: Mapping[str, "Measurement"], accuracy: Mapping[str, float]) -> str:
    """Draw accuracy, in percent by method, against parameters, multiply-adds of an image, and bytes of weights."""
    keys = {"parameters": "parameters", "multiply_adds": "multiply-adds an image", "weights_bytes": "bytes of weights"}

    def paint(*panels: "Axes") -> None:
        for axes, (key, label) in zip(panels, keys.items(), strict=True):
            looks = _styles(name for name in measured if name != "teacher")
            found = {name: getattr(each, key) for name, each in measured.items()}
            for i, (name, size) in enumerate(found.items()):
                look = looks.get(name, {"color": INK, "label": name})
                axes.plot(size, accuracy[name], MARKERS[i % 8], label=look["label"], color=look["color"])
            sizes = sorted(set(found.values()))
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.minorticks_off()
            axes.margins(x=0.35)
            axes.set(xlabel=label)
        panels[0].set_ylabel("accuracy, %")
        panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

    said = ", ".join(f"{name} {each.parameters:,} parameters" for name, each in list(measured.items())[:2])
    return render("cost", f"Accuracy against the cost of the network: {said}.", (9, 3.2), paint, 3)


def by_class(measured: Mapping[str, "Measurement"], names: Sequence[str], base: str, classes: Sequence[str]) -> str:
    """Draw how much more of each class a method gets right than the baseline does, means over seeds, sorted.

    Args:
        measured: by method.
        names: the methods, a panel each.
        base: the baseline.
        classes: the classes' names, shown where they are up to NAMED_CLASSES.
    """
    classes = [name if len(name) <= 20 else f"{name[:19]}…" for name in map(one_line, classes)]

    def rates(name: str) -> "NDArray[np.float64]":
        return np.asarray(np.mean([seed.test_accuracy_by_class for seed in measured[name].seeds], axis=0))

    def gains(name: str) -> "NDArray[np.float64]":
        return 100 * (rates(name) - rates(base))

    def paint(*panels: "Axes") -> None:
        widest = max(abs(gains(name)).max() for name in names) or 1  # where none differs from the baseline
        for axes, name in zip(panels, names, strict=True):
            values = gains(name)
            order = np.argsort(values)
            axes.barh(range(len(values)), values[order], color=COLOURS[1], height=0.7)
            axes.axvline(0, color=INK, linewidth=0.8)
            labels = [classes[c] for c in order] if len(classes) <= NAMED_CLASSES else []
            axes.set_yticks(range(len(labels)), labels, parse_math=False)
            axes.set(title=f"{name} over {base}", xlabel="percentage points", xlim=(-1.1 * widest, 1.1 * widest))
            axes.grid(visible=False, axis="y")
        panels[0].set_ylabel("class")

    def extremes(name: str) -> str:
        values = gains(name)
        worst, best = values.argmin(), values.argmax()
        return f"{name} from {values[worst]:+.1f} ({classes[worst]}) to {values[best]:+.1f} ({classes[best]})"

    said = "; ".join(map(extremes, names))
    return render("classes", f"Gain over {base} by class: {said}.", (9, 3.4), paint, len(names))


def calibration(measured: Mapping[str, "Measurement"]) -> str:
    """Draw the accuracy of the predictions made with a given confidence; on the diagonal, confidence is deserved."""

    def paint(axes: "Axes") -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.6)
        for i, (name, look) in enumerate(_styles(measured).items()):
            bins = [seed.test_calibration for seed in measured[name].seeds]
            share, confidence, accuracy = (
                np.mean([getattr(each, key) for each in bins], axis=0) for key in ("share", "confidence", "accuracy")
            )
            seen = share > 0.002
            x, y = (100 * values[seen] / share[seen] for values in (confidence, accuracy))
            marker = "" if "zorder" in look else MARKERS[i % 8]
            axes.plot(x, y, marker=marker, markersize=3, **look)
        axes.set(xlabel="confidence, %", ylabel="accuracy, %")
        axes.legend(fontsize=7, loc="upper left")

    errors = {name: np.mean([seed.test_calibration_error for seed in m.seeds]) for name, m in measured.items()}
    said = ", ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items())
    return render("calibration", f"Accuracy by confidence. Calibration errors: {said}.", (6, 4.2), paint)


def outputs(name: str, points: Sequence[Mapping[str, float]]) -> str:
    """Draw test images where teacher and student, before and after training, put them: see measure.output_map.

    Args:
        name: the student's method.
        points: a row an image, label and the coordinates teacher_x, teacher_y, before_x, ... after_y.
    """

    def paint(*panels: "Axes") -> None:
        for axes, (who, title) in zip(
            panels,
            {"teacher": "teacher", "before": "student, untrained (enlarged)", "after": "student, trained"}.items(),
            strict=True,
        ):
            for label in sorted({int(p["label"]) for p in points}):
                mine = [p for p in points if p["label"] == label]
                x, y = ([p[f"{who}_{axis}"] for p in mine] for axis in "xy")
                axes.plot(x, y, linestyle="", marker=f"${label}$", markersize=5, color=COLOURS[label % 8])
            axes.set(title=title, xticks=[], yticks=[])
            axes.grid(visible=False)
        for axis in "xy":  # teacher and trained student at one scale
            both = [p[f"{who}_{axis}"] for who in ("teacher", "after") for p in points]
            room = 0.06 * (max(both) - min(both)) or 1
            for axes in (panels[0], panels[2]):
                axes.set(**{f"{axis}lim": (min(both) - room, max(both) + room)})

    description = (
        f"Test images by two directions of the outputs of the teacher and of one {name} student, numbers for classes."
    )
    return render("outputs", description, (9, 3.2), paint, 3)


def ablation(name: str, split: str, lines: Sequence["Line"]) -> str:
    """Draw each variant's mean with its 95 % interval, and every seed.

    The variants stand along the value where just one number is varied, else side by side.

    Args:
        name: the ablation's.
        split: what the accuracies are measured on.
        lines: its variants.
    """
    keys = {key for line in lines for key in line.changed}
    values = [next(iter(line.changed.values()), None) for line in lines]
    number = len(keys) == 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places: Any = values if number else list(range(len(lines)))

    def paint(axes: "Axes") -> None:
        for x, line in zip(places, lines, strict=True):
            colour = COLOURS[3] if line.reference else COLOURS[1]
            axes.plot([x] * len(line.seeds), list(line.seeds.values()), "o", color=colour, alpha=0.45, markersize=3)
            if line.accuracy.n:
                face = colour if line.reference else "none"
                bar: dict[str, Any] = {
                    "fmt": "s",
                    "capsize": 4,
                    "color": colour,
                    "markerfacecolor": face,
                    "markersize": 7,
                }
                axes.errorbar(x, line.accuracy.mean, yerr=line.accuracy.half_width, **bar)
        if number:
            axes.plot(places, [line.accuracy.mean for line in lines], "--", color=COLOURS[0], linewidth=0.8, zorder=0)
            if min(places) > 0 and max(places) >= 8 * min(places):
                axes.set_xscale("log")
            axes.set_xticks(places, [str(v) for v in values])
            axes.minorticks_off()
        else:
            axes.set_xticks(places, [line.label.replace(", ", "\n") for line in lines])
            axes.margins(x=0.15)
        axes.set(xlabel=keys.pop() if len(keys) == 1 else name, ylabel=f"{split} accuracy, %")

    means = ", ".join(f"{line.label} {line.accuracy.mean:.2f}" for line in lines if line.accuracy.n)
    description = f"{name}: {split} accuracy of each variant, mean with 95 % interval and every seed. {means}."
    return render(f"ablation-{name}", description, (6.5, 3.6), paint)
