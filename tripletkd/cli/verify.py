"""Make everything in results/<suite> again, from the weights on, and compare it byte by byte with what is there."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from tripletkd.data.dataset import IMAGES
from tripletkd.errors import UserError
from tripletkd.files import read_yaml, write_csv
from tripletkd.pipeline import environments
from tripletkd.pipeline.arguments import Options
from tripletkd.pipeline.stage import Stage, open_stage

QUIET = Options(quiet=True)
LOCK = Path("dvc.lock")


def main(suite: str, overrides: Sequence[str] = (), train: str | None = None) -> None:
    """Verify a suite, and train a method's seeds again if one is named.

    Raises:
        UserError: If a file is not what its weights, or its training, give here; the message names the first one.
    """
    tabulated = open_stage("tabulate", [*as_tabulated(suite), *overrides, f"suite={suite}"], options=QUIET)
    print(verify(tabulated, overrides), flush=True)
    if train:
        words = [*overrides, f"suite={suite}", f"split={tabulated.config.split}", f"method={train}"]
        print(train_again(open_stage("distill", words, ("method",), QUIET, allow_teacher=True)))


def as_tabulated(suite: str) -> list[str]:
    """Return the overrides with which dvc.lock says that the suite's table was made; none where it has no table."""
    made = read_yaml(LOCK)["stages"].get(f"tabulate@{suite}") if LOCK.is_file() else None
    if made is None:
        return []
    params = made["params"]["params.yaml"]
    lists = [f"{key}=[{','.join(params[key])}]" for key in ("run.methods", "run.ablations")]
    words, split = made["cmd"].split()[3:], params["run.ablation_split"]
    splits = dict.fromkeys([split, *(word.removeprefix("split=") for word in words if word.startswith("split="))])
    return [*lists, f"run.splits=[{','.join(splits)}]", f"run.ablation_split={split}", *words]


def verify(tabulated: Stage, overrides: Sequence[str] = ()) -> str:
    """Measure every run that results/<suite> has, make the tables of these measurements, and compare all files.

    Nothing that is there is changed. Without the suite's images the measurements are taken as they are, if they name
    the weights and the histories of the runs that are here.

    Args:
        tabulated: The stage that makes the suite's tables.
        overrides: Of params.yaml.

    Returns:
        What was found, for people.

    Raises:
        UserError: If a file is another, is missing, or is one too many; or if the runs are not here.
    """
    from stages import tabulate

    suite, there = tabulated.suite.name, tabulated.path("results")
    for needed, remedy in ((there / "measured", "dvc repro"), (tabulated.path("runs"), f"tripletkd pull {suite}")):
        if not needed.is_dir():
            raise UserError(f"{needed}: not there; make it with `{remedy}`")
    has_images = (tabulated.path("data") / IMAGES).is_file()
    with tempfile.TemporaryDirectory() as scratch:
        instead = {kind: Path(scratch, kind) for kind in ("results", "logs")}
        tabulated = replace(tabulated, instead=instead)
        place = tabulated.path("results")
        place.mkdir(parents=True)
        if (there / environments.FILE).is_file():
            shutil.copy(there / environments.FILE, place)
        stages = list(measuring(there / "measured", suite, overrides))
        print(f"{suite}: {'measuring' if has_images else 'comparing'} {len(stages)} runs again", flush=True)
        for path, stage in tqdm(stages, desc=suite, unit="run", disable=None, leave=False):
            (measure if has_images else compare_hashes)(replace(stage, instead=instead), path)
        compare(there / "measured", place / "measured")  # of which all other files are made
        tabulate.main(tabulated)
        files = compare(there, place)
    done = f"{suite}: {files} files in {there} and the weights of {len(stages)} runs verified, every byte the same"
    if has_images:
        return done
    return (
        f"{done}; measurements were compared with the weights by their hashes only, for want of the images: `python -m "
        f"stages.fetch suite={suite}` gets them"
    )


def measuring(measured: Path, suite: str, overrides: Sequence[str]) -> Iterator[tuple[Path, Stage]]:
    """Give each file of measurements with the stage that makes it."""
    for path in sorted(measured.rglob("*.json")):
        split, *_, name = path.relative_to(measured).with_suffix("").parts
        kind = "ablation" if path.parent.name == "ablations" else "method"
        stage = "ablate" if kind == "ablation" else "train_teacher" if name == "teacher" else "evaluate"
        words = [*overrides, f"suite={suite}", f"split={split}", f"{kind}={name}"]
        yield path, open_stage(stage, words, options=QUIET, allow_teacher=True)


def measure(stage: Stage, _: Path) -> None:
    """Measure a run from its weights, as its stage does."""
    from stages import ablate, evaluate, train_teacher
    from tripletkd.pipeline.jobs import read_finished

    if stage.name == "evaluate":
        evaluate.main(stage)
    else:
        measure = ablate.measure_runs if stage.name == "ablate" else train_teacher.measure_run
        measure(stage, lambda training: read_finished(training.stage, training.job))


