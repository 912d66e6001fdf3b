"""The rules of who imports whom, so that a file can be read, and rerun, on its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from stages import _training
from tripletkd import methods

LIBRARY = sorted((ROOT / "tripletkd").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))


def imports(path: Path, package: str, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports; of `from x import y` both x and x.y."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def of_library(path: Path) -> set[str]:
    return imports(path, ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1]))


def mentions(names: set[str], module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in names)


@pytest.mark.parametrize("name", methods.names())
def test_a_method_imports_torch_and_the_terms_only(name: str) -> None:
    found = of_library(ROOT / "tripletkd/methods" / f"{name}.py")
    ours = {module for module in found if mentions({module}, "tripletkd")}
    assert all(module in ("tripletkd.methods._terms", "tripletkd.methods") or "._terms." in module for module in ours)
    others = {module.split(".")[0] for module in found - ours}
    assert others <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_the_library_knows_neither_stages_nor_dvc_nor_paths(path: Path) -> None:
    found = of_library(path)
    assert not mentions(found, "stages")
    assert not mentions(found, "dvc")
    assert mentions(found, "mlflow") <= (path.name == "tracking.py")
    roots = {
        f'"{value}/'
        for block in yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"]
        for value in block["paths"].values()
    }
    assert not [root for root in roots if root in path.read_text()]


def test_the_loop_imports_no_method_no_config_no_tracking() -> None:
    for name in ("train.py", "ensemble.py", "checkpoint.py"):
        found = of_library(ROOT / "tripletkd" / name)
        assert not mentions(found, "tripletkd.config")
        assert not mentions(found, "tripletkd.tracking")
        assert not [
            m for m in found if mentions({m}, "tripletkd.methods") and not mentions({m}, "tripletkd.methods._terms")
        ]


@pytest.mark.parametrize("path", STAGES, ids=str)
def test_stages_import_no_stage(path: Path) -> None:
    found = {name for name in imports(path, "stages") if name.startswith("stages.")}
    assert not [name for name in found if name.split(".")[1] in {p.stem for p in STAGES if not p.stem.startswith("_")}]
    assert not mentions(imports(path, "stages"), "dvc")


@pytest.mark.parametrize("path", [*LIBRARY, *STAGES], ids=str)
def test_heavy_imports_happen_where_they_are_used(path: Path) -> None:
    found = imports(path, "x", top_level_only=True)
    heavy = {"mlflow", "matplotlib", "sklearn", "torchvision", "pandas", "onnx", "onnxscript", "onnxruntime"}
    assert not {name.split(".")[0] for name in found} & heavy


def test_a_checkpoint_is_of_the_code_that_dvc_yaml_names() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

    def code(stage: str) -> set[str]:
        own = {f"stages/{stage}.py"}
        return {name for name in stages[stage]["deps"] if name.startswith(("stages/", "tripletkd/"))} - own

    assert set(_training.code("${item.method}")) == code("distill")
    assert set(_training.code("triplet_family")) == code("ablate")
    assert set(_training.code("teacher")) == code("train_teacher")
    assert all((ROOT / name).is_file() for name in _training.code("teacher"))


def test_training_runs_without_what_a_bare_machine_lacks(tmp_path: Path) -> None:
    """fetch here; then train where there are only torch, numpy, safetensors, tqdm and hydra-core, and no git."""
    lacking = ["dvc", "mlflow", "sklearn", "scipy", "torchvision", "PIL", "matplotlib", "pandas", "filelock"]
    lacking += ["onnx", "onnxscript", "onnxruntime"]
    program = (
        "import runpy, sys; lacking = sys.argv.pop(1).split(','); "
        "sys.modules.update({name: None for name in lacking if name}); "
        "stage = sys.argv.pop(1); runpy.run_module(f'stages.{stage}', run_name='__main__')"
    )
    small = [f"suites.digits.{network}.recipe.epochs=1" for network in ("teacher", "student")]
    common = ["suite=digits", "run.seeds=[1]", "suites.digits.teacher.floor=0", *small]
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for stage, without in (("fetch", []), ("train_teacher", lacking), ("distill", lacking)):
        words = [sys.executable, "-c", program, ",".join(without), stage, *common]
        words += ["method=triplet"] if stage == "distill" else []
        variables = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "nonsense://"}
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning: not logged to MLflow") == 1
        assert "Traceback" not in done.stderr
    assert (tmp_path / "runs/digits/test/triplet/weights/seed-1.safetensors").exists()
