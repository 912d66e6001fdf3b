"""The schema of params.yaml: types, ranges and names, checked before a stage does anything.

A constraint stands in the annotation: Annotated[int, ">= 1"], Annotated[str, "in cpu cuda"].
"""

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

from tripletkd import methods, models
from tripletkd.data.batches import Inputs
from tripletkd.errors import UserError
from tripletkd.training.optim import Recipe

ABLATED = "triplet_family"  # the method whose parameters, and the student's recipe, an ablation varies
MAX_BYTES, MAX_DEPTH, MAX_LENGTH = 2**20, 20, 4000  # of params.yaml, of its blocks in blocks, of one value
LARGEST = 1e30  # float32 ends at 3e38, and parameters are multiplied
NETWORK = f"in {' '.join(models.NETWORKS)} {models.TORCHVISION}NAME"  # decided by models.known


Split = Annotated[str, "in test validation"]


@dataclass
class Run:
    """What is regenerated, and how it is computed."""

    suites: list[str]
    methods: list[str]
    ablations: list[str]
    seeds: list[Annotated[int, ">= 0"]]
    splits: list[Split]  # each with a teacher of its own, which has not seen it
    split: Split  # the one that the table is measured on
    ablation_split: Split
    device: Annotated[str, "in auto cpu cuda"]
    precision: Annotated[str, "in float32 float64 tf32 bfloat16"]
    deterministic: bool
    capture: bool  # on a GPU, training steps as CUDA graphs?
    folding: Annotated[str, "in auto always never"]  # all seeds in each kernel?
    checkpoint_minutes: Annotated[float, "> 0"]
    export: list[str]  # methods whose students, and `teacher`, are written as ONNX files


@dataclass
class Data:
    """Where a suite's images come from."""

    source: Annotated[str, "in torchvision folder archive digits"]
    name: Optional[str] = None  # torchvision: the class's name
    path: Optional[str] = None  # folder, archive: where it is
    sha256: Optional[str] = None  # archive: what it must be
    per_class: Optional[Annotated[int, ">= 1"]] = None  # only the first N images of each class, of either split


@dataclass
class InputSettings:
    """See data.Inputs."""

    mean: list[float]
    std: list[Annotated[float, "> 0"]]
    crop_padding: Annotated[int, ">= 0"]
    flip: bool

    def build(self, channels: int) -> Inputs:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                count = len(getattr(self, name))
                raise UserError(
                    f"inputs.{name}: {count} values for images of {channels} channel(s); give 1 or {channels}"
                )
        return Inputs(tuple(self.mean), tuple(self.std), self.crop_padding, self.flip)


@dataclass
class TeacherSettings:
    network: Annotated[str, NETWORK]
    seed: Annotated[int, ">= 0"]
    floor: Annotated[float, ">= 0", "<= 100"]  # test accuracy in percent below which no student is trained
    recipe: Recipe


@dataclass
class StudentSettings:
    network: Annotated[str, NETWORK]
    recipe: Recipe


@dataclass
class Published:
    """A figure from the literature: test accuracy in percent."""

    accuracy: Annotated[float, ">= 0", "<= 100"]
    source: str
    curve: Optional[str] = None  # a CSV file with epoch and test_accuracy, for the picture


@dataclass
class Suite:
    """A data set, a teacher, a student, and how both are trained."""

    about: str  # a sentence for the report
    data: Data
    inputs: InputSettings
    teacher: TeacherSettings
    student: StudentSettings
    evaluate_every: Annotated[int, ">= 1"]
    holdout: Annotated[int, ">= 1"]  # training images a class that make the validation split
    # teacher, methods, and as references any others: the table has a line for them too
    published: dict[str, Published] = field(default_factory=dict)


@dataclass
class Claim:
    """What the paper says: one method's test accuracy is above that of each of the others."""

    method: str
    over: list[str]


@dataclass
class Variant:
    """One line of an ablation: what tells it from the others, and the parameters and the recipe that it makes."""

    changed: dict[str, Any]
    params: Any  # of the method ABLATED
    recipe: Recipe

    @property
    def label(self) -> str:
        """For example "normalise true, margin 0.5"."""
        values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.changed.items()}
        return ", ".join(f"{key} {value}" for key, value in values.items()) or "as configured"


