"""What code means: a hash that a comment, a docstring, the layout or the name of a file does not change.

The hash covers the syntax trees of some definitions, the roots, and of all that these name, directly or not. Statements
at the top level of their modules and templates count too. Annotations, messages of errors and what is printed do not
count, but the class that a field's annotation names does. Of other packages, the version in uv.lock counts.

A file that the code reads counts if a text names it, beside the module or as "tripletkd/...", for a method or a network
by any path from the project's root. If these make a path of `__file__`, all files below their folder count.
"""

import ast
import copy
import hashlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import MethodType
from typing import NamedTuple

from tripletkd.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGES = ("tripletkd", "stages")
OWN = ("tripletkd.methods.", "tripletkd.models.")  # packages to which people add files
LOAD = "tripletkd.methods.load"
PROTOCOL = ("loss", "Params", "NEEDS", "needs", "adapters", "by_class", "draw")  # what a method's module may have
PRINTS = ("print", "tqdm.write", "warnings.warn")  # calls whose words are for people


class Definition(NamedTuple):
    """Names a function, a class or an assignment at the top level of a module; `*` is what a module does at import."""

    module: str
    name: str


@dataclass(frozen=True)
class Module:
    """Holds what a file defines, and what the names that it imports stand for."""

    name: str
    path: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)  # local name -> full name of a module or of what is in one
    otherwise: dict[str, list[str]] = field(default_factory=dict)  # local name -> what else it can stand for

    @property
    def package(self) -> str:
        """The package that relative imports begin in."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def _module(name: str) -> Module | None:
    """Parse a module of this project; None for any other name."""
    stem = ROOT / name.replace(".", "/")
    path = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
    if path is None or name.split(".", maxsplit=1)[0] not in PACKAGES:
        return None
    module = Module(name, path)
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imported.update(_imports(statement, module.package))
        elif _is_guard(statement):
            assert isinstance(statement, ast.If)
            _define(module, statement.orelse)
            _import_within(module, statement.orelse)
        elif not _is_docstring(statement):
            _define(module, [statement])
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                _import_within(module, [statement])
    return module


def _import_within(module: Module, statements: Sequence[ast.stmt]) -> None:
    """Note what imports bind that stand below an `if` or a `try`, where a name can stand for one thing or another."""
    for inner in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            for name, full in _imports(inner, module.package):
                if module.imported.setdefault(name, full) != full:
                    module.otherwise.setdefault(name, []).append(full)


def _define(module: Module, statements: Sequence[ast.stmt]) -> None:
    """Note what statements define, in order."""
    for statement in statements:
        for target in _targets(statement):
            module.definitions.setdefault(target, []).append(statement)
        if any(_is_of_project(module, decorator) for decorator in getattr(statement, "decorator_list", ())):
            module.definitions.setdefault("*", []).append(statement)  # which may register it


def _is_of_project(module: Module, decorator: ast.expr) -> bool:
    names = [node.id for node in ast.walk(decorator) if isinstance(node, ast.Name)]
    return any(n in module.definitions or module.imported.get(n, "").split(".")[0] in PACKAGES for n in names)


def _imports(statement: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, str]]:
    """Give each local name that an import binds, with the full name that it stands for."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield alias.asname or alias.name.split(".")[0], alias.name if alias.asname else alias.name.split(".")[0]
        return
    parts = package.split(".")
    base = parts[: len(parts) - statement.level + 1] if statement.level else []
    source = ".".join([*base, *filter(None, [statement.module])])
    if any(alias.name == "*" for alias in statement.names):
        raise UserError(f"{package}: from {source} import *: its code cannot be hashed; name what is imported")
    for alias in statement.names:
        yield alias.asname or alias.name, f"{source}.{alias.name}"


