"""Load params.yaml: recipes are merged, the schema judges, and what a suite refers to is looked up."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tripletkd import methods, models
from tripletkd.config import published
from tripletkd.config.check import check, near
from tripletkd.config.compose import compose, merged, read_override
from tripletkd.config.schema import (
    ABLATED,
    MAX_SEEDS,
    Block,
    Settings,
    StudentSettings,
    SuiteBlock,
    SuiteConfig,
    TeacherSettings,
    Variant,
)
from tripletkd.errors import UserError
from tripletkd.methods import MethodParams
from tripletkd.streams import check_distinct
from tripletkd.training import mixup
from tripletkd.training.optim import Recipe

NOT_METHODS = ("teacher", "ablations")  # folders that stand beside the methods' folders


class Ablations(dict[str, list[Variant]]):
    """The ablations that fit a suite; of another, a look-up says why it does not fit."""

    def __init__(self, resolve: Callable[[str], list[Variant]], names: Collection[str]) -> None:
        super().__init__()
        self._resolve = resolve
        for name in names:
            with suppress(UserError):
                self[name] = resolve(name)

    def __missing__(self, name: str) -> list[Variant]:
        return self._resolve(name)


@dataclass(frozen=True)
class Config(Settings):
    """params.yaml as it stands, checked; `for_suite` resolves what a stage works with.

    Attributes:
        root: The project's folder, in which the files that params.yaml names are looked up.
    """

    root: Path

    @property
    def asked(self) -> list[str]:
        """The ablations that params.yaml or the command line asks for."""
        return list(dict.fromkeys([*self.run.ablations, *filter(None, [self.ablation])]))

    def for_suite(self, name: str) -> SuiteConfig:
        """Resolve a suite: methods as they are in this suite, published figures read, ablations written out.

        Raises:
            UserError: A method's parameters or the published figures are wrong; the message names them.
        """
        block, params = self.suites[name], self.params(name)
        try:
            figures = published.read(self.root, block.published) if block.published else {}
        except UserError as problem:
            raise UserError(f"suites.{name}.published: {problem}") from None

        def resolve(ablation: str) -> list[Variant]:
            return _variants(f"ablations.{ablation}", self.ablations[ablation], params[ABLATED], block.student.recipe)

        looked_up = {"name": name, "published": figures, "methods": params, "ablations": Ablations(resolve, self.asked)}
        return SuiteConfig(**vars(block) | looked_up)

    def special(self, method: str) -> Block:
        """Return what a method's block says of the asked suite alone, in its key `suites`."""
        of_suites = self.methods.get(method, {}).get("suites")
        found = of_suites.get(self.suite) if isinstance(of_suites, dict) else None
        return found if isinstance(found, dict) else {}

    def params(self, suite: str) -> dict[str, MethodParams]:
        """Return the Params of every method, with what its key `suites` says of this suite.

        Raises:
            UserError: They are not as the method has them.
        """
        params = {}
        for name, block in self.methods.items():
            key, general = f"methods.{name}", _without(block, "suites")
            try:
                schema = methods.load(name).Params
            except KeyError:
                known = methods.names()
                raise UserError(
                    f"{key}: unknown method; expected one of {', '.join(known)}{near(name, known)}"
                ) from None
            params[name] = check(schema, general, key)
            special = check(dict[str, Block], block.get("suites", {}), f"{key}.suites")
            _check_known(f"{key}.suites", special, self.suites)
            if suite in special:
                params[name] = check(schema, general | special[suite], f"{key}.suites.{suite}")
            _refuse_files(key, params[name])
        return params


