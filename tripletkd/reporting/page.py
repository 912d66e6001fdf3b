"""The report: one HTML file that needs nothing else, in the order of a paper, with the answer first."""

from collections.abc import Mapping, Sequence
from typing import Any

from tripletkd.analysis.comparison import Results, curves, left_out
from tripletkd.evaluation.measurement import Measurement
from tripletkd.files import flat
from tripletkd.reporting import figures, tables
from tripletkd.reporting.text import render

TEMPLATE = "page.html.j2"

METHODS = {  # what the report says of these; of others, their files' first line
    "scratch": "trained on the labels alone",
    "kd": "Hinton's distillation, the divergence of softened predictions",
    "logit_mse": "the squared difference of logits",
    "pair": "a contrastive loss on pairs, our reading of the paper's",
    "triplet": "the paper's loss, beside the cross-entropy",
    "kd_triplet": "triplet and divergence, the loss of the authors' later code",
}


def pictures(results: Results) -> dict[str, str]:
    """Draw every figure that these results allow; returns the text of each SVG by its name."""
    measured, split = results.measured, results.split
    made = {"curves": figures.curves(results.suite, split, curves(results.histories), results.published_curves)}
    if bases := results.bases():
        made["forest"] = figures.forest(results.rows, bases)
    made["triplets"] = figures.triplets(results.histories)
    if mapped := _mapped(results):
        made["outputs"] = figures.outputs(mapped, results.maps[mapped])
    ours = [name for name in dict.fromkeys((*tables.PAPERS, *_claimed(results))) if name in measured]
    if "scratch" in measured and ours:
        made["classes"] = figures.by_class(measured, ours, "scratch", _class_names(results))
    made["calibration"] = figures.calibration(results.students)
    made["cost"] = figures.cost(measured, {row.method: row.test_accuracy_percent.mean for row in results.rows})
    for name, lines in results.ablations.items():
        made[f"ablation-{name}"] = figures.ablation(name, results.ablation_split, lines)
    return made


def _class_names(results: Results) -> Sequence[str]:
    return results.measured["teacher"].class_names or ()


def _mapped(results: Results) -> str | None:
    """Choose the method whose outputs are drawn."""
    return next((name for name in (*tables.PAPERS, *results.maps) if results.maps.get(name)), None)


def _key(classes: Sequence[str]) -> str:
    """Say which number stands for which class, where the classes' names do not say it and are few."""
    if len(classes) > figures.NAMED_CLASSES or all(name == str(i) for i, name in enumerate(classes)):
        return ""
    return f" ({', '.join(f'{i} {name}' for i, name in enumerate(classes))})"


def html(results: Results, drawn: Mapping[str, str]) -> str:
    """Fill the report's template.

    Args:
        results: What it reports.
        drawn: What `pictures` made of them.
    """
    return render(
        TEMPLATE,
        results=results,
        tables=tables,
        left_out=left_out,
        teacher=results.measured["teacher"].identity,
        student=next(iter(results.students.values())),
        claims=_claims(results),
        papers=any(name in tables.PAPERS for name in _claimed(results)),
        defined={name: text for name, each in results.measured.items() if (text := METHODS.get(name, each.about))},
        mapped=_mapped(results),
        key=_key(_class_names(results)),
        pictures=drawn,
        runs={name: _run(each) for name, each in results.measured.items()},
    )


def _claimed(results: Results) -> list[str]:
    """List the methods that a claim is about whose methods were run."""
    return list(dict.fromkeys(answer.method for answer in results.verdicts))


def _claims(results: Results) -> list[str]:
    """Say the claims in sentences, those over the same methods in one."""
    over: dict[str, list[str]] = {}
    for answer in results.verdicts:
        over.setdefault(answer.method, []).append(answer.over)
    together: dict[str, list[str]] = {}
    for method, others in over.items():
        together.setdefault(tables.listed(others), []).append(f"**{method}**")
    each = {1: "is", 2: "are both"}
    return [
        f"{tables.listed(methods)} {each.get(len(methods), 'are all')} more accurate than {others}."
        for others, methods in together.items()
    ]


def _run(measured: Measurement) -> dict[str, str]:
    """Say of a run its name in MLflow, its parameters, and each seed's weights and accuracy."""
    identity, accuracies = measured.identity, measured.percent()
    blocks: dict[str, Any] = {"parameters": identity.params, "recipe": identity.recipe, "inputs": identity.inputs}
    return {
        "MLflow run": f"{identity}" + ("" if identity.split == "test" else f" ({identity.split})"),
        "network": identity.network,
        **{name: ", ".join(f"{key} {value}" for key, value in flat(block)) for name, block in blocks.items() if block},
        "precision": identity.precision,
        "data, sha256": identity.data_sha256,
        "teacher's weights, sha256": identity.teacher_sha256 or "none",
        **({"starts from weights, sha256": identity.initial_sha256} if identity.initial_sha256 else {}),
        "code, sha256": ", ".join(measured.code),
        **{
            f"seed {seed}": f"{accuracies[seed]:.2f} %, weights sha256 {digest}"
            for seed, digest in measured.weights_sha256.items()
        },
    }
