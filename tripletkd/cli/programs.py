"""Other programs, and what they say."""

import os
import subprocess
from pathlib import Path

from tripletkd.errors import UserError


def output(*words: str, folder: Path | None = None, script: str | None = None, **variables: str) -> str:
    """Run a program and return what it prints.

    Args:
        words: The program and its arguments. They come from params.yaml, or from whoever types them.
        folder: Where it runs; here by default.
        script: Its standard input.
        variables: Of its environment, beside those of this process.

    Raises:
        UserError: If it is not there, or fails; with what it said.
    """
    try:
        done = subprocess.run(  # nosec B603  # noqa: S603
            words, cwd=folder, env=os.environ | variables, input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(f"{words[0]}: not found on PATH; install it, or run this where it is") from None
    if done.returncode:
        name, said = Path(words[0]).name, (done.stderr or done.stdout).strip().removeprefix("error: ")
        said = said or f"ended with exit code {done.returncode}"
        raise UserError(said if said.startswith(name) or name.startswith("python") else f"{name}: {said}")
    return done.stdout
