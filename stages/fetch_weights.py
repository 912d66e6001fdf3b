"""Fetch weights trained elsewhere that a suite's networks start from; write them as safetensors for these networks."""

from __future__ import annotations  # the types' modules import PyTorch

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.data.dataset import DESCRIPTION
from tripletkd.errors import UserError
from tripletkd.files import whole, write_json
from tripletkd.pipeline.fetched_weights import (
    FILE,
    KINDS,
    Description,
    Initial,
    Kind,
    asked_for,
    at_hand,
    find,
    recorded,
)
from tripletkd.pipeline.stage import Stage, run
from tripletkd.provenance import fingerprint, sha256

if TYPE_CHECKING:
    from tripletkd.config.schema import WeightsSettings


def main(stage: Stage) -> None:
    """Fetch what a suite's networks start from; where their seeds draw it, only say so."""
    folder, found = stage.path("weights"), dict[Kind, Initial]()
    with whole(folder) as beside:
        beside.mkdir()
        for kind in KINDS:
            if (settings := getattr(stage.suite, kind).weights) is not None:
                found[kind] = obtain(stage, kind, settings, beside / f"{kind}.safetensors")
        write_json(beside / FILE, asdict(Description(**found)))
    for kind, initial in found.items():
        mended = "".join(f"\n  {line}" for line in initial.mended)
        then = "taken as it is" if getattr(stage.suite, kind).recipe is None else f"from which the {kind} is trained"
        stage.say(f"{folder / kind}.safetensors: {initial.source}, sha256 {initial.sha256[:12]}, {then}{mended}")
    if not found:
        stage.say(f"{folder}: this suite starts from no weights")


def obtain(stage: Stage, kind: Kind, settings: WeightsSettings, target: Path) -> Initial:
    """Write the weights that one network starts from; those that are here, made of the same, are taken as they are.

    Raises:
        UserError: If they cannot be had, are not what params.yaml says, or do not fit the network.
    """
    from safetensors.torch import save

    from tripletkd import models
    from tripletkd.code_hash import everything_in, meaning
    from tripletkd.models import pretrained

    key, network = f"suites.{stage.suite.name}.{kind}.weights", getattr(stage.suite, kind)
    shape, classes, is_trained = *read_shape(stage.path("data", DESCRIPTION)), network.recipe is not None
    rules = meaning(everything_in(pretrained.__name__))
    asked = asked_for(stage, kind)
    made_of = fingerprint(asked, shape, classes, rules)
    before, here = recorded(stage.path("weights", FILE), kind), stage.path("weights", f"{kind}.safetensors")
    if before and before.made_of == made_of and here.is_file() and sha256(here) == before.sha256:
        shutil.copy(here, target)
        return before
    built, origin = models.build(network.network, shape, classes, seed=0), find(settings, key)
    with at_hand(settings, origin, key, stage.path("weights").parent) as file:
        found, where = pretrained.read(file, settings.source)
        chosen = list(pretrained.by_name(settings.classes, origin.classes, key)) if settings.classes else None
        if chosen is not None and len(chosen) != classes:
            raise UserError(f"{key}.classes: found {len(chosen)}, expected the {classes} of the data set, in its order")
        to = pretrained.Fit(built, network.network, chosen, is_trained, settings.temperature)
        fitted = pretrained.fit(found, settings.source, to)
        if settings.temperature != 1:
            undivided = pretrained.fit(found, settings.source, replace(to, temperature=1.0))
            pretrained.check_temperature(to, undivided.tensors, fitted.tensors, shape, f"{key}.temperature")
        target.write_bytes(save(fitted.tensors))
        return Initial(
            source=settings.source,
            source_sha256=sha256(file),
            source_bytes=file.stat().st_size,
            said=origin.said,
            mended=[*where, *fitted.mended],
            new_head=fitted.new_head,
            asked_for=asked,
            made_of=made_of,
            sha256=sha256(target),
        )


def read_shape(path: Path) -> tuple[tuple[int, int, int], int]:
    """Read the shape of a data set's images, and the number of its classes.

    Raises:
        UserError: If its description is not there, or damaged.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        height, width, channels = known["image_shape"]
        return (height, width, channels), len(known["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); run the fetch stage first") from None


if __name__ == "__main__":
    run(main)
