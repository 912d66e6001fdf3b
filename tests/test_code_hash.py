"""What counts as a change of code, in a copy of the project: shown with the code that trains, and with a stage's."""

import ast
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import small_run
from code_of import hashes
from conftest import ROOT

from tripletkd import models
from tripletkd.code_hash import Definition, definition_of, everything_in, reached_from
from tripletkd.training.identity import COMPUTES, REGISTRIES

MODELS, TRAINER = "tripletkd/models/__init__.py", "tripletkd/training/trainer.py"


@pytest.fixture(scope="module")
def unchanged() -> tuple[str, str]:
    return hashes(ROOT)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("tripletkd", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "uv.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def edit(path: Path, found: str, replacement: str) -> None:
    text = path.read_text()
    assert re.search(found, text), f"{path} has no {found}"
    path.write_text(re.sub(found, replacement, text, count=1))


def rename(folder: Path) -> None:
    """Move a module, as `git mv` and a search for its name would."""
    (folder / "tripletkd/training/trainer.py").rename(folder / "tripletkd/training/stepper.py")
    for path in folder.rglob("*.py"):
        path.write_text(re.sub(r"training\.trainer\b", "training.stepper", path.read_text()))


def reformat(folder: Path) -> None:
    """Write every file as Python itself would: no comments, another layout."""
    for path in folder.rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text())) + "\n")


NOTHING: dict[str, Callable[[Path], None]] = {
    "a comment": lambda folder: edit(folder / TRAINER, r"\nclass Trainer", "\n# why\nclass Trainer"),
    "a docstring": lambda folder: edit(folder / TRAINER, r'"""Update every', '"""Change every'),
    "an annotation": lambda folder: edit(folder / "tripletkd/training/loop.py", r"-> Terms:", "-> dict[str, Tensor]:"),
    "the message of an error": lambda folder: edit(folder / MODELS, "takes square", "wants square"),
    "another method": lambda folder: edit(folder / "tripletkd/methods/kd.py", r"kl_divergence\(", "2 * kl_divergence("),
    "the layout": reformat,
    "the name of a file": rename,
}


def test_what_computes_nothing_changes_nothing(copy: Path, unchanged: tuple[str, str]) -> None:
    """All at once; of the stage every network counts, for it could be asked for each of them."""
    before = unchanged
    for change in NOTHING.values():
        change(copy)
    assert hashes(copy) == before
    for path, text in ((MODELS, "'paper_teacher':"), ("tripletkd/models/torchvision.py", "weights=None")):
        edit(copy / path, text, f"'x': PaperTeacher, {text}" if path == MODELS else "weights=False")
        after = hashes(copy)
        assert after[0] == before[0] and after[1] != before[1]
        before = after


