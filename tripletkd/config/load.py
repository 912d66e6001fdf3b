"""Load params.yaml: Hydra composes it, the schema judges it, and what it refers to is looked up suite by suite."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tripletkd import methods, models
from tripletkd.config import published
from tripletkd.config.check import check
from tripletkd.config.compose import compose
from tripletkd.config.schema import (
    ABLATED,
    Settings,
    StudentSettings,
    SuiteBlock,
    SuiteConfig,
    TeacherSettings,
    Variant,
)
from tripletkd.errors import UserError
from tripletkd.streams import check_distinct
from tripletkd.training.optim import Recipe

MAX_SEEDS = 1000  # in a range


@dataclass(frozen=True)
class Config(Settings):
    """params.yaml as it stands, checked; `for_suite` resolves what a stage works with.

    Attributes:
        root: The project's folder, in which the files that params.yaml names are looked up.
    """

    root: Path

    def for_suite(self, name: str) -> SuiteConfig:
        """Resolve a suite: recipes merged, methods as they are in this suite, published figures read.

        Raises:
            UserError: Something is wrong that shows only now, such as a recipe of an ablation; the message names it.
        """
        block, key = self.suites[name], f"suites.{name}"
        teacher, student = (_recipe(block.recipe, who.recipe, f"{key}.{kind}.recipe") for kind, who in _networks(block))
        params = {method: _params(method, found, self.suites, name) for method, found in self.methods.items()}
        try:
            figures = published.read(self.root, block.published) if block.published else {}
        except UserError as problem:
            raise UserError(f"{key}.published: {problem}") from None
        return SuiteConfig(
            name=name,
            about=block.about,
            data=block.data,
            inputs=block.inputs,
            seeds=block.seeds,
            precision=block.precision,
            teacher=TeacherSettings(block.teacher.network, block.teacher.seed, teacher),
            teacher_floor=block.teacher_floor,
            student=StudentSettings(block.student.network, student),
            evaluate_every=block.evaluate_every,
            holdout=block.holdout,
            published=figures,
            methods=params,
            ablations=self._ablations(params, student),
        )

    def _ablations(self, params: dict[str, Any], recipe: Recipe) -> dict[str, list[Variant]]:
        """Return the variants of the ablations that are asked for.

        Of the others the parameters are checked, but not the recipes: those of a suite that no ablation was written for
        need not fit.
        """
        asked = {}
        for name, entries in self.ablations.items():
            key = f"ablations.{name}"
            if len(entries) < 2:
                raise UserError(f"{key}: found {entries!r}, expected a list of two variants or more")
            changed = [_variant_params(f"{key}[{i}]", entry, params[ABLATED]) for i, entry in enumerate(entries)]
            if name in (*self.run.ablations, self.ablation):
                asked[name] = _variants(key, entries, changed, recipe)
        return asked


def load(folder: Path, overrides: Sequence[str] = (), allow_teacher: bool = False) -> Config:
    """Return params.yaml with Hydra overrides, all of it checked.

    Args:
        folder: Where params.yaml is.
        overrides: Such as "methods.triplet.margin=10".
        allow_teacher: Whether method=teacher is accepted.

    Raises:
        UserError: Something is wrong; the message names the key, what was found and what is expected.
    """
    try:
        config = Config(**vars(check(Settings, _with_seeds(compose(folder, overrides)), "")), root=folder)
        _check_names(config)
        _check_selection(config, allow_teacher)
        for name, block in config.suites.items():
            _check_suite(name, block)
        selected = [config.suite] if config.suite else config.run.suites
        for name in selected:
            config.for_suite(name)
    except UserError as problem:  # which may quote anything
        raise UserError(" ".join(str(problem).split())) from None
    return config


def _with_seeds(tree: dict[str, Any]) -> dict[str, Any]:
    """Write out ranges of seeds: 11-13 is 11, 12, 13."""
    suites = tree.get("suites")
    for name, block in suites.items() if isinstance(suites, dict) else ():
        seeds = block.get("seeds") if isinstance(block, dict) else None
        if not isinstance(seeds, str):
            continue
        found = re.fullmatch(r"(\d{1,9})-(\d{1,9})", seeds)
        first, last = map(int, found.groups()) if found else (0, -1)
        if not first <= last < first + MAX_SEEDS:
            expected = f"expected a list, or a range such as 11-20 of at most {MAX_SEEDS}"
            raise UserError(f"suites.{name}.seeds: found {seeds!r}, {expected}")
        block["seeds"] = list(range(first, last + 1))
    return tree


# --- names ------------------------------------------------------------------------------------------------------------


def _check_names(config: Config) -> None:
    """Refuse names that no folder or DVC key can have, and lists in `run` and `claims` of names that are unknown."""
    for kind, names in (("suites", config.suites), ("ablations", config.ablations)):
        for name in names:
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"{kind}.{name}: found {name!r} as a name, expected letters, digits and _ - in it")
    run = config.run
    _check_list("run.suites", run.suites, config.suites, may_be_empty=False)
    _check_list("run.methods", run.methods, config.methods, may_be_empty=False)
    _check_list("run.ablations", run.ablations, config.ablations)
    _check_list("run.export", run.export, ["teacher", *config.methods])
    _check_list("run.splits", run.splits)
    for key, split in (("split", run.split), *([("ablation_split", run.ablation_split)] if run.ablations else [])):
        if split not in run.splits:
            raise UserError(f"run.{key}: {split!r} is not there; expected one of {', '.join(run.splits)} (run.splits)")
    for i, claim in enumerate(config.claims):
        _check_list(f"claims[{i}].over", claim.over, [name for name in config.methods if name != claim.method])
        _check_list(f"claims[{i}].method", [claim.method], config.methods)
    if config.ablations and ABLATED not in config.methods:
        raise UserError(f"methods.{ABLATED}: missing; the ablations vary it")


def _check_selection(config: Config, allow_teacher: bool) -> None:
    trained = [*(["teacher"] if allow_teacher else []), *config.methods]
    for key, name, known in (
        ("suite", config.suite, config.suites),
        ("method", config.method, trained),
        ("ablation", config.ablation, config.ablations),
    ):
        if name:
            _check_list(key, [name], known)


def _check_list(
    key: str, found: Sequence[Any], known: Collection[str] | None = None, may_be_empty: bool = True
) -> None:
    if not found and not may_be_empty:
        raise UserError(f"{key}: found an empty list, expected at least one")
    for name in found:
        if known is not None and name not in known:
            raise UserError(f"{key}: {name!r} is not there; expected one of {', '.join(known)}")
        if found.count(name) > 1:
            raise UserError(f"{key}: {name!r} is listed {found.count(name)} times, expected once")


# --- suites -----------------------------------------------------------------------------------------------------------


def _networks(block: SuiteBlock) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("teacher", block.teacher), ("student", block.student)


def _check_suite(name: str, block: SuiteBlock) -> None:
    """Refuse seeds, networks and recipes that do not go together."""
    key = f"suites.{name}"
    _check_list(f"{key}.seeds", block.seeds, may_be_empty=False)
    if block.teacher.seed in block.seeds:
        raise UserError(
            f"{key}.teacher.seed: found {block.teacher.seed}, which is in {key}.seeds; expected another: that student "
            "would begin with some of its teacher's weights, and see the images in its order"
        )
    check_distinct([block.teacher.seed, *block.seeds], f"{key}.seeds")
    _recipe(block.recipe, {}, f"{key}.recipe")
    for kind, network in _networks(block):
        if not models.known(network.network):
            raise UserError(
                f"{key}.{kind}.network: found {network.network!r}, expected a value in {' '.join(models.NETWORKS)} "
                f"{models.TORCHVISION}NAME; correct params.yaml or the command line"
            )
        epochs = _recipe(block.recipe, network.recipe, f"{key}.{kind}.recipe").epochs
        if block.evaluate_every > epochs:
            found = block.evaluate_every
            raise UserError(f"{key}.evaluate_every: found {found}, expected at most {epochs}, the {kind}'s epochs")


def _recipe(base: Recipe, changes: dict[str, Any], key: str) -> Recipe:
    """Return the recipe with what a block says otherwise."""
    recipe = check(Recipe, _merged(asdict(base), changes), key)
    try:
        recipe.check()
    except UserError as problem:
        raise UserError(f"{key}.{problem}") from None
    return recipe


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with changes, block by block; a block with another name, such as of an optimizer, starts anew."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


# --- methods and ablations --------------------------------------------------------------------------------------------


def _params(name: str, block: dict[str, Any], suites: Collection[str], suite: str) -> Any:
    """Return the Params of a method from its block, with what its `suites` says of this suite."""
    key = f"methods.{name}"
    try:
        schema = methods.load(name).Params
    except KeyError:
        raise UserError(f"{key}: unknown method; expected one of {', '.join(methods.names())}") from None
    general = _without(block, "suites")
    params = _filled(schema, general, key)
    special = check(MethodSuites, {"suites": block.get("suites", {})}, key).suites
    _check_list(f"{key}.suites", list(special), suites)
    for other, changes in special.items():
        changed = _filled(schema, general | changes, f"{key}.suites.{other}")
        params = changed if other == suite else params
    return params


@dataclass(frozen=True)
class MethodSuites:
    """The key `suites` of a method's block: by suite, what the method has otherwise there."""

    suites: dict[str, dict[str, Any]]