def _targets(statement: ast.stmt) -> Iterator[str]:
    """Give the names that a statement of a module defines; `*` where it defines none."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    is_block = isinstance(statement, ast.For | ast.AsyncFor)  # whose target is a variable of a loop
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    targets = [] if is_block else targets
    names = [node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)]
    yield from names or ["*"]


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_guard(statement: ast.stmt) -> bool:
    """Whether a block is for type checkers, or for the module as a program."""
    test = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
    return "TYPE_CHECKING" in test or "__name__" in test


class _Normalizer(ast.NodeTransformer):
    """Removes what does not count from a definition, and collects what it reaches."""

    def __init__(self, module: Module) -> None:
        self.module, self.imported = module, dict(module.imported)
        self.reached: set[Definition] = set()
        self.packages: set[str] = set()
        self.files: set[Path] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self._bind(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._bind(node)

    def _bind(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imported.update(_imports(node, self.module.package))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for item in [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]:
            self.visit(copy.deepcopy(item.annotation))  # a field of a class reaches the classes of its values
        return self._body(node)

    def _body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        for inner in ast.walk(node):  # an import counts wherever in the body it stands
            if isinstance(inner, ast.Import | ast.ImportFrom):
                self._bind(inner)
        node.body = [statement for statement in node.body if not _is_docstring(statement)]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Raise(self, _: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value
        if isinstance(call, ast.Call) and ast.unparse(call.func) in PRINTS:
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Follow a method that another one takes by its name, which must stand there."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "joinpath"):
            self._note_file("/".join(_texts_in(node)))
        first, _, rest = ast.unparse(node.func).partition(".")
        full = ".".join(filter(None, [self.imported.get(first), rest]))
        if self.module.name.startswith(OWN) and full == LOAD:
            if not node.args or not isinstance(node.args[0], ast.Constant):
                raise UserError(
                    f"{self.module.name}: {ast.unparse(node)}: found a name that is not written out, so its code "
                    "cannot be hashed; write the name as text"
                )
            self.reached.update(everything_in(f"tripletkd.methods.{node.args[0].value!s}"))
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        self._note_file(node.value)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Note a file whose path is put together, as in Path("assets") / "prior.npy"."""
        if isinstance(node.op, ast.Div):
            self._note_file("/".join(_texts_in(node)))
        return self.generic_visit(node)

    def _note_file(self, text: object) -> None:
        """Note a template beside the module, or a file that is read from the project's root."""
        if not isinstance(text, str) or not re.fullmatch(r"[\w./-][\w./ -]{1,78}", text) or ".." in text:
            return
        is_ours = text.startswith(tuple(f"{name}/" for name in PACKAGES))
        folders = [ROOT] if is_ours else [self.module.path.parent]
        folders += [ROOT] if self.module.name.startswith(OWN) else []
        self.files |= {p for folder in folders if (p := folder / text).is_file() and p.suffix != ".py"}

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        full = self._full(node)
        return ast.Name(full) if full else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == "__file__" and self.module.name.startswith(OWN):  # a path is made of it, to whatever stands there
            beside = [path for path in self.module.path.parent.rglob("*") if path.is_file()]
            self.files |= {path for path in beside if path.suffix not in (".py", ".pyc") and path.name[0] != "."}
        return ast.Name(self._full(node) or node.id)

    def _full(self, node: ast.AST) -> str | None:
        """Note what a name, or a dotted one, reaches; returns it without its module, None where it is no import."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.module.definitions:
            self.reached.add(Definition(self.module.name, node.id))
            return None if parts else node.id
        if node.id not in self.imported:
            return None
        for full in self.module.otherwise.get(node.id, ()):
            self._imported([*full.split("."), *parts])
        return self._imported([*self.imported[node.id].split("."), *parts])

    def _imported(self, parts: Sequence[str]) -> str | None:
        """Split a full name into its module, its definition and what is asked of that."""
        for end in range(len(parts), 0, -1):
            module = _module(".".join(parts[:end]))
            if module is None:
                continue
            if end == len(parts):  # the module itself is handed on
                self.reached |= {Definition(module.name, name) for name in module.definitions}
                return module.name.rpartition(".")[2]
            name = parts[end]
            if name in module.imported:
                return self._imported([*module.imported[name].split("."), *parts[end + 1 :]])
            self.reached.add(Definition(module.name, name))
            return ".".join(parts[end:])
        self.packages.add(parts[0])
        return None if parts[0] in PACKAGES else ".".join(parts)


def _texts_in(node: ast.AST) -> list[str]:
    """List the texts in an expression, from left to right."""
    found = [each for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return [str(each.value) for each in sorted(found, key=lambda each: (each.lineno, each.col_offset))]


def _dump(node: object) -> str:
    """Write a syntax tree without what is empty in it: `ast.dump` differs between versions of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")]
    return f"{type(node).__name__}({','.join(f'{name}={_dump(v)}' for name, v in fields if v not in (None, []))})"


class Meaning(NamedTuple):
    """Holds what a definition says, and what it reaches."""

    text: str
    reached: frozenset[Definition]
    packages: frozenset[str]


