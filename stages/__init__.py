"""The eight steps of the pipeline, a script each: python -m stages.<stage>. dvc.yaml has their order and inputs."""

import sys
from importlib.util import find_spec

import tripletkd  # noqa: F401  it removes stale bytecode, before a stage is loaded

if find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no PyTorch; type `source .venv/bin/activate` first, or `make env` to build it"
    )
