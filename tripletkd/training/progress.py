"""What a person sees while a run trains: a bar on a terminal, a line a minute in a log, or nothing."""

import time
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

from tripletkd.errors import UserError
from tripletkd.streams import global_states
from tripletkd.training.checkpoint import Progress

LOG_EVERY = 60.0  # seconds, where there is no terminal to show a bar on

Rows = Sequence[dict[str, float]]


class Watch(Protocol):
    """Looks on while a run trains. Nothing of it changes what is trained."""

    def begin(self, done: Progress, epochs: int, steps: int) -> None:
        """Be told what is done already, of how many epochs of how many steps."""

    def step(self) -> None:
        """Be told that a step is done."""

    def epoch(self, rows: Rows, done: Progress) -> None:
        """Be told the rows of the history that an epoch has added."""

    def end(self) -> None:
        """Be told that nothing more comes."""


class Unseen:
    """Shows nothing."""

    def begin(self, done: Progress, epochs: int, steps: int) -> None:
        """Show nothing."""

    def step(self) -> None:
        """Show nothing."""

    def epoch(self, rows: Rows, done: Progress) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class SeededOnly:
    """Hands on what it is told to another watch, and ends a run whose steps draw numbers that no seed determines."""

    def __init__(self, watch: Watch, of: str) -> None:
        self.watch, self.of, self.steps, self.states = watch, of, 0, dict[str, str]()

    def begin(self, done: Progress, epochs: int, steps: int) -> None:
        """Hand on."""
        self.has_one = steps == 1
        self.watch.begin(done, epochs, steps)

    def step(self) -> None:
        """Compare the generators after the second step of an epoch, or of the next one, with those after the first.

        Raises:
            UserError: If one was used in between.
        """
        self.steps += 1
        if self.steps == 1:
            self.states = global_states()
        elif self.steps == 2 and (
            moved := [name for name, state in global_states().items() if state != self.states.get(name)]
        ):
            raise UserError(
                f"{self.of}: a step draws from the generator of {moved[0]}, which no seed determines; expected "
                "tripletkd.models.dropout in a network, and the draw function of a method (docs/own-method.md)"
            )
        self.watch.step()

    def epoch(self, rows: Rows, done: Progress) -> None:
        """Hand on."""
        self.steps = self.steps if self.has_one else 0
        self.watch.epoch(rows, done)

    def end(self) -> None:
        """Hand on."""
        self.watch.end()


class ProgressBar:
    """Shows a bar with the time that is left on a terminal, and a line a minute in a log."""

    def __init__(self, description: str) -> None:
        self.description = description

    def begin(self, done: Progress, epochs: int, steps: int) -> None:
        """Show the bar where training begins, or goes on."""
        self.epochs, self.last_logged = epochs, time.monotonic()
        total, initial = epochs * steps, done.epoch * steps
        self.bar = tqdm(total=total, initial=initial, desc=self.description, unit="step", disable=None)  # not in a log

    def step(self) -> None:
        """Move the bar by one step."""
        self.bar.update()

    def epoch(self, rows: Rows, done: Progress) -> None:
        """Show an epoch's means over the seeds that did not fail."""
        figures = _means(rows)
        self.bar.set_postfix(figures, refresh=False)
        if self.bar.disable and time.monotonic() - self.last_logged >= LOG_EVERY:
            left = tqdm.format_interval(done.seconds / done.epoch * (self.epochs - done.epoch))
            shown = ", ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self.description}: epoch {done.epoch} of {self.epochs}, {shown}; {left} left", flush=True)
            self.last_logged = time.monotonic()

    def end(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def _means(rows: Rows) -> dict[str, str]:
    """Average the losses and the accuracies of an epoch over its seeds."""
    shown = {"loss": "{:.3f}", "train_accuracy": "{:.1%}", "test_accuracy": "{:.1%}"}
    return {
        name.removesuffix("_accuracy"): text.format(sum(row[name] for row in rows) / len(rows))
        for name, text in shown.items()
        if rows and name in rows[0]
    }
