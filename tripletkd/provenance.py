"""Where results come from: hashes, environments, files that are whole or not there at all."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Hash the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """sha256 of anything JSON can hold; equal parts, equal fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Look up the versions of packages, without what tells builds of one version apart (2.11.0+cpu is 2.11.0)."""
    return {name: version(name).partition("+")[0] for name in packages}


def environment(device: str) -> dict[str, Any]:
    """What the numbers may depend on: named things only, never the process's environment variables."""
    import numpy
    import torch

    cuda = device == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name, from /proc where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