def load(folder: Path, overrides: Sequence[str] = (), allow_teacher: bool = False) -> Config:
    """Return params.yaml with Hydra's overrides, all of it checked.

    Args:
        folder: Where params.yaml is.
        overrides: Such as "methods.triplet.margin=10".
        allow_teacher: Whether method=teacher is accepted.

    Raises:
        UserError: Something is wrong; the message names the key, what was found and what is expected.
    """
    try:
        tree = compose(folder, overrides)
        if isinstance(suites := tree.get("suites"), dict):
            tree["suites"] = {name: _written_out(f"suites.{name}", block) for name, block in suites.items()}
        config = Config(**vars(check(Settings, tree, "")), root=folder)
        _check_names(config, allow_teacher)
        for name, block in config.suites.items():
            _check_suite(f"suites.{name}", block)
            config.params(name)
        _check_heard(config, overrides)
        for name in [config.suite] if config.suite else config.run.suites:
            suite = config.for_suite(name)
            for method in [config.method] if config.method else config.run.methods:
                _check_layers(suite, method)
                _check_labels(suite, method)
            for ablation in config.asked if name in config.run.suites else filter(None, [config.ablation]):
                suite.ablations[ablation]  # says why one does not fit
    except UserError as problem:  # which may quote anything
        raise UserError(" ".join(str(problem).split())) from None
    return config


def _refuse_files(key: str, params: MethodParams) -> None:
    """Refuse the path of a file as a parameter: a change of the file would not be noticed."""
    for name, value in asdict(params).items():
        if isinstance(value, str) and re.search(r"[./]", value) and Path(value).is_file():
            raise UserError(
                f"{key}.{name}: found the path of a file, {value}, whose content no hash covers; expected a value. "
                "Name the file in the method's own code, where it counts"
            )


def _check_heard(config: Config, overrides: Sequence[str]) -> None:
    """Refuse an override of a method's parameter that has another value in the suite."""
    for key, value in map(read_override, overrides):
        parts = key.split(".")
        if parts[0] != "methods" or len(parts) < 2 or parts[2:3] == ["suites"]:
            continue
        special = config.special(parts[1])
        named = parts[2:3] or list(value if isinstance(value, dict) else ())
        for name in [name for name in named if name in special]:
            raise UserError(
                f"{key}: found on the command line, but {config.suite} has a value of its own for {name}, "
                f"{special[name]}; expected methods.{parts[1]}.suites.{config.suite}.{name}"
            )


def _written_out(key: str, block: object) -> object:
    """Return a suite's block with the seeds of a range such as 11-20, and each network's own changes in its recipe."""
    if not isinstance(block, dict):
        return block
    block = dict(block)
    if isinstance(seeds := block.get("seeds"), str):
        found = re.fullmatch(r"(\d{1,9})-(\d{1,9})", seeds)
        first, last = map(int, found.groups()) if found else (0, -1)
        if not first <= last < first + MAX_SEEDS:
            expected = f"expected a list, or a range such as 11-20 of at most {MAX_SEEDS}"
            raise UserError(f"{key}.seeds: found {seeds!r}, {expected}")
        block["seeds"] = list(range(first, last + 1))
    for kind in ("teacher", "student"):
        if isinstance(network := block.get(kind), dict):
            block[kind] = network | {"recipe": merged(block.get("recipe"), network.get("recipe", {}))}
    return block


# --- names ------------------------------------------------------------------------------------------------------------


def _check_names(config: Config, allow_teacher: bool) -> None:
    """Refuse names that are unknown, that no folder can have, or of which two pairs make one name of a stage."""
    for name in NOT_METHODS:
        if name in config.methods:
            raise UserError(f"methods.{name}: found {name!r} as a name, expected another: a folder has it already")
    if config.ablations and ABLATED not in config.methods:
        raise UserError(f"methods.{ABLATED}: missing; the ablations vary it")
    _check_blocks(config)
    for key, names, known in _named(config, ["teacher", *config.methods], allow_teacher):
        _check_known(key, [name for name in names if name is not None], known)
    for kind in ("methods", "ablations", "export"):
        taken: dict[str, tuple[str, str]] = {}
        for pair in ((suite, name) for suite in config.run.suites for name in getattr(config.run, kind)):
            other = taken.setdefault("-".join(pair), pair)
            if other != pair:
                both = f"{other[1]!r} of suite {other[0]!r} and {pair[1]!r} of suite {pair[0]!r}"
                raise UserError(f"run.{kind}: {both} make one name of a stage, {'-'.join(pair)}; expected another name")


