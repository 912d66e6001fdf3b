"""The figures as SVG: valid, embeddable, reproducible, and described."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from measurements import HISTORY, KD, MEASURED, changed, of_seed, results

from tripletkd.reporting import figures, page


def test_figures_are_svg_with_ids_of_their_own_and_the_same_every_time() -> None:
    drawn = page.pictures(results())
    assert drawn == page.pictures(results())
    names = {"curves", "forest", "triplets", "outputs", "classes", "calibration", "cost", "ablation-margin"}
    assert names == set(drawn)
    ids: list[str] = []
    for name, svg in drawn.items():
        root = ElementTree.fromstring(figures.standalone(svg))  # noqa: S314
        size = [root.get(side, "").removesuffix("pt") for side in ("width", "height")]
        assert root.get("viewBox") == f"0 0 {' '.join(size)}" and "width=" not in svg.partition(">")[0]
        assert root.get("role") == "img" and len(root.get("aria-label") or "") > 40
        assert figures.INK not in svg and "<style" not in svg
        own = [element.get("id") or "" for element in root.iter() if element.get("id")]
        assert all(i.startswith(f"{name}-") for i in own)
        ids += own
    assert len(ids) == len(set(ids))


def test_classes_are_called_by_their_names() -> None:
    drawn = page.pictures(results())["classes"]
    assert drawn.count("猫") > 2 and "triplet from +0.0 (猫) to +1.1 (a cat &amp; $dog$ of $x)" in drawn
    many = [f"class {i} of a longer name" for i in range(21)]
    rates = {"a": (*[0.5] * 20, 0.9), "b": (0.5,) * 21}
    cells = {
        name: changed(MEASURED["kd"], seeds=(of_seed(1, 80.0, test_accuracy_by_class=values),))
        for name, values in rates.items()
    }
    assert figures.by_class(cells, ["a"], "b", many).count("(class 20 of a longe…)") == 2  # label and title, no axis


def test_a_published_curve_is_shown_to_its_top() -> None:
    curve = [{"epoch": epoch, "test_accuracy": value} for epoch, value in enumerate((50.0, 97.0, 50.0), start=1)]
    drawn = page.pictures(results(published_curves={"triplet": curve}))["curves"]
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", drawn)]
    assert max(ticks) >= 90 and min(tick for tick in ticks if tick > 3) >= 55  # epochs are 3 at most


@pytest.mark.fault
def test_what_others_named_breaks_no_figure() -> None:
    """Control characters are no XML, and what is between dollars is a formula to matplotlib."""
    teacher = changed(MEASURED["teacher"], class_names=("bell\x07 \x00 \x1b[31m", "two\nlines \ud800\uffff"))
    curve = [{"epoch": 1, "test_accuracy": 50.0}]
    made = results(measured=MEASURED | {"teacher": teacher}, published_curves={"$\\frac$ & \x01": curve})
    drawn = page.pictures(made)
    for svg in drawn.values():
        ElementTree.fromstring(figures.standalone(svg))  # noqa: S314
    assert "bell� � �[31m" in drawn["classes"] and "two lines ��" in drawn["classes"]
    assert r"$\frac$ &amp; �, published" in drawn["curves"]


@pytest.mark.fault
def test_methods_that_are_equal_are_drawn() -> None:
    """matplotlib warns of axes without an extent; a warning is an error here."""
    equal = changed(MEASURED["scratch"], identity=replace(KD, name="triplet"))
    cells = {"teacher": MEASURED["teacher"], "scratch": MEASURED["scratch"], "triplet": equal}
    made = results(measured=cells, histories=dict.fromkeys(("scratch", "triplet"), HISTORY))
    assert "triplet from +0.0" in page.pictures(made)["classes"]
