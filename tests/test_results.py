"""The results as DataFrames, held against the files that they come from."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from tripletkd import results
from tripletkd.errors import UserError


@pytest.mark.parametrize("suite", ["digits", "digits_resnet", "cifar10"])
def test_they_are_what_the_tables_say(suite: str) -> None:
    table, found = (
        json.loads((ROOT / f"results/{suite}/table.json").read_text()),
        results.load(suite, "test", ROOT / "results"),
    )
    means = found.seeds.groupby("method")["test_accuracy_percent"].mean()
    assert {row["method"]: row["test_accuracy_percent"]["mean"] for row in table["rows"]} == pytest.approx(dict(means))
    answers = dict(zip(found.claims["claim"], found.claims["verdict"], strict=True))
    assert answers == {claim["claim"]: claim["verdict"] for claim in table["verdicts"]}
    gaps = [claim["difference_points"]["mean"] for claim in table["verdicts"]]
    assert list(found.claims["difference_points"]) == gaps and found.claims["half_width_points"].between(0, 10).all()
    last = found.history.sort_values("epoch").groupby(["method", "seed"])["test_accuracy_percent"].last()
    assert last.loc["kd"].mean() == pytest.approx(means["kd"], abs=0.01)


def test_a_suite_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope: no results of the test split"):
        results.load("nope", folder=tmp_path)