def _filled(schema: Any, block: dict[str, Any], key: str) -> Any:
    for field, value in block.items():
        if isinstance(value, list):
            _check_list(f"{key}.{field}", value, may_be_empty=False)
    return check(schema, block, key)


def _variant_params(key: str, entry: dict[str, Any], params: Any) -> Any:
    """Return the Params of ABLATED with what a variant changes."""
    return _filled(type(params), asdict(params) | _without(entry, "recipe"), key)


def _variants(key: str, entries: list[dict[str, Any]], params: list[Any], recipe: Recipe) -> list[Variant]:
    """Return an ablation's lines from what each changes in the student's recipe, and the Params of each."""
    variants = []
    for i, (entry, made) in enumerate(zip(entries, params, strict=True)):
        changes = check(PartialRecipe, {"recipe": entry.get("recipe", {})}, f"{key}[{i}]").recipe
        changed = _without(entry, "recipe") | _leaves(changes)
        variants.append(Variant(changed, made, _recipe(recipe, changes, f"{key}[{i}].recipe")))
    return _told_apart(key, variants)


@dataclass(frozen=True)
class PartialRecipe:
    """The key `recipe` of a variant: what the student's recipe has otherwise there."""

    recipe: dict[str, Any]


def _without(block: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != key}


def _leaves(block: dict[str, Any], inside: str = "") -> dict[str, Any]:
    """Return the values of a block and of those in it by their last key, `optimizer: {name: x}` as optimizer x."""
    leaves: dict[str, Any] = {}
    for key, value in block.items():
        leaves |= _leaves(value, key) if isinstance(value, dict) else {inside if key == "name" else key: value}
    return leaves


def _told_apart(key: str, variants: list[Variant]) -> list[Variant]:
    """Return the variants without the changes that all of them share; refuse two that are then alike."""
    first, *others = [variant.changed for variant in variants]
    shared = {name for name in first if all(name in other and other[name] == first[name] for other in others)}
    told = [
        dataclasses.replace(variant, changed={k: v for k, v in variant.changed.items() if k not in shared})
        for variant in variants
    ]
    labels = [variant.label for variant in told]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"{key}: {label!r} is listed twice, expected once; each has a parameter or recipe of its own"
            )
    return told
