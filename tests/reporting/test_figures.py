"""The figures as SVG: valid, embeddable, and described. test_tables has that they are the same every time."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from measurements import HISTORY, MEASURED, VARIANTS, drawn, of_seed, results

from tripletkd.analysis import ablation
from tripletkd.config.schema import Claim
from tripletkd.reporting import figures, page


def test_figures_are_svg_with_ids_of_their_own() -> None:
    names = {"curves", "forest", "triplets", "outputs", "classes", "calibration", "ablation-margin"}
    assert names == set(drawn())
    ids: list[str] = []
    for name, svg in drawn().items():
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
    svg = drawn()["classes"]
    assert svg.count("猫") > 2 and "triplet from +0.0 (猫) to +1.0 (a cat &amp; $dog$ of $x)" in svg
    many = [f"class {i} of a longer name" for i in range(21)]
    rates = {"a": (*[0.5] * 20, 0.9), "b": (0.5,) * 21}
    seeds = {name: (of_seed(1, 80.0, test_accuracy_by_class=values),) for name, values in rates.items()}
    cells = {name: replace(MEASURED["kd"], seeds=each) for name, each in seeds.items()}
    assert figures.by_class(cells, ["a"], "b", many).count("(class 20 of a longe…)") == 2  # label and title, no axis


def test_a_published_curve_is_shown_to_its_top_and_many_methods_share_a_label() -> None:
    curve = [{"epoch": epoch, "test_accuracy": value} for epoch, value in enumerate((50.0, 97.0, 50.0), start=1)]
    methods = ["kd", *(f"method {i}" for i in range(9))]
    histories = dict.fromkeys(methods, HISTORY)
    svg = figures.curves(results(published_curves={"triplet": curve}, histories=histories))
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", svg)]
    assert max(ticks) >= 90 and min(tick for tick in ticks if tick > 3) >= 55  # epochs are 3 at most
    assert [name for name in [*methods, "9 others"] if f">{name}</text>" in svg] == ["kd", "9 others"]
    assert ">9 others</text>" in figures.curves(results(histories=dict.fromkeys(methods[1:], HISTORY)))


def test_losses_are_drawn_beside_published_ones() -> None:
    """Two seeds of three epochs, evaluated at the first and the last."""
    assert figures.losses(results()) is None
    rows = [{"seed": s, "epoch": e, "train_loss": 0.5 * s, "test_loss": s + 1.0 / e} for e in (1, 3) for s in (1, 2)]
    history: list[dict[str, float]] = [{"seed": 1, "epoch": 2}, *rows]
    curve = [{"epoch": e, "test_accuracy": 50.0, "train_loss": 2.0, "test_loss": 2.5} for e in (1, 2, 3)]
    made = results(published_curves={"triplet": curve, "kd": curve}, histories={"triplet": history, "kd": HISTORY})
    drawn = figures.losses(made) or ""
    assert "At the end, test images: triplet 1.833, published 2.500." in drawn and ">kd, published<" not in drawn
    assert {"losses"} < page.pictures(replace(made, published_curves={"triplet": curve})).keys()
    made = replace(made, histories={"triplet": [*history, {"seed": 3, "epoch": 1}]})  # of which none was logged
    assert "triplet (2 of 3 seeds) 1.833" in (figures.losses(made) or "")


def test_the_baseline_itself_has_no_panel_of_classes() -> None:
    made = results(claims=[Claim("scratch", ["kd"]), Claim("kd", ["scratch"])])
    assert "scratch from" not in page.pictures(made)["classes"]


def test_variants_are_side_by_side_where_not_just_one_number_is_varied() -> None:
    lines = ablation.lines([replace(each, changed={"margin": each.label}) for each in VARIANTS])
    assert ">margin 5</text>" in figures.ablation("margin", "test", lines)


@pytest.mark.fault
def test_what_others_named_breaks_no_figure() -> None:
    """Control characters are no XML, and what is between dollars is a formula to matplotlib."""
    names = ("bell\x07 \x00 \x1b[31m", "two\nlines \ud800\uffff")
    classes = figures.by_class(MEASURED, ["triplet"], "scratch", names)
    curve = [{"epoch": 1, "test_accuracy": 50.0}]
    curves = figures.curves(results(published_curves={"$\\frac$ & \x01": curve}))
    for svg in (classes, curves):
        ElementTree.fromstring(figures.standalone(svg))  # noqa: S314
    assert "bell� � �[31m" in classes and "two lines ��" in classes
    assert r"$\frac$ &amp; �, published" in curves


@pytest.mark.fault
def test_methods_that_are_equal_are_drawn() -> None:
    """matplotlib warns of axes without an extent; a warning is an error here."""
    cells = {"scratch": MEASURED["scratch"], "triplet": MEASURED["scratch"]}
    assert "triplet from +0.0" in figures.by_class(cells, ["triplet"], "scratch", ["a", "b"])
    made = results(measured={"teacher": MEASURED["teacher"], **cells}, histories=dict.fromkeys(cells, HISTORY))
    assert "triplet over scratch +0.00" in figures.forest(made)
