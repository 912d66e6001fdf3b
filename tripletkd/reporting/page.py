"""The report: one HTML file that needs nothing else, with the verdicts first."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletkd.analysis.comparison import Results, Verdict, curves
from tripletkd.evaluation.measurement import Measurement
from tripletkd.reporting import figures, tables
from tripletkd.reporting.text import printable

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "page.html.j2"
PAPERS = ("triplet", "kd_triplet", "pair")  # the paper's own; of the first that was run is the picture of one method

METHODS = {  # what the page's first screen says of these; of others, their files' first line
    "scratch": "trained on the labels alone",
    "kd": "Hinton's distillation, the divergence of softened predictions",
    "logit_mse": "the squared difference of logits",
    "pair": "a contrastive loss on pairs, our reading of the paper's",
    "triplet": "the paper's loss, beside the cross-entropy",
    "kd_triplet": "triplet and divergence, the loss of the authors' later code",
}


def pictures(results: Results) -> dict[str, str]:
    """Draw every picture that these results allow; returns the text of each SVG by its name."""
    measured, split = results.measured, results.split
    students = {name: each for name, each in measured.items() if name != "teacher"}
    made = {"curves": figures.curves(results.suite, split, curves(results.histories), results.published_curves)}
    if bases := results.bases():
        made["forest"] = figures.forest(results.rows, bases)
    made["triplets"] = figures.triplets(results.histories)
    if mapped := _mapped(results):
        made["outputs"] = figures.outputs(mapped, results.maps[mapped])
    claimed = dict.fromkeys(given.method for given in results.verdicts)
    if "scratch" in measured and (ours := [name for name in dict.fromkeys((*PAPERS, *claimed)) if name in measured]):
        made["classes"] = figures.by_class(measured, ours, "scratch", _class_names(results))
    made["calibration"] = figures.calibration(students)
    made["cost"] = figures.cost(measured, {row.method: row.test.mean for row in results.rows})
    for name, lines in results.ablations.items():
        made[f"ablation-{name}"] = figures.ablation(name, results.ablation_split, lines)
    return made


def _class_names(results: Results) -> Sequence[str]:
    return results.measured["teacher"].class_names or ()


def _mapped(results: Results) -> str | None:
    """Choose the method whose outputs are drawn."""
    return next((name for name in (*PAPERS, *results.maps) if results.maps.get(name)), None)


def _key(classes: Sequence[str]) -> str:
    """Say which number stands for which class, where the classes' names do not say it and are few."""
    if len(classes) > figures.NAMED_CLASSES or all(name == str(i) for i, name in enumerate(classes)):
        return ""
    return f" ({', '.join(f'{i} {name}' for i, name in enumerate(classes))})"


def html(results: Results, drawn: Mapping[str, str]) -> str:
    """Fill the page's template.

    Args:
        results: what it reports.
        drawn: what `pictures` made of them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = marked
    text = environment.get_template(TEMPLATE).render(
        results=results,
        about=results.about,
        answer=answer(results),
        finding=finding(results),
        defined={name: text for name, each in results.measured.items() if (text := METHODS.get(name, each.about))},
        in_short=tables.in_short(results),
        verdicts=tables.verdicts(results),
        comparison=tables.comparison(results),
        measures=tables.measures(results),
        notes=tables.notes(results),
        published=tables.against_published(results),
        failures=tables.failures(results),
        mixed=tables.mixed(results),
        ablations={
            name: (tables.ablation(results.ablation_split, lines), tables.outcome(lines))
            for name, lines in results.ablations.items()
        },
        mapped=_mapped(results),
        key=_key(_class_names(results)),
        pictures=drawn,
        origin=_origin(results),
        runs=_runs(results),
    )
    return printable(text)


def marked(text: str) -> "Markup":
    """Turn Markdown's ** and * into HTML and escape all else."""
    from markupsafe import Markup, escape

    parts = re.split(r"(\*\*.+?\*\*|\*.+?\*)", text)
    return Markup("").join(
        Markup("<b>{}</b>").format(part[2:-2])
        if part.startswith("**")
        else Markup("<i>{}</i>").format(part[1:-1])
        if part.startswith("*")
        else escape(part)
        for part in parts
    )


def answer(results: Results) -> list[str]:
    """Answer the page's question, a sentence a claim; the first begins with a word, by the verdict of the paper's."""
    words = {"reproduced": "Yes", "contradicted": "No", "undecided": "Undecided"}
    found = {given.over: given for given in results.verdicts if given.method == "triplet" and given.difference}
    if "kd" not in found:
        return []
    begins = {
        "kd": f"**{words[found['kd'].verdict]}.** Over Hinton's distillation (the paper's claim)",
        "scratch": "Over training alone (our addition)",
    }
    return [
        f"{begin}: {tables.with_interval(found[base].difference, None)} points, {found[base].verdict}."
        for base, begin in begins.items()
        if base in found
    ]


def finding(results: Results) -> str:
    """Count the verdicts in a sentence: those of claims on the paper's methods, then those of claims on others."""
    papers = [given for given in results.verdicts if given.method in PAPERS]
    others = [given for given in results.verdicts if given.method not in PAPERS]
    names = ", ".join(dict.fromkeys(given.method for given in others))
    sentences = [_count("", papers)] if papers else []
    sentences += [_count(f" for {names}, not the paper's", others)] if others else []
    return " ".join(sentences) or "Nothing to judge: of no claim were both methods run."


def _count(whose: str, verdicts: Sequence[Verdict]) -> str:
    counts = Counter(given.verdict for given in verdicts)
    seeds = {given.difference.n if given.difference else 0 for given in verdicts}
    n = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("reproduced", "contradicted", "undecided"))
    claims = "claim" if len(verdicts) == 1 else "claims"
    return f"Of {len(verdicts)} {claims}{whose}, each compared over {n} seeds: {words}."


def _origin(results: Results) -> dict[str, str]:
    """Say what all runs have in common; an entry of the environment in which they differ has all values there are."""
    teacher = results.measured["teacher"]
    environments = tables.environments(results.measured.values())
    return {
        "data, sha256": teacher.data_sha256,
        "teacher": f"{teacher.network}, weights sha256 {', '.join(teacher.weights_sha256.values())}",
        **{name: " or ".join(values) for name, values in environments.items()},
    }


def _runs(results: Results) -> dict[str, dict[str, str]]:
    """Say of each method its run's name in MLflow, its code and parameters, and each seed's weights and accuracy."""
    return {name: _run(each) for name, each in results.measured.items()}


def _run(measured: Measurement) -> dict[str, str]:
    accuracies, split = measured.percent(), "" if measured.split == "test" else f" ({measured.split})"
    return {
        "MLflow run": f"{measured.suite}/{measured.name}{split}",
        "network": measured.network,
        "code, sha256": ", ".join(measured.code),
        **{group: _flat(values) for group, values in measured.params.items()},
        **{
            f"seed {seed}": f"{accuracies[seed]:.2f} %, weights sha256 {digest}"
            for seed, digest in measured.weights_sha256.items()
        },
    }


def _flat(values: Any) -> str:
    """Write a block of params.yaml on one line, the blocks in it in brackets."""
    if not isinstance(values, dict):
        return str(values)
    return ", ".join(
        f"{key} ({_flat(value)})" if isinstance(value, dict) else f"{key} {value}" for key, value in values.items()
    )