def _named(
    config: Config, trained: list[str], allow_teacher: bool
) -> Iterator[tuple[str, Sequence[str | None], Collection[str]]]:
    """Yield the keys that name something, the names, and what there is."""
    run, suites, known_methods = config.run, config.suites, config.methods
    yield "run.suites", run.suites, suites
    yield "run.methods", run.methods, known_methods
    yield "run.ablations", run.ablations, config.ablations
    yield "run.export", run.export, trained
    yield "run.split", [run.split], run.splits
    yield "run.ablation_split", [run.ablation_split if run.ablations else None], run.splits
    for i, claim in enumerate(config.claims):
        yield f"claims[{i}].method", [claim.method], known_methods
        yield f"claims[{i}].over", claim.over, [name for name in known_methods if name != claim.method]
    for i, code in enumerate(run.equivalent_code):
        yield f"run.equivalent_code[{i}].suite", [code.suite], suites
        yield f"run.equivalent_code[{i}].methods", code.methods, trained
    yield "suite", [config.suite], suites
    yield "method", [config.method], trained if allow_teacher else known_methods
    yield "ablation", [config.ablation], config.ablations


def _check_blocks(config: Config) -> None:
    """Refuse a method that has a file and no parameters, where it is asked for."""
    asked = [
        *config.run.methods,
        config.method,
        *(name for claim in config.claims for name in (claim.method, *claim.over)),
    ]
    for name in asked:
        if name in methods.names() and name not in config.methods:
            raise UserError(
                f"methods.{name}: missing in params.yaml; its file is there, expected a block of parameters"
            )


