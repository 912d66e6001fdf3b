"""The hashes of the code of a copy of the project, in a process that begins with PyTorch imported and nothing of ours.

Importing PyTorch takes longer than all else, and a test of what counts as a change needs hashes many times.
"""

import os
import sys
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "pydantic", "ruamel.yaml", "filelock", "tqdm"])


def _hash(folder: Path, told: Connection) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        from tripletkd.config.load import load
        from tripletkd.pipeline.code import code_of_stage
        from tripletkd.pipeline.jobs import Runs
        from tripletkd.pipeline.stage import Stage

        stage = Stage("distill", load(folder, ["suite=digits", "method=triplet"]))
        job = Runs(stage, "d" * 64, "t" * 64).student("triplet")
        told.send((job.code, code_of_stage("distill", "triplet")["code"]))
    except Exception:
        told.send(traceback.format_exc())


def hashes(folder: Path) -> tuple[str, str]:
    """The hash of the code that trains a triplet student of the digits, and of the stage that does it.

    Raises:
        RuntimeError: If there is none; its text is the whole error.
    """
    here, there = SERVER.Pipe()
    process = SERVER.Process(target=_hash, args=(folder, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found
