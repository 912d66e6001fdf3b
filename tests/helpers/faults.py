"""Faults on order, for tests: a process that dies, or fails, at a chosen moment. The project knows nothing of them.

A fault is three words: what happens, where, and at which time of getting there.

    kill files 3                                 SIGKILL before the third change of a file below the current folder
    kill tripletkd.files:write_csv 20            SIGKILL before the 20th call
    crash ...                                    SIGKILL to the whole process group, DVC among it
    interrupt ...                                SIGINT to it, as a terminal's Ctrl-C
    poison tripletkd.training.trainer:Trainer.step 20    all weights of the second seed become infinite
    edit ...                                     the files in the folder that EDITED names replace those here

`python faults.py` is a process that has imported all that is slow and forks one for each stage it is asked to run: a
hundred kills in the time of ten.
"""

import importlib
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
PRELOADED = [
    "matplotlib.figure", "sklearn.datasets", "scipy.stats", "hydra", "hydra._internal.config_loader_impl", "pydantic",
    "safetensors.torch", "ruamel.yaml", "filelock", "jinja2", "tripletkd.pipeline.train_seeds", "tripletkd.config.load",
    "tripletkd.evaluation.measure", "tripletkd.reporting.folder", "tripletkd.data.sources",
]  # fmt: skip
FOR_EXPORT = [
    "torch._dynamo", "torch.export._trace", "torch.onnx._internal.exporter._core", "onnxscript", "onnxruntime",
]  # fmt: skip


def install(fault: str) -> None:
    """Into this process, before it does anything."""
    action, place, time_ = fault.split()
    remaining = [int(time_)]

    def reached(*arguments: Any) -> None:
        remaining[0] -= 1
        if remaining[0] == 0:
            ACTIONS[action](*arguments)

    if place == "files":
        sys.addaudithook(lambda event, arguments: reached() if _changes_a_file(event, arguments) else None)
    else:
        module, _, name = place.partition(":")
        sys.path.insert(0, str(Path.cwd()))  # where the process begins, Python has not put it there yet
        _wrap(importlib.import_module(module), name, reached)


def _interrupt(*_: Any) -> None:
    os.killpg(0, signal.SIGINT)
    time.sleep(0.1)


def _poison(trainer: Any, *_: Any) -> None:
    for param in trainer.students.params.values():
        param.detach()[1] = float("inf")


ACTIONS: dict[str, Callable[..., object]] = {
    "kill": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda *_: os.killpg(0, signal.SIGKILL),
    "interrupt": _interrupt,
    "poison": _poison,
    "edit": lambda *_: shutil.copytree(os.environ["EDITED"], ".", dirs_exist_ok=True),
}


def _changes_a_file(event: str, arguments: Any) -> bool:
    """Of the audit events. What is written by compiled code raises none."""
    if event == "open":
        name, _, flags = arguments
        return isinstance(name, str) and _here(name) and bool(flags & WRITES)
    names = [name for name in arguments[:2] if isinstance(name, str | bytes | os.PathLike)]
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and all(_here(name) for name in names)


def _here(name: Any) -> bool:
    return Path(os.fsdecode(name)).absolute().is_relative_to(Path.cwd())


def _wrap(module: ModuleType, name: str, reached: Callable[..., None]) -> None:
    *outer, last = name.split(".")
    holder: Any = module
    for part in outer:
        holder = getattr(holder, part)
    original = getattr(holder, last)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        reached(*arguments)
        return original(*arguments, **named)

    setattr(holder, last, wrapped)


def install_from_environment() -> None:
    """FAULT, in those processes only whose command line mentions FAULT_IN."""
    if os.environ.get("FAULT") and os.environ["FAULT_IN"] in " ".join(sys.orig_argv):
        install(os.environ["FAULT"])


# --- a process that forks stages --------------------------------------------------------------------------------------


def serve() -> None:
    """A request a line on standard input, a stage's exit status and most memory a line on standard output."""
    for name in PRELOADED:
        importlib.import_module(name)
    from tripletkd.pipeline.code import code_of_stage

    for line in sys.stdin:
        request = json.loads(line)
        if request["stage"] == "export":
            _prepare_export()
        code_of_stage(request["stage"], "triplet")  # whose parts are parsed once for all processes
        pid = os.fork()
        if pid == 0:
            _run_stage(request)
        _, status, usage = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)


def _prepare_export() -> None:
    for name in FOR_EXPORT:
        importlib.import_module(name)
    from tripletkd import export

    export.TIMED_SECONDS = 0  # the times are no output


def _run_stage(request: dict[str, Any]) -> None:
    """In the forked process; never returns."""
    code, fault = 1, request["fault"]
    try:
        signal.alarm(300)
        os.chdir(request["folder"])
        os.environ.update(request["variables"])
        descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (descriptor, 1), (descriptor, 2)):
            os.dup2(source, target)
        if bytes_a_file := request["bytes_a_file"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault == "kill" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))
        if " " in fault:
            install(fault)
        sys.argv = [f"stages/{request['stage']}.py", *request["words"]]
        runpy.run_module(f"stages.{request['stage']}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