def compare_hashes(stage: Stage, path: Path) -> None:
    """Compare what measurements name with the records of their runs, and copy them; tabulate compares with params.yaml.

    Raises:
        UserError: If they were measured on other weights.
    """
    from tripletkd.evaluation import measurement
    from tripletkd.training.run_record import read_run

    suite, split, name = stage.suite.name, stage.config.split, path.stem
    place = stage.path("results", "measured", split, *(["ablations"] if stage.name == "ablate" else []))
    place.mkdir(parents=True, exist_ok=True)
    if stage.name == "ablate":
        found = [variant.measurement for variant in measurement.read_ablation(path, suite, name)]
    else:
        found = [measurement.read(path, suite, name)]
    for copied in [path, *path.parent.glob(f"{name}_map.csv")]:
        shutil.copy(copied, place)
    for measured in found:
        run = read_run(stage.path("runs", split, measured.identity.name), measured.all_seeds)
        weights = {
            r.seed: r.weights_sha256
            for r in run.records
            if r.seed not in measured.failed and r.identity == measured.identity
        }
        if weights != measured.weights_sha256:
            raise UserError(f"{path}: of weights {measured.weights_sha256}, the records of its runs say {weights}")
        if stage.name == "evaluate":
            write_csv(place / f"{name}.csv", run.history)


def compare(there: Path, again: Path) -> int:
    """Compare all files of two folders but environments.FILE, which is told and not computed; return their number.

    Raises:
        UserError: If one is missing, or has other bytes.
    """
    files = {path.relative_to(place) for place in (there, again) for path in place.rglob("*") if not path.is_dir()}
    files -= {Path(environments.FILE)}
    for file in sorted(files):
        if not (there / file).is_file():
            raise UserError(f"{there / file}: not there, its stage makes it; run `dvc repro`")
        if not (again / file).is_file():
            raise UserError(f"{there / file}: nothing here makes it; remove it, or run `dvc repro`")
        if (there / file).read_bytes() != (again / file).read_bytes():
            raise UserError(
                f"{there / file}: not what the weights and the code here give; run `dvc repro`. The last digits may be "
                f"another machine's: see {environments.FILE}"
            )
    return len(files)


def train_again(stage: Stage) -> str:
    """Train the finished seeds of a method, or the teacher, anew, in the groups in which they were trained.

    Returns:
        What was found, for people.

    Raises:
        UserError: If a seed's weights or history has other bytes.
    """
    from tripletkd.pipeline.jobs import Runs, load_teacher, read_finished, set_up
    from tripletkd.pipeline.train_seeds import Training, train_run
    from tripletkd.training.run_record import HISTORY, RECORD, WEIGHTS, read_log, seed_folder

    setup, method, teacher = set_up(stage), stage.config.method, None
    assert method is not None
    job = Runs(stage, setup.data_sha256).teacher()
    if method != "teacher":
        teacher, teacher_sha256 = load_teacher(stage, setup)
        job = Runs(stage, setup.data_sha256, teacher_sha256).student(method)
    training = Training(stage, setup, job, teacher)
    groups = defaultdict[tuple[int, ...], list[Path]](list)  # with the folders of the seeds that are of that training
    for record in read_finished(stage, job).records:
        folder = seed_folder(training.folder, record.seed)
        together = job.seeds if setup.compute.fuse_seeds else [record.seed]
        log = read_log(training.logs / f"{folder.name}.json", folder / RECORD)
        groups[tuple(log.get("trained_with", together))].append(folder)
    for group, folders in groups.items():
        with tempfile.TemporaryDirectory() as scratch:
            instead = {kind: Path(scratch, kind) for kind in ("runs", "logs", "checkpoints")}
            elsewhere = replace(stage, options=Options(), instead=instead)
            again = replace(training, stage=elsewhere, job=replace(job, seeds=list(group)))
            train_run(again)
            for path in [folder / name for folder in folders for name in (WEIGHTS, HISTORY)]:
                other = again.folder / path.relative_to(training.folder)
                if path.is_file() != other.is_file() or (path.is_file() and not is_same(path, other)):
                    raise UserError(
                        f"{path}: other bytes when trained again; the last bits depend on the machine: see "
                        f"{training.logs} for where it was trained"
                    )
    return f"{job.identity}: seeds {', '.join(map(str, job.seeds))} trained again, the same bytes"


def is_same(path: Path, again: Path) -> bool:
    """Compare weights byte by byte, histories in the columns that were there when the first one was written."""
    from tripletkd.training.run_record import HISTORY, read_history

    if path.name != HISTORY or path.read_bytes() == again.read_bytes():
        return path.read_bytes() == again.read_bytes()
    rows = zip(there := read_history(path), other := read_history(again), strict=False)
    return len(there) == len(other) and all(row.items() <= more.items() for row, more in rows)
