"""The console command `tripletkd`: plan, verify, pull, push, submit and release."""

import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command with the code of the present folder, as `python -m` does.

    In a copy of the project, such as DVC makes for an experiment, the installed code is another checkout's.
    """
    if find_spec("click") is None:
        sys.exit("error: the command tripletkd needs a checkout of the project and its environment: `make env`")
    os.execv(sys.executable, [sys.executable, "-m", "tripletkd.cli", *sys.argv[1:]])  # nosec B606  # noqa: S606
