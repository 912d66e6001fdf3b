"""Who imports whom, and whether dvc.yaml names all code and all parameters that a stage uses, and nothing else."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from shrunk import ENVIRONMENT, change, clone

from tripletkd import methods

LIBRARY = sorted((ROOT / "tripletkd").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))

# From top to bottom the way of the data: a part imports itself and those above it. Only stages/ imports config.
LAYERS = [
    "errors", "types", "files", "provenance", "streams", "data", "models", "methods", "training", "evaluation",
    "analysis", "reporting", "tracking", "export", "config",
]  # fmt: skip

# --- the import graph -------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_file(name: str) -> Path | None:
    """The file of a module of this project; None for any other name."""
    path = ROOT / name.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def nodes(tree: ast.Module, executed_only: bool) -> Iterator[ast.AST]:
    """All nodes of a file; on demand without those that only type checkers see."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if executed_only and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


@cache
def imports(path: Path, executed_only: bool = False, top_level_only: bool = False) -> frozenset[str]:
    """Full names of the modules that a file imports, in functions too; of `from x import y` both x and x.y."""
    tree = ast.parse(path.read_text())
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: set[str] = set()
    for node in tree.body if top_level_only else nodes(tree, executed_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def mentions(names: frozenset[str], module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in names)


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


LEAVES = {
    "tripletkd/config": "it knows the schemas of everything it judges, but hands out what params.yaml says",
    "tripletkd/tracking": "it mirrors what is there; nothing that a stage makes depends on it",
}


def imported_files(start: Path, *more: Path) -> set[Path]:
    """The files of this project that are executed when these are imported: these, what they import, and so on.

    What LEAVES import of other packages does not count: it cannot change what a stage makes.
    """
    found: set[Path] = set()
    pending = [start, *more]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        names = {module_name(path), *imports(path, executed_only=True)}
        if inside := next((leaf for leaf in LEAVES if path.is_relative_to(ROOT / leaf)), None):
            names = {name for name in names if name.startswith(inside.replace("/", "."))}
        packages = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
        pending += filter(None, map(module_file, sorted(names | packages)))
    return {path for path in found if has_code(path)}


# --- who imports whom -------------------------------------------------------------------------------------------------


def layer(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_a_module_imports_its_own_layer_and_those_above(path: Path) -> None:
    if path == ROOT / "tripletkd/__init__.py":
        assert not mentions(imports(path), "tripletkd")
        return
    own = layer(module_name(path))
    assert own in LAYERS, f"{path}: {own} is in no layer"
    used = {layer(name) for name in imports(path) if name.startswith("tripletkd.")}
    below = {name for name in used if LAYERS.index(name) > LAYERS.index(own)}
    assert not below, f"{module_name(path)} imports {', '.join(sorted(below))}, which stand below {own}"


@pytest.mark.parametrize("name", methods.names())
def test_a_method_imports_torch_and_shared_formulas_only(name: str) -> None:
    found = imports(ROOT / "tripletkd/methods" / f"{name}.py")
    shared = ("tripletkd.types", "tripletkd.methods.functional")
    ours = {module for module in found if mentions(frozenset({module}), "tripletkd")}
    assert not {module for module in ours if not module.startswith(shared)}
    assert {module.split(".")[0] for module in found - ours} <= {"torch", "annotated_types", *sys.stdlib_module_names}


def test_shared_formulas_import_no_method() -> None:
    found = {name for name in imports(ROOT / "tripletkd/methods/functional.py") if name.startswith("tripletkd.")}
    assert all(name.startswith("tripletkd.types") for name in found)


def data_roots() -> list[str]:
    blocks = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"]
    return [value for block in blocks for value in block.get("paths", {}).values()]


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_the_library_knows_neither_stages_nor_dvc_nor_paths(path: Path) -> None:
    found = imports(path)
    assert not mentions(found, "stages")
    assert not mentions(found, "dvc")
    assert mentions(found, "mlflow") <= module_name(path).startswith("tripletkd.tracking")
    assert not [root for root in data_roots() if f'"{root}/' in path.read_text()]


@pytest.mark.parametrize("path", STAGES, ids=module_name)
def test_stages_import_no_stage(path: Path) -> None:
    commands = {p.stem for p in STAGES if not p.stem.startswith("_")}
    found = imports(path)
    assert not {name.split(".")[1] for name in found if name.startswith("stages.")} & commands
    assert not mentions(found, "dvc") or path.stem == "share"  # which copies what DVC keeps


@pytest.mark.parametrize("path", [*LIBRARY, *STAGES], ids=module_name)
def test_heavy_imports_happen_where_they_are_used(path: Path) -> None:
    found = imports(path, top_level_only=True)
    heavy = {"mlflow", "matplotlib", "sklearn", "torchvision", "pandas", "onnx", "onnxscript", "onnxruntime"}
    assert not {name.split(".")[0] for name in found} & heavy


# --- dvc.yaml says what a stage depends on ----------------------------------------------------------------------------


@dataclass(frozen=True)
class DvcStage:
    """A stage as DVC resolves it."""

    name: str  # for example distill@digits-triplet
    module: str  # stages.distill
    words: tuple[str, ...]  # suite=digits method=triplet split=test
    deps: frozenset[str]
    params: frozenset[str]

    @property
    def item(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in self.words)


def resolved(folder: Path) -> list[DvcStage]:
    """All stages of a folder's dvc.yaml, in its order."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        found = []
        for stage in repo.index.stages:
            _, _, module, *words = stage.cmd.split()
            params = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params]
            deps = [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]
            found.append(DvcStage(stage.name, module, tuple(words), frozenset(deps), frozenset(params)))
    return sorted(found, key=lambda stage: ORDER.index(stage.module.removeprefix("stages.")))


ORDER = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def method_of(stage: DvcStage) -> str | None:
    """The one method whose module a stage loads by name to train with it, or judges records by."""
    return {
        "stages.train_teacher": "scratch",
        "stages.distill": stage.item.get("method"),
        "stages.evaluate": stage.item.get("method"),
        "stages.ablate": "triplet_family",
    }.get(stage.module)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline shrunk, in a folder of its own, with every kind of stage."""
    folder = clone(tmp_path_factory.mktemp("project"))
    change(folder, "run", "splits", value=["test", "validation"])
    change(folder, "run", "export", value=["triplet"])
    return folder


@pytest.fixture(scope="module")
def stages(project: Path) -> list[DvcStage]:
    return resolved(project)


@pytest.fixture(scope="module")
def stages_of_all_methods(project: Path) -> list[DvcStage]:
    original = (project / "params.yaml").read_text()
    change(project, "run", "methods", value=methods.names())
    found = resolved(project)
    (project / "params.yaml").write_text(original)
    return found


def data_files(modules: set[Path]) -> set[Path]:
    """Files beside the code whose names stand in it: templates."""
    text = "\n".join(path.read_text() for path in modules)
    beside = [p for p in (ROOT / "tripletkd").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    return {path for path in beside if f'"{path.name}"' in text}


def published(stage: DvcStage) -> set[Path]:
    """The figures of others, which params.yaml names: only the tables show them."""
    return set((ROOT / "tripletkd/published").iterdir()) if stage.module == "stages.tabulate" else set()


def covers(dep: str, path: Path) -> bool:
    return path.is_relative_to(ROOT / dep)


def test_deps_are_all_the_code_that_a_stage_imports_and_no_other(stages_of_all_methods: list[DvcStage]) -> None:
    """Packages may be named as folders. A method that is loaded by its name counts as that one file."""
    wrong = {}
    for stage in stages_of_all_methods:
        method = method_of(stage)
        start = [module_file(name) for name in [stage.module, *([f"tripletkd.methods.{method}"] if method else [])]]
        code = imported_files(*filter(None, start))
        used = code | data_files(code) | published(stage)
        listed = {dep for dep in stage.deps if dep.startswith(("stages/", "tripletkd/"))}
        missing = {str(p.relative_to(ROOT)) for p in used if not any(covers(dep, p) for dep in listed)}
        missing |= {"uv.lock"} - stage.deps
        superfluous = {dep for dep in listed if not any(covers(dep, p) for p in used)}
        if missing or superfluous:
            wrong[stage.name] = {"missing": sorted(missing), "superfluous": sorted(superfluous)}
    assert not wrong, yaml.safe_dump(wrong)


# Keys that a stage may read without naming them in dvc.yaml, and why
UNLISTED = {
    "suites.digits.name": "the suite's own key",
    "suite": "which of the stages it is, as its name says",
    "method": "which of the stages it is, as its name says",
    "ablation": "which of the stages it is, as its name says",
    "split": "which of the stages it is, as its name says",
    "run.split": "the default of split",
    "run.device": "where, not what: a seed trained on another machine is accepted, and its record names the machine",
    "run.residence": "from where images come, not which",
    "run.cuda_graph": "how fast, not what",
    "run.fuse_seeds": "how fast, not what, but for rounding",
    "run.checkpoint_minutes": "how much is lost when the process dies, not what is computed",
}


SUPERFLUOUS = {("train_teacher@digits-test", "suites.digits.holdout"): "one entry for both splits of the matrix"}


def keys_behind(path: str, stage: DvcStage, written: dict[str, Any]) -> set[str]:
    """The keys of params.yaml from which a value came that the stage read at `path` in the resolved configuration."""
    suite, parts = f"suites.{stage.item['suite']}", path.split(".")
    if parts[:1] == ["ablations"] and "params" in parts:
        return {".".join(parts[:2]), ".".join(["methods.triplet_family", *parts[parts.index("params") + 1 :]])}
    if parts[:1] == ["ablations"] and "recipe" in parts:
        recipe = [suite, "student", *parts[parts.index("recipe") :]]
        return {".".join(parts[:2]), *keys_behind(".".join(recipe), stage, written)}
    if parts[:1] == ["suites"] and parts[3:4] == ["recipe"] and not is_written(path, written):
        return {".".join([*parts[:2], *parts[3:]])}  # written once for teacher and student
    return {path}


def is_written(path: str, block: Any) -> bool:
    for key in path.split("."):
        if not isinstance(block, dict) or key not in block:
            return False
        block = block[key]
    return True


def names(listed: str, key: str) -> bool:
    """Whether an entry of `params` is the key or a block that holds it."""
    return key == listed or key.startswith(f"{listed}.")


def reads(folder: Path, stage: DvcStage) -> set[str]:
    """Run the stage; the keys that it read."""
    target = folder / ".reads.json"
    program = [sys.executable, str(ROOT / "tests/config_reads.py"), str(target), stage.module, *stage.words]
    done = subprocess.run(
        program, cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{stage.name}: {done.stderr}"
    return set(json.loads(target.read_text()))


def test_params_are_all_keys_that_a_stage_reads_and_no_other(project: Path, stages: list[DvcStage]) -> None:
    """A block in `params` names all its keys, and one of them must be read."""
    written = yaml.safe_load((project / "params.yaml").read_text())
    wrong = {}
    for stage in stages:
        read = {key for path in reads(project, stage) for key in keys_behind(path, stage, written)} - set(UNLISTED)
        missing = {key for key in read if not any(names(entry, key) for entry in stage.params)}
        superfluous = {entry for entry in stage.params - set(UNLISTED) if not any(names(entry, key) for key in read)}
        superfluous -= {entry for name, entry in SUPERFLUOUS if name == stage.name}
        if missing or superfluous:
            wrong[stage.name] = {"missing": sorted(missing), "superfluous": sorted(superfluous)}
    assert not wrong, yaml.safe_dump(wrong)


# --- machines that have less ------------------------------------------------------------------------------------------


def test_training_runs_without_what_a_bare_machine_lacks(tmp_path: Path) -> None:
    """Fetch here; then train where there are only the packages that training imports, and no git."""
    lacking = ["dvc", "mlflow", "sklearn", "scipy", "torchvision", "PIL", "matplotlib", "pandas"]
    lacking += ["onnx", "onnxscript", "onnxruntime"]
    program = (
        "import runpy, sys; lacking = sys.argv.pop(1).split(','); "
        "sys.modules.update({name: None for name in lacking if name}); "
        "stage = sys.argv.pop(1); runpy.run_module(f'stages.{stage}', run_name='__main__')"
    )
    common = ["suite=digits", "suites.digits.seeds=[1]", "suites.digits.teacher_floor=0"]
    common += ["suites.digits.recipe.epochs=1", "suites.digits.recipe.schedule.decay_epochs=[]"]
    common += ["suites.digits.evaluate_every=1"]
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
    assert (tmp_path / "runs/digits/test/triplet/seed-1/weights.safetensors").exists()
