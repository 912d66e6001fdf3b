"""Take seeds that were trained elsewhere, under an earlier name of the suite: weights and histories stay as they are.

    PYTHONPATH=. python docs/cifar10_full/adopt.py FOLDER

FOLDER has <method>/seed-<N>/ with weights, history, record and log.json. The images, the teacher and everything else
that identifies the run must be what params.yaml says of the suite cifar10.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from tripletkd.errors import UserError
from tripletkd.files import whole, write_json
from tripletkd.pipeline.jobs import Runs, refuse_other_job
from tripletkd.pipeline.stage import Stage, open_stage
from tripletkd.training.identity import as_block
from tripletkd.training.run_record import HISTORY, RECORD, WEIGHTS, read_record, read_run, write_log

SUITE = "cifar10"


def main(source: Path) -> None:
    """Take every seed of a folder."""
    stage = open_stage("distill", [f"suite={SUITE}", "split=test"])
    for folder in sorted(source.glob("*/seed-*")):
        adopt(stage, folder)


def adopt(stage: Stage, folder: Path) -> None:
    """Write the record and the log of a seed, with its other files copied."""
    record = read_record(folder)
    record = replace(record, identity=replace(record.identity, suite=SUITE))
    identity = record.identity
    job = Runs(stage, identity.data_sha256, identity.teacher_sha256).student(identity.method)
    refuse_other_job(stage, folder, identity, [record.code], job)
    if folder.name != f"seed-{record.seed}":
        raise UserError(f"{folder}: its record is of seed {record.seed}")
    place = stage.path("runs", "test", identity.method, folder.name)
    with whole(place) as beside:
        beside.mkdir(parents=True)
        for name in (WEIGHTS, HISTORY):
            shutil.copy(folder / name, beside / name)
        write_json(beside / RECORD, as_block(record))
    read_run(place.parent, [record.seed])  # which compares the hashes
    log = stage.path("logs", "test", identity.method, f"{folder.name}.json")
    write_log(log, place / RECORD, json.loads((folder / "log.json").read_text(encoding="utf-8")))
    print(f"{place}: taken over")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
