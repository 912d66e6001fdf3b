"""Exports and tables in MLflow: a run each, with its figures and the files that people look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.files import Json
from tripletkd.provenance import fingerprint, sha256
from tripletkd.tracking.store import NOTE_TAG, RUN_TAG, Entry, Runs, experiment_suffix, open_store, place, stage_tags
from tripletkd.training.run_record import read_log

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPORT, TABLE = "export.json", "table.json"


def mirror_export(root: Path, folder: Path, _: Path) -> bool:
    """Add an export, exports/<suite>/<method>, to the store as a run with an MLflow model of flavor onnx."""
    said, log = _read(folder / EXPORT), read_log(folder / "log.json", folder / EXPORT)
    suite, params = said["suite"], {key: said[key] for key in ("network", "seed", "opset", "versions")}
    figures = {key: v for key, v in {**said, **log}.items() if isinstance(v, int | float) and key not in params}
    tags = {f"{key}.sha256": said[f"{key}_sha256"] for key in ("data", "weights", "onnx")} | {"method": said["method"]}
    files = [folder / "MODEL_CARD.md", folder / EXPORT]
    entry = _entry(folder, f"{suite}/{said['method']}/export", log, (tags | {"suite": suite}, params, figures), files)
    with open_store(root, suite, RUN_TAG, entry.key) as store:
        return store.add(entry, partial(_log_model, store, folder))


def mirror_table(root: Path, folder: Path, logs: Path) -> bool:
    """Add the table of results/<suite> to the store: its accuracies and verdicts, and the files that people look at."""
    said, log = _read(folder / TABLE), read_log(logs / "tabulate.json", folder / TABLE)
    suite, verdicts = said["suite"], {verdict["claim"]: verdict for verdict in said["verdicts"]}
    means = {row["method"]: row["test_accuracy_percent"]["mean"] for row in said["rows"]}
    figures = {f"{said['split']}_accuracy/{method}": mean / 100 for method, mean in means.items()}  # as in runs
    figures |= {f"corrected_p/{claim}": v["corrected_p"] for claim, v in verdicts.items() if v["corrected_p"]}
    answers = {claim: verdict["verdict"] for claim, verdict in verdicts.items()}
    params = {"split": said["split"], "methods": said["methods"], "verdict": answers}
    note = "\n\n".join([*said["in_short"], f"{said['about']}."])  # folded, its first line is seen
    files = [folder / name for name in ("report.html", "table.md", "table.csv", TABLE)]
    files += sorted((folder / "figures").iterdir())
    entry = _entry(folder, f"{suite}/tabulate", log, ({"suite": suite, NOTE_TAG: note}, params, figures), files)
    with open_store(root, suite, RUN_TAG, entry.key) as store:
        if not log.get("experiment"):
            store.client.set_experiment_tag(store.experiment, NOTE_TAG, note)
        return store.add(entry)


def _read(path: Path) -> Json:
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    return found


def _entry(folder: Path, name: str, log: Json, said: tuple[Json, Json, Json], files: Sequence[Path]) -> Entry:
    """Describe the run of what a stage made that trains nothing, by all that it shows. It never grows."""
    seen = {path.name: sha256(path) for path in files}
    key, (tags, params, figures) = fingerprint(name, *said, seen), said
    tags = stage_tags(name.rpartition("/")[2], log, tags)
    return Entry(name + experiment_suffix(log), key, place(folder), key, log, tags, params, {0: figures}, files=files)


def _log_model(store: Runs, folder: Path, run: Run) -> None:
    """Log the model with an input example, of which MLflow takes the signature.

    The requirements are given: finding them takes a minute.
    """
    import mlflow.onnx
    import numpy as np
    import onnx

    if store.models(run):  # which another process has logged before it was killed
        return
    said, examples = _read(folder / EXPORT), np.array(_read(folder / "example.json")["inputs"], dtype=np.uint8)
    mlflow.set_tracking_uri(store.client.tracking_uri)
    with mlflow.start_run(run.info.run_id):
        mlflow.onnx.log_model(
            onnx.load(folder / "model.onnx"),
            name=f"{said['suite']}-{said['method']}".replace(".", "-"),  # MLflow allows no dots
            input_example=examples,
            pip_requirements=mlflow.onnx.get_default_pip_requirements(),
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