@dataclass
class Config:
    """params.yaml, and which of its cells a stage is asked for on the command line (suite=..., method=...).

    `load` turns methods into Params of their modules and ablations into Variants, for the suite that is asked for.
    """

    run: Run
    suites: dict[str, Suite]
    methods: dict[str, Any]
    ablations: dict[str, Any]
    claims: list[Claim]
    suite: Optional[str] = None
    method: Optional[str] = None
    ablation: Optional[str] = None
    split: Split = "test"
    defaults: list[Any] = field(default_factory=lambda: ["_self_", "params"])  # Hydra: params.yaml over this schema


def load(folder: Path, overrides: Sequence[str] = (), teacher: bool = False) -> Config:
    """params.yaml in `folder` with Hydra overrides; UserError names the key, what was found, what is expected.

    teacher: whether method=teacher is accepted.
    """
    try:
        _check_file(folder / "params.yaml")
        for override in overrides:
            _check_override(override)
        config = _compose(folder, list(overrides))
        _refuse_violations(config, "")
        _check_names(config, teacher)
        suite = config.suite or config.run.suites[0]
        config.methods = {name: _method(name, block, config, suite) for name, block in config.methods.items()}
        config.ablations = {name: _variants(name, block, config, suite) for name, block in config.ablations.items()}
    except UserError as problem:  # which may quote anything
        raise UserError(" ".join(str(problem).split())) from None
    return config


def _check_file(path: Path) -> None:
    """Refuse what Hydra would follow without end, or read otherwise than DVC, which reads the same file."""
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: not there; run stages from the project's root")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES} are refused")
    depth = 0
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            place = f"params.yaml, line {event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{place}: an alias, *{event.anchor}; expected the value itself")
            if depth > MAX_DEPTH:
                raise UserError(f"{place}: more than {MAX_DEPTH} blocks and lists within each other")
        for key, value in _scalars(yaml.compose(text, yaml.SafeLoader), ""):
            if re.split(r"[.\[]", key)[0] in ("defaults", "hydra"):  # Hydra's own
                raise UserError(f"{key}: unknown key; expected one of run, suites, methods, claims")
            _check_text(key, value)
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"params.yaml: cannot be read ({error})") from None


def _scalars(node: Any, path: str) -> Iterable[tuple[str, str]]:
    """(key, text) of every single value in a YAML node."""
    from yaml import MappingNode, SequenceNode

    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield from _scalars(value, f"{path}.{key.value}".lstrip("."))
    elif isinstance(node, SequenceNode):
        for i, item in enumerate(node.value):
            yield from _scalars(item, f"{path}[{i}]")
    elif node is not None:
        yield path, node.value


