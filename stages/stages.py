"""Lets `python stages/distill.py` do what `python -m stages.distill` does.

A script's folder is where Python looks first, so that there `stages` is this file: it becomes the package, and the
project's root takes the folder's place.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).parent)]
sys.path[0] = str(Path(__file__).parents[1])
