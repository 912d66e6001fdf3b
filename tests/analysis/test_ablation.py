"""An ablation's variants against its reference."""

import dataclasses

import pytest
from measurements import VARIANTS

from tripletkd.analysis import ablation


def test_variants_are_compared_with_what_is_configured() -> None:
    lines = ablation.lines(VARIANTS)
    assert [line.reference for line in lines] == [False, True, False]
    assert lines[0].over_reference is not None
    assert lines[0].over_reference.mean == pytest.approx(-5.0)
    assert lines[0].corrected_p == lines[0].over_reference.p  # the only test: margin 20 has no seed
    assert lines[1].over_reference is None
    assert lines[1].corrected_p is None
    assert lines[1].violated_triplets.mean == pytest.approx(10.0)
    assert lines[2].accuracy.n == 0


def test_the_first_variant_is_the_reference_where_none_is_configured() -> None:
    lines = ablation.lines([dataclasses.replace(variant, configured=False) for variant in VARIANTS])
    assert [line.reference for line in lines] == [True, False, False]
    assert lines[1].over_reference is not None
    assert lines[1].over_reference.mean == pytest.approx(5.0)
