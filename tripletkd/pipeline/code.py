"""What the code of each stage means, on which dvc.yaml has the stage depend. Seeds: training.identity.code_of.

python -m tripletkd.pipeline.code        # writes code.json
"""

import json
from pathlib import Path

from tripletkd import methods
from tripletkd.code_hash import Definition, everything_in, meaning, versions_of
from tripletkd.files import write_json
from tripletkd.training.identity import COMPUTES

CODE = Path("code.json")
FETCHES = ("fetch", "fetch_weights")
COMPUTES_NOTHING = (  # names of code, and what logs
    "tripletkd.training.identity:COMPUTES",
    "tripletkd.training.identity:REGISTRIES",
    "tripletkd.tracking.live:Live",
    "tripletkd.tracking.mirror:start",
)


def code_of_stage(stage: str, method: str | None = None) -> dict[str, str]:
    """Describe the code of a stage: the hash of what it means, and the versions of the packages that it imports.

    Args:
        stage: Its name, that of its module in stages/.
        method: The method that it loads by name, if it does.
    """
    by_name = {"train_teacher": "scratch", "ablate": "triplet_family"}.get(stage, method)
    roots = everything_in(f"stages.{stage}")
    roots += everything_in(f"tripletkd.methods.{by_name}") if by_name not in (None, "teacher") else []
    # What a stage calls through the objects that params.yaml makes
    roots += [Definition(*name.split(":")) for name in COMPUTES if stage not in FETCHES or "config" in name]
    without = [Definition(*name.split(":")) for name in COMPUTES_NOTHING]
    found = {"code": meaning(roots, without), **versions_of(roots, without)}
    return found if stage != "evaluate" or by_name is None else {**found, "about": methods.about(by_name) or ""}


def main() -> None:
    """Check params.yaml, and write what the code of every stage means, by method where a stage loads one by its name.

    Raises:
        UserError: If params.yaml is wrong: no later stage is begun then.
    """
    from tripletkd.config.load import load

    load(Path())
    found: dict[str, object] = {}
    for stage in (*FETCHES, "train_teacher", "ablate", "tabulate", "export"):
        found[stage] = code_of_stage(stage)
    for stage in ("distill", "evaluate"):
        found[stage] = {method: code_of_stage(stage, method) for method in methods.names()}
    if not CODE.is_file() or json.loads(CODE.read_text(encoding="utf-8")) != found:
        write_json(CODE, found)


if __name__ == "__main__":
    from tripletkd.pipeline.stage import errors_for_people

    with errors_for_people():
        main()
