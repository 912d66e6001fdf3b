"""The command line of `tripletkd`: it parses, and imports what a command needs when that is called."""

from collections.abc import Sequence
from typing import Literal

import click

from tripletkd.pipeline.stage import errors_for_people

SUITES = click.argument("suites", nargs=-1, required=True, metavar="SUITE...")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def tripletkd() -> None:
    """Plan, check, share and publish the runs of a suite. Run it from the project's root."""


@tripletkd.command()
@click.argument("words", nargs=-1, metavar="[SUITE] [KEY=VALUE]...")
@click.option("--ask", is_flag=True, help="End with a question where the work takes days.")
@errors_for_people()
def plan(words: Sequence[str], ask: bool) -> None:
    """Say what `dvc repro` would train, and how long it takes on this machine.

    SUITE is a block of `suites` in params.yaml; by default the plan is of those in run.suites. KEY=VALUE changes a
    setting of params.yaml.
    """
    from tripletkd.cli.plan import main

    main([word if "=" in word else f"suite={word}" for word in words], ask)


@tripletkd.command()
@click.argument("suite")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--train", metavar="METHOD", help="Train the seeds of this method, or of the teacher, again, too.")
@errors_for_people()
def verify(suite: str, overrides: Sequence[str], train: str | None) -> None:
    """Measure a suite's weights again, make its tables again, and compare every byte with results/.

    Nothing that is there is changed. Without the suite's images the weights are not measured, but their hashes are
    compared with those that results/ names.
    """
    from tripletkd.cli.verify import main

    main(suite, overrides, train)


def _sharing(action: Literal["pull", "push"], what: str) -> None:
    @tripletkd.command(action, help=what)
    @SUITES
    @click.option("--remote", metavar="NAME", help="Another remote than DVC's default: `dvc remote list`.")
    @errors_for_people()
    def command(suites: Sequence[str], remote: str | None) -> None:
        from tripletkd.cli.push_pull import share

        share(action, suites, remote)


_sharing("pull", "Get the runs that others have trained, with their logs, from DVC's remote.")
_sharing("push", "Copy the runs of suites, with their logs, to DVC's remote. Images are not shared.")


@tripletkd.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[ANY OPTION OF SBATCH]...")
@click.option("--seed-array", is_flag=True, help="Train the seeds of a stage as an array of jobs, one each.")
@errors_for_people()
def submit(options: Sequence[str], seed_array: bool) -> None:
    """Submit what `dvc repro` would run to Slurm, a job for each stage."""
    from tripletkd.cli.submit import main

    main(options, seed_array)


@tripletkd.command()
@SUITES
@errors_for_people()
def release(suites: Sequence[str]) -> None:
    """Pack weights, tables, model cards and hashes of suites into one archive, of the commit, after verifying them."""
    from tripletkd.cli.release import main

    main(suites)


if __name__ == "__main__":
    tripletkd(prog_name="tripletkd")