def _check_override(override: str) -> None:
    """Hydra's own messages for a text that it cannot read do not name it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key = override.partition("=")[0][:80]
    _check_text(key, override)
    try:
        parsed = OverridesParser.create().parse_override(override)
        sweep = parsed.is_sweep_override()
    except (HydraException, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no text"
        raise UserError(
            f"{override!r} on the command line: cannot be read ({reason}); expected key=value, and a value of other "
            "than ASCII letters in quotes"
        ) from None
    if sweep:
        raise UserError(f"{key}: found several values, {override!r}; expected one: `dvc exp run --queue` tries several")
    if key.lstrip("+~").split(".")[0].split("/")[0] in ("hydra", "defaults"):
        raise UserError(f"{key}: unknown key; expected one of run, suites, methods, claims, suite, method")


def _check_text(key: str, text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise UserError(f"{key}: {len(text)} characters, more than {MAX_LENGTH} are refused")
    if "${" in text:  # Hydra would also look up environment variables, and records are written of what it finds
        raise UserError(f"{key}: found {text!r}, expected the value itself: DVC and Hydra read a reference differently")


def _compose(folder: Path, overrides: list[str]) -> Config:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            composed = compose("schema", overrides=overrides)
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(_explain(error)) from None
    assert isinstance(config, Config)
    return config


def _explain(error: BaseException) -> str:
    """One message with the key; Hydra keeps the useful text in the error that it was handling."""
    while (inner := error.__cause__ or error.__context__) and not hasattr(error, "full_key"):
        error = inner
    key = getattr(error, "full_key", None)
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(
        line for line in lines if line and not line.startswith(("full_key", "object_type", "reference_type"))
    )
    if key and "not in" in text and (parent := getattr(error, "parent_node", None)) is not None:
        known = ", ".join(str(name) for name in parent if name not in ("defaults", "hydra"))
        text = f"unknown key; expected one of {known}"
    for pattern, ours in _PLAINER.items():
        text = re.sub(pattern, ours, text)
    return f"{key}: {text}" if key else f"params.yaml: {text}"


_PLAINER = {  # what OmegaConf says -> what a person who edits params.yaml understands
    r"^.*[Mm]issing mandatory value.*": "missing; every key of the block must be given",
    r"^.*does not support deletion.*": "cannot be left out; every key of the block must be given",
    r"^Value (.*) of type '\w+' could not be converted to Integer$": r"found \1, expected a whole number",
    r"^Value (.*) of type '\w+' could not be converted to Float$": r"found \1, expected a number",
    r"^Value (.*) is not a valid bool \(type \w+\)$": r"found \1, expected true or false",
    r"^Incompatible value 'None' for field of type .*$": "found no value, expected one",
    r"^Invalid value assigned: \w+ is not a ListConfig, list or tuple\.$": "found a single value, expected a list",
    r"^Cannot merge DictConfig with ListConfig$": "found a list, expected a block of parameters",
    r"^Invalid type assigned: .* value: (.*)$": r"found \1, expected a block of parameters",
}


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _satisfies(value: Any, constraint: str) -> bool:
    if constraint == NETWORK:
        return models.known(value)
    relation, _, bound = constraint.partition(" ")
    if relation == "in":
        return value in bound.split()
    return isinstance(value, int | float) and _COMPARE[relation](value, float(bound))


def _refuse_violations(block: Any, path: str) -> None:
    for key, value, constraint in _violations(block, path):
        raise UserError(
            f"{key}: found {value!r}, expected a value {constraint}; correct params.yaml or the command line"
        )


def _violations(block: Any, path: str) -> Iterable[tuple[str, Any, str]]:
    """(key, value, constraint) for each value in a dataclass instance that breaks its annotation."""
    hints = get_type_hints(type(block), include_extras=True)
    for unknown in set(vars(block)) - set(hints):  # Hydra's +key=value passes its schema
        yield f"{path}.{unknown}".lstrip("."), vars(block)[unknown], f"of a known key: {', '.join(hints)}"
    for name, hint in hints.items():
        yield from _check(getattr(block, name), hint, f"{path}.{name}".lstrip("."))


def _check(value: Any, hint: Any, path: str) -> Iterable[tuple[str, Any, str]]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        yield path, value, "that is a finite number"
    elif isinstance(value, float) and abs(value) > LARGEST:
        yield path, value, f"of at most {LARGEST:g}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield path, value, "of at most 64 bits"
    elif origin is Annotated:
        for constraint in arguments[1:]:
            if not _satisfies(value, constraint):
                yield path, value, constraint
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            yield from _check(value, next(a for a in arguments if a is not type(None)), path)
    elif origin is list:
        for i, item in enumerate(value):
            yield from _check(item, arguments[0], f"{path}[{i}]")
    elif origin is dict:
        for key, item in value.items():
            yield from _check(item, arguments[1], f"{path}.{key}")
    elif dataclasses.is_dataclass(value):
        yield from _violations(value, path)


def _block(found: Any, key: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{key}: found {found!r}, expected a block of parameters")
    return found


def _filled(schema: Any, block: dict[str, Any], key: str) -> Any:
    """The dataclass built from the block; where `schema` is an instance, its values are the defaults."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), block))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}.{_explain(error)}") from None
    _refuse_violations(made, key)
    return made