@cache
def _meaning(definition: Definition) -> Meaning:
    module = _module(definition.module)
    if module is None or definition.name not in module.definitions:
        return Meaning("", frozenset(), frozenset())
    normalizer, texts = _Normalizer(module), []
    for statement in module.definitions[definition.name]:
        texts.append(_dump(normalizer.visit(copy.deepcopy(statement))))
    texts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(normalizer.files)]
    return Meaning("\n".join(texts), frozenset(normalizer.reached), frozenset(normalizer.packages))


def reached_from(roots: Sequence[Definition], without: Sequence[Definition] = ()) -> dict[Definition, Meaning]:
    """Find the definitions of this project that the roots reach, the roots among them; not `without`, nor beyond it."""
    _files()
    found: dict[Definition, Meaning] = {}
    pending = list(roots)
    while pending:
        definition = pending.pop()
        if definition not in found and definition not in without:
            found[definition] = _meaning(definition)
            pending += [*found[definition].reached, Definition(definition.module, "*")]
    return {definition: meaning for definition, meaning in found.items() if meaning.text}


def definition_of(thing: type | Callable[..., object]) -> Definition:
    """Name the definition of a function or a class.

    Raises:
        UserError: If it has none at the top level of a module, so that its code cannot be hashed.
    """
    if "<" in thing.__qualname__ or isinstance(thing, MethodType):
        raise UserError(
            f"{thing.__module__}: {thing.__qualname__}: found what is made by a function; expected a class or a "
            "function at the top level of a module, or functools.partial of one, whose code can be hashed"
        )
    return Definition(thing.__module__, thing.__qualname__.partition(".")[0])


def everything_in(module: str) -> list[Definition]:
    """List the definitions of a module, for code that is found by its module's name; none where there is no module."""
    _files()
    if (found := _module(module)) is None:
        return []
    taken = [full for name in PROTOCOL if (full := found.imported.get(name))]  # from another module, as they are
    return [*(Definition(module, name) for name in found.definitions), *(Definition(*f.rsplit(".", 1)) for f in taken)]


def meaning(roots: Sequence[Definition], without: Sequence[Definition] = ()) -> str:
    """Hash what the roots and all that they reach mean: sha256, in hexadecimal digits.

    Equal for code that differs in comments, docstrings, annotations, layout, order or the names of files only.
    """
    texts = sorted(f"{definition.name} {found.text}" for definition, found in reached_from(roots, without).items())
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def versions_of(roots: Sequence[Definition], without: Sequence[Definition] = ()) -> dict[str, str]:
    """Look up in uv.lock the versions of the packages that the roots, and all that they reach, import."""
    imported = {name for found in reached_from(roots, without).values() for name in found.packages}
    foreign, locked = imported - set(sys.stdlib_module_names) - set(PACKAGES), _locked()
    named = {name: set(_distributions().get(name, ())) for name in foreign}
    here = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    is_known = {name: bool(of & locked.keys()) if of else name not in here for name, of in named.items()}
    if locked and (unknown := sorted(name for name in foreign if not is_known[name])):
        raise UserError(
            f"import {unknown[0]}: it is not in uv.lock, so a change of it would not be noticed; move its code into "
            f"tripletkd/, or add it by `uv add {unknown[0]}`"
        )
    names = set().union(*named.values())
    return {name: version for name, version in sorted(locked.items()) if name in names}


def read_again() -> None:
    """Forget what was read, if a file has changed since: a process that has run for hours asks what the code means."""
    before = _files()
    _files.cache_clear()
    if _files() != before:
        for cached in (_module, _meaning, _locked):
            cached.cache_clear()


@cache
def _files() -> frozenset[tuple[Path, bytes]]:
    """Read all that the code is read from, before the first of it is."""
    code = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts]
    return frozenset((path, path.read_bytes()) for path in [*code, ROOT / "uv.lock"] if path.is_file())


@cache
def _distributions() -> dict[str, list[str]]:
    """Name, as uv.lock does, the distributions that have each package."""
    return {
        name: [re.sub(r"[-_.]+", "-", d).lower() for d in found] for name, found in packages_distributions().items()
    }


@cache
def _locked() -> dict[str, str]:
    """Read the version of each package; several where it depends on the machine or on Python."""
    lock, found = ROOT / "uv.lock", dict[str, str]()  # not there where the library is installed without the project
    for package in tomllib.loads(lock.read_text(encoding="utf-8"))["package"] if lock.is_file() else []:
        if "version" in package:
            found[package["name"]] = " ".join(filter(None, [found.get(package["name"]), package["version"]]))
    return found
