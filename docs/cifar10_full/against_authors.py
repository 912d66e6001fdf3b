"""Print the authors' logged curve beside that of our triplet students, as the table of docs/paper.md has it.

    PYTHONPATH=. python docs/cifar10_full/against_authors.py results/cifar10/measured/test/triplet.csv

An epoch of theirs is marked where it lies outside our 95 % prediction interval of one further run.
"""

import sys
from pathlib import Path

from tripletkd.analysis.statistics import summarise
from tripletkd.training.run_record import read_history

AUTHORS = Path(__file__).parents[2] / "tripletkd/published/oki2020_cifar10_triplet.csv"
EPOCHS = (5, 10, 50, 100, 105, 200, 205, 300, 500)


def main(measured: Path) -> None:
    authors = {row["epoch"]: row for row in read_history(AUTHORS)}
    ours = read_history(measured)
    print(f"| epoch | authors: test, % | ours, n = {len({row['seed'] for row in ours})} | authors: train, % | ours |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for epoch in EPOCHS:
        cells: list[str] = []
        for key in ("test_accuracy", "train_accuracy"):
            values = summarise([100 * row[key] for row in ours if row["epoch"] == epoch])
            cells += beside(authors[epoch][key], values.mean, values.one_run)
        print(f"| {epoch} | {' | '.join(cells)} |")


def beside(theirs: float, mean: float, interval: tuple[float, float] | None) -> tuple[str, str]:
    if interval is None:
        return f"{theirs:.2f}", f"{mean:.2f}"
    low, high = interval
    return f"{theirs:.2f}" + (" (outside)" if not low <= theirs <= high else ""), f"{mean:.2f}, {low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
