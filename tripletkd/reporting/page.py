"""The report: one HTML file that needs nothing else, in the order of a paper, with the answer first."""

from collections.abc import Mapping, Sequence

from tripletkd.analysis.comparison import Results, left_out
from tripletkd.files import flat
from tripletkd.reporting import figures, tables
from tripletkd.reporting.text import render

TEMPLATE = "page.html.j2"


def pictures(results: Results) -> dict[str, str]:
    """Draw every figure that these results allow; returns the text of each SVG by its name."""
    measured, students = results.measured, results.students
    made = {"curves": figures.curves(results)}
    if results.bases():
        made["forest"] = figures.forest(results)
    if drawn := figures.losses(results):
        made["losses"] = drawn
    made["triplets"] = figures.triplets(results.histories)
    if mapped := _mapped(results):
        made["outputs"] = figures.outputs(mapped, results.maps[mapped])
    ours = [
        name for name in dict.fromkeys((*tables.PAPERS, *_claimed(results))) if name in measured.keys() - {"scratch"}
    ]
    if "scratch" in measured and ours:
        made["classes"] = figures.by_class(measured, ours, "scratch", measured["teacher"].class_names or ())
    made["calibration"] = figures.calibration(students)
    for name, lines in results.ablations.items():
        made[f"ablation-{name}"] = figures.ablation(name, results.ablation_split, lines)
    return made


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
    teacher = results.measured["teacher"]
    return render(
        TEMPLATE,
        results=results,
        tables=tables,
        left_out=left_out,
        flat=flat,
        teacher=teacher.identity,
        student=next(iter(results.students.values())),
        claims=_claims(results),
        papers=any(name in tables.PAPERS for name in _claimed(results)),
        defined={name: each.about for name, each in results.measured.items() if each.about},
        mapped=_mapped(results),
        key=_key(teacher.class_names or ()),
        pictures=drawn,
    )


def _claimed(results: Results) -> dict[str, list[str]]:
    """List the methods that a claim is about whose methods were run, with those that it is over."""
    over: dict[str, list[str]] = {}
    for answer in results.verdicts:
        over.setdefault(answer.method, []).append(answer.over)
    return over


def _claims(results: Results) -> list[str]:
    """Say the claims in sentences, those over the same methods in one."""
    together: dict[str, list[str]] = {}
    for method, others in _claimed(results).items():
        together.setdefault(tables.listed(others), []).append(f"**{method}**")
    each = {1: "is", 2: "are both"}
    return [
        f"{tables.listed(methods)} {each.get(len(methods), 'are all')} more accurate than {others}."
        for others, methods in together.items()
    ]
