"""Fetch a suite's images and write the canonical data set: images, labels, and a description with counts and hashes."""

from __future__ import annotations  # the types' modules import PyTorch

import socket
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.errors import UserError
from tripletkd.files import Json, whole
from tripletkd.pipeline.stage import Stage, run
from tripletkd.provenance import sha256

if TYPE_CHECKING:
    from tripletkd.config.schema import DataSettings
    from tripletkd.data.dataset import Dataset

TAKERS = {  # the sources that read a setting of `data`
    "name": ("torchvision",),
    "path": ("torchvision", "folder", "archive"),
    "sha256": ("archive",),
    "image_size": ("folder", "archive"),
    "short_side": ("folder", "archive"),
}
TIMEOUT_SECONDS = 60  # torchvision sets none: a server that falls silent would hold the stage for ever


def main(stage: Stage) -> None:
    """Fetch the images of a suite."""
    settings, target = stage.suite.data, stage.path("data")
    with whole(target) as beside:
        beside.mkdir()
        with obtain(settings, beside) as whole_set:
            dataset = whole_set.limited(settings.per_class) if settings.per_class else whole_set
            stage.suite.inputs.build(dataset.image_shape[2])
            description = save(stage, dataset, beside)
    stage.say(f"{target}: {summary(description)}")


def save(stage: Stage, dataset: Dataset, folder: Path) -> Json:
    """Write the images, or encoded photographs; returns the description of the data set."""
    from tripletkd.data import dataset as data
    from tripletkd.data import photographs
    from tripletkd.training.compute import CORES

    settings, workers = stage.suite.data, stage.config.run.workers
    more = rules(settings) | ({"selection": settings.selection} if settings.selection else {})
    if settings.short_side is None:
        return data.save(dataset, folder, settings.origin, more)
    view, workers = stage.suite.inputs.view, CORES if workers is None else workers
    return photographs.save(dataset, folder, {"source": settings.origin, **more}, view, workers)


def obtain(settings: DataSettings, folder: Path) -> AbstractContextManager[Dataset]:
    """Open the images of any of the sources.

    What is downloaded or unpacked lies below `folder` meanwhile.
    """
    from tripletkd.data import sources

    for key, takers in TAKERS.items():
        if getattr(settings, key) is not None and settings.source not in takers:
            raise UserError(
                f"data.{key}: found with data.source: {settings.source}, which does not read it; expected with "
                f"{' or '.join(takers)}"
            )
    if settings.source == "digits":
        return nullcontext(sources.digits())
    if settings.source == "torchvision":
        if not settings.name:
            raise UserError("data.name: missing; data.source: torchvision needs the name of a torchvision data set")
        socket.setdefaulttimeout(TIMEOUT_SECONDS)
        return nullcontext(
            sources.torchvision(settings.name, folder, existing(settings.path) if settings.path else None)
        )
    if not settings.path:
        raise UserError(f"data.path: missing; data.source: {settings.source} needs the place of the images")
    if settings.source == "folder":
        return nullcontext(sources.folder(existing(settings.path), settings.image_size, settings.short_side))
    place = existing(settings.path)
    if not settings.sha256:  # by which DVC and every later stage know the archive again
        raise UserError(
            f"data.sha256: missing; expected that of {settings.path}: {sha256(place)}, if it is the one that was meant"
        )
    return sources.archive(place, settings.sha256, folder, settings.image_size, settings.short_side)


def existing(path: str) -> Path:
    """Return the place that data.path names, with ~ for the home folder.

    Raises:
        UserError: If nothing is there.
    """
    place = Path(path).expanduser()
    if place.exists():
        return place
    copied = "; a queued or temporary experiment runs in a copy of what git has: give an absolute path"
    raise UserError(
        f"{path}: not there, looked in {place.absolute().parent}{'' if place.is_absolute() else copied}; give another "
        "data.path, or regenerate the digits suite, which needs no file: run.suites: [digits]"
    )


def rules(settings: DataSettings) -> Json:
    """Say by which rules image files became pixels, for the description of the data set."""
    from tripletkd.data.sources import ORIENTATION_RULE, RESIZE_RULE

    if settings.source not in TAKERS["image_size"]:
        return {}
    resized = {"resized": {"image_size": settings.image_size, "rule": RESIZE_RULE}} if settings.image_size else {}
    return {"orientation": ORIENTATION_RULE} | resized


def summary(description: Json) -> str:
    """Summarise for a person: counts, shape, a hash to compare by, and images that blur what is measured."""
    images, duplicates = description["images"], description["duplicates"]
    kind = "photographs, of which networks see" if "photographs" in description else "images of"
    return (
        f"{images['train']} training and {images['test']} test {kind} "
        f"{' x '.join(map(str, description['image_shape']))}, {len(description['classes'])} classes, "
        f"sha256 {description['sha256'][:12]}; {duplicates['train_and_test']} images stand in both splits, "
        f"{duplicates['contradicting_labels']} under several labels"
    )


if __name__ == "__main__":
    run(main)