CHANGES = {
    "an operator of the loss": ("tripletkd/methods/triplet.py", r"near - far \+ margin", "near - far - margin"),
    "a constant of the network": ("tripletkd/models/paper.py", r"2 \* width, 3, padding=1", "2 * width, 5, padding=2"),
    "an argument of the network": (MODELS, r"PaperStudent, width=8", "PaperStudent, width=16"),
    "the teacher's network": ("tripletkd/models/paper.py", r"stage3\.flatten\(1\)\)\)\)", "2 * stage3.flatten(1))))"),
    "the draw of negatives": ("tripletkd/data/batches.py", r"\(count\) < 0\.5", "(count) < 0.4"),
    "the optimizer": ("tripletkd/training/optim.py", r"alpha=self\.weight_decay", "alpha=2 * self.weight_decay"),
    "the schedule": ("tripletkd/training/optim.py", r"epoch > boundary", "epoch >= boundary"),
    "how pixels become inputs": ("tripletkd/data/batches.py", r"/ 255 - mean\) / std\)\.", "/ 256 - mean) / std)."),
    "how inputs are set up": ("tripletkd/config/schema.py", r"Inputs\(tuple\(self\.mean\)", "Inputs(tuple(self.std)"),
    "a figure of the history": (
        "tripletkd/evaluation/metrics.py",
        r"class TripletMetrics:",
        "class TripletMetrics:\n    x = 1",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_computes_counts(what: str, copy: Path, unchanged: tuple[str, str]) -> None:
    name, found, replacement = CHANGES[what]
    edit(copy / name, found, replacement)
    after = hashes(copy)
    assert after[0] != unchanged[0] and after[1] != unchanged[1]


HIDDEN = {  # modules of which the loss uses `factor`
    "a loop over a table": "X = {}\nfor name in 'x':\n    X[name] = 1.0\ndef factor():\n    return X['x']\n",
    "a registry": "X = []\nadd = X.append\n@add\ndef x():\n    return 1.0\ndef factor():\n    return X[0]()",
    "an import under a condition": "if True:\n    from tripletkd.methods.other import X\ndef factor():\n    return X\n",
    "the first of two imports": "try:\n    from tripletkd.methods.other import X\nexcept ImportError:\n"
    "    from tripletkd.methods.triplet import margin as X\ndef factor():\n    return X\n",
    "an import that type checkers do not see": "if TYPE_CHECKING:\n    X = 2\nelse:\n"
    "    from tripletkd.methods.other import X\ndef factor():\n    return X\n",
    "what type checkers do not see": "if TYPE_CHECKING:\n    X = 2\nelse:\n    X = 1.0\ndef factor():\n    return X\n",
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_no_definition_names_counts(what: str, copy: Path) -> None:
    loss, own = copy / "tripletkd/methods/triplet.py", copy / "tripletkd/methods/own.py"
    own.write_text("from typing import TYPE_CHECKING\n" + HIDDEN[what])
    (copy / "tripletkd/methods/other.py").write_text("X = 1.0\n")
    edit(loss, "\nimport torch\n", "\nimport torch\nfrom tripletkd.methods.own import factor\n")
    edit(loss, r"near - far \+ margin", "factor() * near - far + margin")
    before = hashes(copy)
    edit(own if "1.0" in own.read_text() else own.with_name("other.py"), r"1\.0", "0.0")
    assert hashes(copy)[0] != before[0]


def test_a_method_that_another_takes_by_name_counts(copy: Path) -> None:
    loss, other = copy / "tripletkd/methods/triplet.py", copy / "tripletkd/methods/logit_mse.py"
    edit(loss, "\nimport torch\n", "\nimport torch\nfrom tripletkd import methods\n")
    edit(loss, r"near - far \+ margin", "float(methods.load('logit_mse').NEEDS != {}) * near - far + margin")
    before = hashes(copy)
    edit(other, r"return F\.mse_loss", "return 2 * F.mse_loss")
    assert hashes(copy)[0] != before[0]
    edit(loss, r"methods\.load\('logit_mse'\)", "methods.load(str(margin))")
    with pytest.raises(RuntimeError, match="a name that is not written out, so its code cannot be hashed"):
        hashes(copy)


def test_a_method_that_is_taken_from_another_module_counts(copy: Path) -> None:
    loss, elsewhere = copy / "tripletkd/methods/triplet.py", copy / "tripletkd/methods/elsewhere.py"
    loss.rename(elsewhere)
    loss.write_text("from tripletkd.methods.elsewhere import NEEDS, Params, loss, triplet_margin\n")
    before = hashes(copy)
    edit(elsewhere, r"near - far \+ margin", "2 * near - far + margin")
    assert hashes(copy)[0] != before[0]


def test_files_that_training_does_not_read_do_not_count(copy: Path, unchanged: tuple[str, str]) -> None:
    """A template of the report, an editor's swap file, published figures."""
    for name in ("reporting/page.html.j2", "methods/.swap", "published/more.csv"):
        with (copy / "tripletkd" / name).open("a") as text:
            text.write("\n")
    assert hashes(copy) == unchanged


@pytest.mark.parametrize(
    ("read", "place"),
    [
        ("Path(__file__).parent / 'a' / 'x.txt'", "tripletkd/methods/a/x.txt"),
        ("Path('tripletkd/methods/a/x.txt')", "tripletkd/methods/a/x.txt"),
        ("Path('priors/x.txt')", "priors/x.txt"),
        ("Path('./priors/a x.txt')", "priors/a x.txt"),
        ("(Path('priors') / 'x.txt')", "priors/x.txt"),
        ("Path(os.path.join('priors', 'x.txt'))", "priors/x.txt"),
    ],
)
def test_a_file_that_is_read_counts(read: str, place: str, copy: Path) -> None:
    loss, file = copy / "tripletkd/methods/triplet.py", copy / place
    file.parent.mkdir()
    file.write_text("1")
    edit(loss, "\nimport torch\n", "\nimport torch\nimport os\nfrom pathlib import Path\n")
    edit(loss, r"near - far \+ margin", f"float(({read}).read_text()) * near - far + margin")
    before = hashes(copy)
    file.write_text("2")
    assert hashes(copy)[0] != before[0]


@pytest.mark.parametrize(
    ("name", "found", "replacement", "message"),
    [
        (
            "tripletkd/methods/triplet.py",
            "import torch\n",
            "import torch\nfrom tripletkd.methods.kd import *\n",
            "import \\*",
        ),
        (
            "tripletkd/methods/triplet.py",
            "    near = torch",
            "    import mylib\n    near = mylib.x * torch",
            "import mylib: it is not in uv.lock",
        ),
        (MODELS, r"partial\(PaperStudent, width=8\)", "lambda *a: PaperStudent(*a, width=8)", "made by a function"),
    ],
)
def test_code_that_cannot_be_hashed_is_refused(
    name: str, found: str, replacement: str, message: str, copy: Path
) -> None:
    (copy / "mylib.py").write_text("")
    edit(copy / name, found, replacement)
    with pytest.raises(RuntimeError, match=f"UserError: .*{message}"):
        hashes(copy)


def test_all_that_is_called_while_a_run_trains_is_in_the_hash() -> None:
    """Or is on the list of what only keeps, shows or limits what was computed."""
    kept = (
        "errors",
        "files",
        "code_hash",
        "provenance",
        "training.checkpoint",
        "training.progress",
        "training.identity",
    )
    allowed = (*kept, "data.sources")  # images have a hash of their own
    trained = small_run.Small(method="crd", inputs=small_run.AUGMENTED)
    job, called = trained.job([1, 2]), set[tuple[str, str]]()

    def note(frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("tripletkd."):
            called.add((module, frame.f_code.co_qualname.partition(".")[0]))

    sys.setprofile(note)
    try:
        trained.fit([1, 2])
    finally:
        sys.setprofile(None)
    assert job.code  # which is hashed from the same roots
    roots = [Definition(*name.split(":")) for name in COMPUTES] + everything_in("tripletkd.methods.crd")
    networks = [definition_of(models.definition(name)[0]) for name in (job.identity.network, job.teacher_network or "")]
    of_recipe = [definition_of(type(part)) for part in (job.recipe.optimizer, job.recipe.schedule)]
    hashed = {tuple(each) for each in reached_from([*roots, *networks, *of_recipe], REGISTRIES)}
    missing = {each for each in called - hashed if not each[0].removeprefix("tripletkd.").startswith(allowed)}
    assert not {each for each in missing if not each[1].startswith(("<", "__create_fn__"))}  # dataclasses' own