def _method(name: str, found: Any, config: Config, suite: str) -> Any:
    """The Params of a method from its block, for one suite: what its `suites` says of it goes before the rest."""
    key = f"methods.{name}"
    try:
        module = methods.load(name)
    except KeyError:
        raise UserError(f"{key}: unknown method; expected one of {', '.join(methods.names())}") from None
    block = dict(_block(found, key))
    if block.get("layers") == []:
        raise UserError(f"{key}.layers: found an empty list, expected at least one")
    special = _block(block.pop("suites", {}), f"{key}.suites")
    params = {"": _filled(module.Params, block, key)}
    for other, changes in special.items():
        if other not in config.suites:
            raise UserError(f"{key}.suites: {other!r} is no suite; expected one of {', '.join(config.suites)}")
        inner = f"{key}.suites.{other}"
        params[other] = _filled(params[""], _block(changes, inner), inner)
    return params.get(suite, params[""])


def _variants(name: str, found: Any, config: Config, suite: str) -> list[Variant]:
    """The lines of an ablation from its block, a list of what each changes in ABLATED and in the student's recipe."""
    if not isinstance(found, list) or len(found) < 2:
        raise UserError(f"ablations.{name}: found {found!r}, expected a list of two variants or more")
    variants = []
    for i, entry in enumerate(found):
        key = f"ablations.{name}[{i}]"
        changed = dict(_block(entry, key))
        of_recipe = _block(changed.pop("recipe", {}), f"{key}.recipe")
        params = _filled(config.methods[ABLATED], changed, key)
        recipe = _filled(config.suites[suite].student.recipe, of_recipe, f"{key}.recipe")
        variants.append(Variant(changed | of_recipe, params, recipe))
    alike = set.intersection(*({*map(str, v.changed.items())} for v in variants))  # leave out what all variants share
    for i, variant in enumerate(variants):
        variant.changed = {k: v for k, v in variant.changed.items() if str((k, v)) not in alike}
        if variant.label in [other.label for other in variants[:i]]:
            raise UserError(f"ablations.{name}: {variant.label!r} is listed twice, expected once")
    return variants


def _check_names(config: Config, teacher: bool) -> None:
    """What is asked for exists, nothing is named twice, and what names a folder can."""
    for kind, blocks in (("suites", config.suites), ("ablations", config.ablations)):
        for name in blocks:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise UserError(f"{kind}.{name}: found {name!r} as a name, expected letters, digits and _ - . in it")
    run, trained = config.run, ["teacher", *config.methods]
    checks: list[tuple[str, list[Any], list[str] | None]] = [
        ("run.suites", run.suites, list(config.suites)),
        ("run.methods", run.methods, list(config.methods)),
        ("run.ablations", run.ablations, list(config.ablations)),
        ("run.export", run.export, trained),
        ("run.seeds", run.seeds, None),
        ("run.splits", run.splits, None),
        ("run.split", [run.split], run.splits),
        ("run.ablation_split", [run.ablation_split] if run.ablations else [], run.splits),
        ("suite", [config.suite] if config.suite else [], list(config.suites)),
        ("method", [config.method] if config.method else [], trained if teacher else list(config.methods)),
        ("ablation", [config.ablation] if config.ablation else [], list(config.ablations)),
    ]
    for key, names, known in checks:
        if not names and key in ("run.suites", "run.methods", "run.seeds"):
            raise UserError(f"{key}: found an empty list, expected at least one")
        for name in names:
            if known is not None and name not in known:
                raise UserError(f"{key}: {name!r} is not there; expected one of {', '.join(known)}")
            if names.count(name) > 1:
                raise UserError(f"{key}: {name!r} is listed {names.count(name)} times, expected once")
    for i, claim in enumerate(config.claims):
        for key, name in [("method", claim.method), *(("over", base) for base in claim.over)]:
            if name not in list(config.methods):  # found may be a list too, which has no hash
                raise UserError(
                    f"claims[{i}].{key}: {name!r} is no method; expected one of {', '.join(config.methods)}"
                )
    for name, suite in config.suites.items():
        if suite.teacher.seed in run.seeds:
            raise UserError(
                f"suites.{name}.teacher.seed: found {suite.teacher.seed}, which is in run.seeds; expected another: "
                "that student would begin with some of its teacher's weights, and see the images in its order"
            )
    if config.ablations and ABLATED not in config.methods:
        raise UserError(f"methods.{ABLATED}: missing; the ablations vary it")
