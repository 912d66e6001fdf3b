"""Who imports whom: the packages are in the order of the data's way, and heavy imports happen where they are used."""

import ast
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml
from conftest import ROOT

LIBRARY = sorted((ROOT / "tripletkd").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
# From top to bottom the way of the data: a part imports itself and those above it.
LAYERS = [
    "errors", "types", "files", "streams", "code_hash", "provenance", "data", "models", "methods", "training",
    "evaluation", "results", "analysis", "reporting", "tracking", "export", "config", "pipeline", "cli",
]  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Full names of the modules that a file imports, in functions too; of `from x import y` both x and x.y."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def roots(names: frozenset[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_a_module_imports_its_own_layer_and_those_above() -> None:
    for path in LIBRARY:
        own = module_name(path).partition(".")[2].split(".")[0]
        used = {name.split(".")[1] for name in imports(path) if name.startswith("tripletkd.")}
        assert not used if not own else all(LAYERS.index(name) <= LAYERS.index(own) for name in used), path
        for package, home in (("mlflow", "tracking"), ("dvc", "cli"), ("hydra", "config"), ("stages", "cli")):
            assert package not in roots(imports(path)) or own == home, path


def test_a_method_imports_torch_and_formulas_only() -> None:
    for path in (ROOT / "tripletkd/methods").glob("*.py"):
        assert roots(imports(path)) <= {"torch", "numpy", "annotated_types", "tripletkd", *sys.stdlib_module_names}


def test_stages_are_the_steps_of_dvc_yaml_and_import_no_stage() -> None:
    steps = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]) - {"code"}
    assert {path.stem for path in STAGES} - {"__init__"} == steps
    assert not [path for path in STAGES if "stages" in roots(imports(path))]


def test_only_dvc_yaml_has_paths() -> None:
    places = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"][0]["paths"].values()
    assert not [path for path in (*LIBRARY, *STAGES) for place in places if f'"{place}/' in path.read_text()]


def test_heavy_imports_happen_where_they_are_used() -> None:
    heavy = {"mlflow", "matplotlib", "sklearn", "torchvision", "pandas", "onnx", "onnxscript", "onnxruntime", "dvc"}
    found = {path: roots(imports(path, top_level_only=True)) & heavy for path in (*LIBRARY, *STAGES)}
    assert not {path: names for path, names in found.items() if names}


def test_the_committed_hashes_of_code_are_those_of_the_code(tmp_path: Path) -> None:
    """On which dvc.lock stands; `python -m tripletkd.pipeline.code` writes them."""
    for name in ("tripletkd", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("uv.lock", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "-m", "tripletkd.pipeline.code"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "code.json").read_text()) == json.loads((ROOT / "code.json").read_text())


def test_training_runs_without_what_a_bare_machine_lacks(tmp_path: Path) -> None:
    """Fetch here; then train where there are only the packages that training imports, and no git."""
    lacking = ["dvc", "mlflow", "sklearn", "scipy", "torchvision", "PIL", "matplotlib", "pandas", "onnx", "onnxruntime"]
    program = (
        "import runpy, sys; lacking = sys.argv.pop(1).split(','); "
        "sys.modules.update({name: None for name in lacking if name}); "
        "stage = sys.argv.pop(1); runpy.run_module(f'stages.{stage}', run_name='__main__')"
    )
    common = ["suite=digits", "suites.digits.seeds=[1]", "suites.digits.teacher_floor=0"]
    common += ["suites.digits.recipe.epochs=1", "suites.digits.recipe.schedule.decay_epochs=[]"]
    common += ["suites.digits.evaluate_every=1"]
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for stage, without in (("fetch", []), ("train_teacher", lacking), ("distill", lacking)):
        words = [sys.executable, "-c", program, ",".join(without), stage, *common]
        words += ["method=triplet"] if stage == "distill" else []
        variables = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "nonsense://"}
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "runs/digits/test/triplet/seed-1/weights.safetensors").exists()
