"""Simulates how often the interval "other images too" holds the true difference; prints the table in docs/verdicts.md.

    python -m tests.analysis.simulated_coverage

Two methods are equally good: a seed's network gets an image right where 1 plus the seed's effect, the image's and noise
of standard deviation 1 is above 0, each drawn anew for each method.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tripletkd.analysis.statistics import crossed_half_widths

IMAGES, EXPERIMENTS = 200, 4000
SEEDS = (2, 3, 5, 10)
EFFECTS = {"neither": (0.0, 0.0), "seeds": (0.15, 0.0), "images": (0.0, 1.0), "both": (0.15, 1.0)}  # deviations
FAR = 5  # times its median: an interval of which nothing can be learnt


def differences(random: np.random.Generator, seeds: int, of_seeds: float, of_images: float) -> NDArray[np.float64]:
    """Hits of one method minus the other's, [experiment, seed, image]."""

    def hits() -> NDArray[np.bool_]:
        seed, image = random.standard_normal((EXPERIMENTS, seeds, 1)), random.standard_normal((EXPERIMENTS, 1, IMAGES))
        noise = random.standard_normal((EXPERIMENTS, seeds, IMAGES), dtype=np.float32)
        return 1 + of_seeds * seed + of_images * image + noise > 0

    return hits() - hits().astype(np.float64)


def table(counts: Sequence[int] = SEEDS) -> list[str]:
    """Markdown, in percent: a row a number of seeds; the coverage by kind of effect, and how many are far too wide."""
    lines = [f"| seeds | {' | '.join(EFFECTS)} | over {FAR} times as wide |", "| ---: " * (len(EFFECTS) + 2) + "|"]
    for seeds in counts:
        held, far = [], []
        for i, deviations in enumerate(EFFECTS.values()):
            gaps = differences(np.random.default_rng([seeds, i]), seeds, *deviations)
            widths = crossed_half_widths(gaps)
            held.append(f"{100 * np.mean(abs(gaps.mean((1, 2))) <= widths):.1f}")
            far.append(100 * np.mean(widths > FAR * np.median(widths)))
        lines.append(f"| {seeds} | {' | '.join(held)} | {max(far):.1f} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
