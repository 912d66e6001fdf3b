"""Train a finished run anew, in memory, and compare every byte of its weights and its history with what is there.

python -m stages.verify suite=digits method=triplet; `make verify` does it.
"""

import tempfile
from pathlib import Path

from stages._command import Stage, run


def main(stage: Stage) -> None:
    """Train each group of seeds as it was trained, and compare.

    Raises:
        UserError: if a seed has other bytes, or was trained with other parameters than params.yaml has now.
    """
    from stages._setup import job_of_method, load_teacher, refuse_other_job, set_up
    from stages._training import monitoring

    from tripletkd.errors import UserError
    from tripletkd.provenance import sha256
    from tripletkd.training.job import build_trainer
    from tripletkd.training.loop import fit
    from tripletkd.training.run_record import HISTORY, RECORD, WEIGHTS, read_run, seed_folder, write_seeds

    setup, method = set_up(stage), stage.config.method
    assert method is not None
    teacher, teacher_sha256 = load_teacher(stage, setup)
    job = job_of_method(stage, setup, teacher_sha256)
    folder, dataset = stage.path("runs", stage.config.split, method), setup.data.dataset
    records = {record.seed: record for record in read_run(folder, job.seeds).records}
    for record in records.values():
        refuse_other_job(stage, record, job)
    groups: dict[tuple[int, ...], list[int]] = {}  # as they were trained, with the seeds that are of that training
    for seed, record in records.items():
        groups.setdefault(tuple(record.trained_with), []).append(seed)
    other = []
    for group, seeds in sorted(groups.items()):
        result = fit(build_trainer(job, group, setup.data, setup.compute, teacher), monitoring(stage, job, teacher))
        with tempfile.TemporaryDirectory() as scratch:
            write_seeds(Path(scratch), job, dataset.image_shape, len(dataset.classes), result)
            for there, again in ((seed_folder(folder, seed), seed_folder(Path(scratch), seed)) for seed in seeds):
                files = [name for name in (WEIGHTS, HISTORY) if (there / name).exists()]
                other += [str(there / name) for name in files if sha256(there / name) != sha256(again / name)]
    if other:
        raise UserError(
            f"{', '.join(other)}: other bytes when trained again; the environment that each seed was trained in stands "
            f"in its {RECORD}"
        )
    stage.say(f"{job.key}: {len(records)} seeds trained again, the same bytes")


if __name__ == "__main__":
    run(main, needs=("suite", "method", "split"), logs=False)