def _check_known(key: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            expected = f"expected one of {', '.join(known)}{near(name, list(known))}"
            raise UserError(f"{key}: {name!r} is not there; {expected}")


# --- suites and ablations ---------------------------------------------------------------------------------------------


def _check_suite(key: str, block: SuiteBlock) -> None:
    """Refuse seeds, networks and recipes that do not go together."""
    if block.teacher.seed in block.seeds:
        raise UserError(
            f"{key}.teacher.seed: found {block.teacher.seed}, which is in {key}.seeds; expected another: that student "
            "would begin with some of its teacher's weights, and see the images in its order"
        )
    check_distinct([block.teacher.seed, *block.seeds], f"{key}.seeds")
    try:
        block.inputs.check(block.data)
    except UserError as problem:
        raise UserError(f"{key}.{problem}") from None
    _fitting(block.recipe, f"{key}.recipe")
    for kind, network in (("teacher", block.teacher), ("student", block.student)):
        if not models.known(network.network):
            raise UserError(
                f"{key}.{kind}.network: found {network.network!r}, expected one of {', '.join(models.NETWORKS)}, "
                f"{models.TORCHVISION}NAME{near(network.network, list(models.NETWORKS))}"
            )
        _check_weights(f"{key}.{kind}", network)
        if network.recipe is None:
            continue
        epochs = _fitting(network.recipe, f"{key}.{kind}.recipe").epochs
        if block.evaluate_every > epochs:
            found = block.evaluate_every
            raise UserError(f"{key}.evaluate_every: found {found}, expected at most {epochs}, the {kind}'s epochs")


def _check_weights(key: str, network: TeacherSettings | StudentSettings) -> None:
    """Refuse weights whose file nothing identifies, or that are of another network than the one they are for."""
    weights = network.weights
    if weights is None:
        if network.recipe is None:
            raise UserError(f"{key}.recipe: found no value; expected {key}.weights, or a recipe that trains them")
        return
    if (weights.sha256 is None) == (weights.git_blob is None):
        found = "missing" if weights.sha256 is None else "found beside git_blob"
        raise UserError(
            f"{key}.weights.sha256: {found}; expected one of them: the file's sha256 (`sha256sum FILE`), or "
            "its hash in git (git_blob, `git hash-object FILE`)"
        )
    if weights.temperature != 1 and network.recipe is not None:
        raise UserError(
            f"{key}.weights.temperature: found {weights.temperature:g} for a network that {key}.recipe trains further, "
            "which makes its logits grow again; expected 1, or recipe: null"
        )
    is_named = weights.source.startswith(models.COLLECTIONS)
    if is_named and weights.source != network.network.partition(":")[0]:
        raise UserError(
            f"{key}.weights.source: found {weights.source!r} for {key}.network {network.network!r}; expected the "
            "network's own name"
        )
    if weights.tag is not None and not is_named:
        raise UserError(
            f"{key}.weights.tag: found with {weights.source!r}; expected with a source of "
            f"{' or '.join(f'{name}NAME' for name in models.COLLECTIONS)}"
        )


def _check_layers(suite: SuiteConfig, method: str) -> None:
    """Refuse a method whose layers one of the suite's networks does not return."""
    for i, layer in enumerate(getattr(suite.methods.get(method), "layers", ())):
        for kind, network in (("teacher", suite.teacher.network), ("student", suite.student.network)):
            if layer not in (known := models.layers(network)):
                raise UserError(
                    f"methods.{method}.layers[{i}]: found {layer!r}, but suites.{suite.name}.{kind}.network {network} "
                    f"returns {', '.join(known)}; choose one of these, or leave {method} out of run.methods"
                )


def _check_labels(suite: SuiteConfig, method: str) -> None:
    """Refuse a method that asks for an image's class where the recipe mixes or smooths labels."""
    try:
        if method in suite.methods:
            mixup.check(method, suite.methods[method], suite.student.recipe)
    except UserError as problem:
        raise UserError(f"suites.{suite.name}.{problem}") from None


def _fitting(recipe: Recipe, key: str) -> Recipe:
    """Return the recipe; UserError if its schedule does not fit its epochs."""
    try:
        recipe.check()
    except UserError as problem:
        raise UserError(f"{key}.{problem}") from None
    return recipe


def _variants(key: str, entries: Sequence[Block], params: MethodParams, recipe: Recipe) -> list[Variant]:
    """Return an ablation's lines from what each changes in the Params of ABLATED and in the student's recipe.

    Raises:
        UserError: A change is wrong or does not fit the recipe, or two lines are alike.
    """
    variants = []
    for i, entry in enumerate(entries):
        changes, own = _without(entry, "recipe"), entry.get("recipe", {})
        made = check(type(params), asdict(params) | changes, f"{key}[{i}]")
        trained = check(Recipe, merged(asdict(recipe), own), f"{key}[{i}].recipe")
        variants.append(Variant(changes | dict(_leaves(own)), made, _fitting(trained, f"{key}[{i}].recipe")))
    first = variants[0].changed
    shared = {name for name in first if all(name in v.changed and v.changed[name] == first[name] for v in variants)}
    if any(variant.changed and variant.changed.keys() <= shared for variant in variants):
        shared = set()  # of one nothing would be left, and it is not as configured
    common = {name: first[name] for name in first if name in shared}
    own = [{name: value for name, value in v.changed.items() if name not in shared} for v in variants]
    told = [replace(v, changed=changed, in_common=common) for v, changed in zip(variants, own, strict=True)]
    labels = [variant.label for variant in told]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{key}: {label!r} is listed twice, expected once")
    return told


def _leaves(block: object, inside: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of a block and of those in it by their last key, `optimizer: {name: x}` as optimizer x."""
    assert isinstance(block, dict)
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _leaves(value, key)
        else:
            yield inside if key == "name" else key, value


def _without(block: Block, key: str) -> Block:
    return {name: value for name, value in block.items() if name != key}
