"""Fetch a suite's images and write the canonical data set: one file, and a description with counts and hashes."""

import tempfile
from pathlib import Path

from stages import Stage, run, tracking_root
from tripletkd import Problem, data, sources, tracking
from tripletkd.config import Data
from tripletkd.provenance import whole


def main(stage: Stage) -> None:
    settings, target = stage.suite.data, stage.place("data")
    target.parent.mkdir(parents=True, exist_ok=True)
    dataset = obtain(settings, target.parent)
    if settings.per_class:
        dataset = dataset.limited(settings.per_class)
    stage.suite.inputs.build(dataset.image_shape[2])
    origin = " ".join(filter(None, [settings.source, settings.name, settings.path and Path(settings.path).name]))
    with whole(target) as beside:
        beside.mkdir()
        data.save(dataset, beside, origin)
    print(f"{target}: {sources.description(dataset)}")
    counts = {
        "train_images": len(dataset.train.labels),
        "test_images": len(dataset.test.labels),
        "classes": len(dataset.classes),
    }
    params = {"source": origin, "data_sha256": dataset.sha256()}
    tracking.never_fails(
        tracking.log_files, tracking_root(), stage.config.suite, "fetch", counts, params, [target / data.DESCRIPTION]
    )


def obtain(settings: Data, scratch: Path) -> data.Dataset:
    """The images of any of the sources, in memory."""
    if settings.source == "digits":
        return sources.digits()
    if settings.source == "torchvision":
        if not settings.name:
            raise Problem("data.name: missing; data.source: torchvision needs the name of a torchvision data set")
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return sources.torchvision(settings.name, Path(folder))
    if not settings.path:
        raise Problem(f"data.path: missing; data.source: {settings.source} needs the place of the images")
    if settings.source == "folder":
        return sources.folder(Path(settings.path))
    return sources.archive(Path(settings.path), settings.sha256, scratch)


if __name__ == "__main__":
    run(main)
