"""Where results come from: hashes, fingerprints, and the machine that computed them."""

import hashlib
import json
import os
import platform
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tripletkd.files import Json


def sha256(path: Path) -> str:
    """Hash the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """sha256 of anything JSON can hold; equal parts, equal fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Look up the versions of packages, without what tells builds of one version apart (2.11.0+cpu is 2.11.0)."""
    return {name: version(name).partition("+")[0] for name in packages}


# Variables that choose other instructions than the processor offers, and so other last bits.
INSTRUCTIONS_FROM = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
)
FLAGS = re.compile(r"fma|avx\w*|amx\w*|sse4_2|asimd\w*|sve\w*|i8mm|bf16")  # of a processor, on which kernels depend


def environment(device: str) -> Json:
    """Describe what the numbers may depend on: named things only, of the process's variables INSTRUCTIONS_FROM."""
    import numpy
    import torch

    cuda = device == "cuda"
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    chosen = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS_FROM if os.environ.get(name)]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "processor_model": " ".join(f"{key} {_cpuinfo()[key]}" for key in ("cpu family", "model") if key in _cpuinfo()),
        "processor_flags": " ".join(sorted(filter(FLAGS.fullmatch, _cpuinfo().get("flags", "").split()))),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # that PyTorch's own kernels use
        "instructions_from": " ".join(chosen) or None,
        "blas": blas[1] if blas else None,
    }


def processor() -> str:
    """Name the processor, from /proc where there is one."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def _cpuinfo() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor; nothing where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    return found | ({"flags": found["Features"]} if "Features" in found else {})  # as ARM calls them
