"""The results as DataFrames, held against the files that they come from."""

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from conftest import ROOT

from tripletkd import results
from tripletkd.errors import UserError
from tripletkd.provenance import sha256


@pytest.mark.parametrize("suite", ["digits", "digits_resnet", "cifar10_sharp_teacher"])
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


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "results/digits", tmp_path / "digits")
    return tmp_path


def test_what_the_table_does_not_have_is_not_loaded(copied: Path) -> None:
    """A method that is no longer run; claims of another split."""
    table = copied / "digits/table.json"
    content = json.loads(table.read_text())
    table.write_text(json.dumps(content | {"rows": [row for row in content["rows"] if row["method"] != "pair"]}))
    found = results.load("digits", folder=copied)
    assert "pair" not in {*found.seeds["method"], *found.history["method"]} and len(found.claims) == 6
    verdicts = [content["verdicts"][0] | {"difference_points": None}, *content["verdicts"][1:]]  # no seed in common
    table.write_text(json.dumps(content | {"verdicts": verdicts}))
    assert results.load("digits", folder=copied).claims["difference_points"].isna().tolist() == [True] + 5 * [False]
    table.write_text(json.dumps(content | {"split": "validation"}))
    assert results.load("digits", folder=copied).claims.empty
    held_out = results.load("digits", "validation", ROOT / "results")
    assert {"validation_accuracy_percent", "best_validation_accuracy_percent"} < {*held_out.seeds}
    assert not [name for name in held_out.seeds if "test_" in name] and held_out.claims.empty


def test_files_that_do_not_belong_together_are_refused_and_failed_seeds_left_out(copied: Path) -> None:
    place = copied / "digits/measured/test"
    history = place / "kd.csv"
    text = history.read_text()
    history.write_text(text.replace("0.9", "0.8"))
    with pytest.raises(UserError, match=r"kd.csv: not the file that kd.json was written with"):
        results.load("digits", folder=copied)
    history.write_text(text)
    content = json.loads((place / "kd.json").read_text())
    failed = {"seeds": content["seeds"][1:], "failed": {"11": "ce is nan at epoch 3, step 1"}}
    del content["weights_sha256"]["11"]
    (place / "kd.json").write_text(json.dumps(content | failed))
    with pytest.raises(UserError, match=r"kd.json: its mean accuracy is 92.* the table has 92.*measured again since"):
        results.load("digits", folder=copied)
    table = json.loads((copied / "digits/table.json").read_text())
    [row] = [row for row in table["rows"] if row["method"] == "kd"]
    row["test_accuracy_percent"]["mean"] = 100 * fmean(seed["test_accuracy"] for seed in failed["seeds"])
    (copied / "digits/table.json").write_text(json.dumps(table))
    found = results.load("digits", folder=copied)
    of_kd = [set(frame[frame["method"] == "kd"]["seed"]) for frame in (found.seeds, found.history)]
    assert of_kd == [set(range(12, 21))] * 2


def test_unlike_runs_of_a_split_without_a_table_are_not_loaded_together(copied: Path) -> None:
    shutil.copytree(copied / "digits/measured/test", copied / "digits/measured/validation", dirs_exist_ok=True)
    path = copied / "digits/measured/validation/kd.json"
    content = json.loads(path.read_text())
    unlike = {"recipe.epochs 7": {"recipe": content["identity"]["recipe"] | {"epochs": 7}}}
    unlike["initial_sha256 e{64}"] = {"initial_sha256": "e" * 64}
    for said, change in unlike.items():
        path.write_text(json.dumps(content | {"identity": content["identity"] | change}))
        with pytest.raises(UserError, match=rf"kd was made with {said}, .* with .*; figures of unlike runs"):
            results.load("digits", "validation", copied)


def test_students_of_another_teacher_are_not_loaded_beside_one(copied: Path) -> None:
    path = copied / "digits/measured/test/teacher.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"weights_sha256": {"0": "e" * 64}}))
    with pytest.raises(UserError, match=r"\.json: of another teacher than teacher.json describes"):
        results.load("digits", folder=copied)


def test_a_term_of_a_loss_keeps_its_unit(copied: Path) -> None:
    place = copied / "digits/measured/test"
    history = place / "kd.csv"
    history.write_text(history.read_text().replace(",ce,", ",agreement,", 1))
    content = json.loads((place / "kd.json").read_text())
    (place / "kd.json").write_text(json.dumps(content | {"history_sha256": sha256(history)}))
    assert "agreement" in results.load("digits", folder=copied).history
