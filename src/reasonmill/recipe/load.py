"""Recipe files: TOML in, checked settings out. All mistakes are reported at once, each with its place."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from reasonmill.errors import ReasonmillError, RecipeError, suggestion
from reasonmill.plugins.catalogue import Catalogue, TaskUse, Use
from reasonmill.plugins.plugin import Group, Plugin
from reasonmill.recipe.cycle import Cycle, expand
from reasonmill.recipe.deadlines import Deadlines
from reasonmill.recipe.graph import Node, Recipe
from reasonmill.recipe.hub import HubModel
from reasonmill.recipe.origin import KeyPath, Origins, key_path
from reasonmill.recipe.reference import Source, StageSource, find_source, references
from reasonmill.rewards.combination import NOT_RULES
from reasonmill.settings import Naming, marks
from reasonmill.stage import ArtifactKind, StageSettings

Model = TypeVar("Model", bound=BaseModel)

# Tables in which a recipe brings its own code.
TABLES: tuple[Group, ...] = ("tasks", "rewards", "environments", "stages")
_BARE_WORD = re.compile(r"[^\s\"'\[\]{},=#]+")
_REPEATED = re.compile(r"[^.]*-g[0-9]+\s*\.")


class _File(BaseModel):
    """What stands outside of the stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    result: str | None = Field(default=None, description="the stage whose model is the run's; the last one's if unset")
    cycle: Cycle | None = None
    models: dict[str, HubModel] = Field(default={}, description="models of the Hugging Face hub, by name")
    watchdog: Deadlines = Field(default=Deadlines(), description="deadlines of the phases of all stages")
    tasks: dict[str, TaskUse] = Field(default={}, description="the recipe's own tasks, by name")
    rewards: dict[str, Use] = Field(default={}, description="the recipe's own rewards, by name")
    environments: dict[str, Use] = Field(default={}, description="the recipe's own environments, by name")
    stages: dict[str, Use] = Field(default={}, description="the recipe's own kinds of stages, by name")
    stage: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class _Mistake:
    what: str
    where: str
    fix: str = ""


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(files("reasonmill"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        name_or_path: the name of a shipped recipe, or the path of a TOML file.
        overrides: `stage.key=value`, `cycle.key=value`, `models.name.key=value`, `watchdog.phase=value`, `seed=value`
            or a key of a table of plug-ins; the value is TOML, and a bare word is a string. A stage as it is written is
            changed in all generations, one with a generation's "-g2" in that one.

    Raises:
        RecipeError: the file, an override or a setting is wrong.
    """
    file = _find(name_or_path)
    table, origins = _parse(file)
    stages = table.get("stage")
    written = _names(stages) if isinstance(stages, list) else []
    late = [text for text in overrides if _REPEATED.match(text) and text.split(".")[0].strip() not in written]
    folder = file.absolute().parent
    recipe = _recipe(table, origins, folder, [text for text in overrides if text not in late])
    if "cycle" in table:
        expand(table, origins, recipe.nodes)
    return _recipe(table, origins, folder, late) if "cycle" in table or late else recipe


def _recipe(table: dict[str, Any], origins: Origins, folder: Path, overrides: Sequence[str]) -> Recipe:
    """Changes the table as the overrides ask, and checks it."""
    _refuse([mistake for text in overrides if (mistake := _override(table, origins, text)) is not None])
    recipe, mistakes = _validate(table, origins, folder)
    _refuse(mistakes)
    assert recipe is not None  # there are no mistakes
    return recipe


def _find(name_or_path: str) -> Path:
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = f"shipped recipes: {', '.join(shipped)}" if shipped else "name a TOML file"
    raise RecipeError(
        f"missing recipe: {name_or_path!r} is neither a shipped recipe nor a file",
        fix=" ".join(part for part in (suggestion(name_or_path, shipped), known) if part),
    )


def _parse(file: Path) -> tuple[dict[str, Any], Origins]:
    try:
        text = file.read_bytes().decode().replace("\r\n", "\n")
        return tomllib.loads(text), Origins(text, str(file))
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text", where=str(file)) from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{file}:{line.group(1)}" if line else str(file)
        raise RecipeError(f"the recipe is not valid TOML: {error}", where=place) from error


def _override(table: dict[str, Any], origins: Origins, text: str) -> _Mistake | None:
    """Changes the table as `--set` asks."""
    place = f"--set {text}"
    try:
        keys, value = _parse_override(text)
    except RecipeError as error:
        return _Mistake(error.what, place, error.fix)
    path: KeyPath = tuple(keys)
    stages = table.get("stage")
    names = _names(stages) if isinstance(stages, list) else []
    if len(keys) > 1 and keys[0] in names:
        path = ("stage", names.index(keys[0]), *keys[1:])
    elif len(keys) > 1 and keys[0] not in ("cycle", "models", "watchdog", *TABLES):
        fix = suggestion(keys[0], names)
        return _Mistake(f"the recipe has no stage {keys[0]!r}", place, fix or f"its stages: {', '.join(names)}")
    inner: Any = table
    for key in path[:-1]:
        inner = inner[key] if isinstance(key, int) else inner.setdefault(key, {})
        if not isinstance(inner, dict) and inner is not stages:
            return _Mistake(f"{key!r} is no table, so it has no key {path[-1]!r}", place)
    inner[path[-1]] = value
    origins.override(path, value, place)
    return None


def _parse_override(text: str) -> tuple[list[str], Any]:
    """The dotted keys and the value of `stage.key=value`."""
    left, equals, right = text.partition("=")
    right = right.strip()
    try:
        target: Any = tomllib.loads(f"{left} = 0") if equals and "\n" not in left else {}
    except tomllib.TOMLDecodeError:
        target = {}
    keys = []
    while isinstance(target, dict) and target:
        ((key, target),) = target.items()
        keys.append(key)
    if not keys or not right:
        raise RecipeError("the override can't be read", fix="write it as stage.key=value or seed=value")
    try:
        parsed = tomllib.loads(f"value = {right}")
        if len(parsed) == 1:
            return keys, parsed["value"]
    except tomllib.TOMLDecodeError:
        if _BARE_WORD.fullmatch(right):
            return keys, right
    raise RecipeError(
        f"{right!r} is neither a TOML value nor one word",
        fix="quote a text for TOML and for the shell: --set 'stage.key=\"some text\"'",
    )


def _validate(table: dict[str, Any], origins: Origins, folder: Path) -> tuple[Recipe | None, list[_Mistake]]:
    """The recipe, or what is wrong with it."""
    head, mistakes = _checked(_File, table, (), origins)
    entries = table.get("stage")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None, mistakes
    own: dict[Group, Mapping[str, Use]] = {}
    if head is not None:
        own = {group: getattr(head, group) for group in TABLES}
    catalogue = Catalogue(own, folder)
    wrong = _own_plugins(catalogue, origins)
    if wrong:  # what names them would be wrong for the same reason
        return None, mistakes + wrong
    names = _names(entries)
    makes: dict[str, ArtifactKind] = {}  # by the name of each stage so far whose kind is known
    nodes: list[Node] = []
    for index, entry in enumerate(entries):
        path: KeyPath = ("stage", index)
        if names[index] and names[index] in names[:index]:
            what = f"two stages are named {names[index]!r}"
            mistakes.append(_Mistake(what, origins.place((*path, "name")), "give each stage a name of its own"))
        kind, wrong = _kind(entry, path, origins, catalogue)
        mistakes += wrong
        if kind is None:
            continue
        makes[names[index]] = kind.made.MAKES
        settings, wrong = _checked(cast(type[StageSettings], kind.made.Settings), entry, path, origins, catalogue)
        mistakes += wrong
        if settings is not None and head is not None:  # without the head, references to its models would look wrong
            sources, wrong = _sources(settings, names, makes, head.models, path, origins, folder)
            mistakes += wrong
            read = _read_tasks(settings, sources, nodes)
            mistakes += _unfit_tasks(kind, settings, read, path, origins, catalogue)
            nodes.append(Node(settings, sources, kind, {**_plugins(settings, catalogue), **read}))
    for name in head.models if head is not None else ():
        if name in names:
            what = f"a stage and a model are both named {name!r}"
            mistakes.append(_Mistake(what, origins.place(("models", name)), "give each a name of its own"))
    if head is not None and head.result is not None and head.result not in names:
        fix = suggestion(head.result, names) or f"its stages: {', '.join(names)}"
        mistakes.append(_Mistake(f"the recipe has no stage {head.result!r}", origins.place(("result",)), fix))
    if mistakes or head is None:
        return None, mistakes
    return Recipe(head.name, head.seed, tuple(nodes), catalogue, head.result, head.models, head.watchdog), []


def _own_plugins(catalogue: Catalogue, origins: Origins) -> list[_Mistake]:
    """What is wrong with the recipe's own tasks, rewards, environments and kinds of stages."""
    mistakes = []
    for group, tables in catalogue.tables.items():
        for name, use in tables.items():
            path: KeyPath = (group, name)
            try:
                plugin = catalogue.plugin(group, name)
                if group != "stages":
                    _, wrong = _checked(plugin.arguments, use.arguments, path, origins)
                    mistakes += wrong
                    if wrong:
                        continue
                elif use.arguments:
                    fix = "give the stages of this kind what they need under [[stage]]"
                    place = origins.place((*path, next(iter(use.arguments))))
                    mistakes.append(_Mistake(f"a kind of stage takes no {', '.join(use.arguments)}", place, fix))
                plugin.made  # noqa: B018  # made once, and then kept
            except RecipeError as error:
                written = origins.place((*path, _key_at_fault(use, catalogue)))
                place = ", ".join(part for part in (written, error.where) if part)
                mistakes.append(_Mistake(f"{group}.{name}: {error.what}", place, error.fix))
    return mistakes


def _key_at_fault(use: Use, catalogue: Catalogue) -> str:
    """The key of a table that names what there is not, or can't be made; the code of an environment has its own."""
    if isinstance(use, TaskUse) and use.environment is not None:
        try:
            catalogue.plugin("environments", use.environment)
        except RecipeError:
            return "environment"
    return "use"


def _kind(
    entry: dict[str, Any], path: KeyPath, origins: Origins, catalogue: Catalogue
) -> tuple[Plugin | None, list[_Mistake]]:
    """The kind of a stage."""
    kind = entry.get("kind")
    if kind is None:
        fix = f"add kind = one of {', '.join(catalogue.names('stages'))}"
        return None, [_Mistake("the stage has no kind", origins.place(path), fix)]
    try:
        found = catalogue.plugin("stages", str(kind))
        found.made  # noqa: B018  # imported once, and then kept
        return found, []
    except RecipeError as error:
        return None, [_Mistake(error.what, origins.place((*path, "kind")), error.fix)]


def _plugins(settings: StageSettings, catalogue: Catalogue) -> dict[str, Plugin]:
    """The plug-ins that a stage names, by the keys that name them."""
    found = {}
    for named in marks(settings):
        if isinstance(named.mark, Naming) and not (named.mark.group == "rewards" and named.value in NOT_RULES):
            found[named.key] = catalogue.plugin(cast(Group, named.mark.group), named.value)
    return found


def _read_tasks(settings: StageSettings, sources: Mapping[str, Source], earlier: Sequence[Node]) -> dict[str, Plugin]:
    """The tasks of the rollouts that a stage reads and looks up, by keys such as "data[0]: countdown".

    A stage depends on them, too.
    """
    found: dict[str, Plugin] = {}
    nodes = {node.settings.name: node for node in earlier}  # without those whose settings are wrong
    for mention in references(settings):
        source = sources.get(mention.key)
        if mention.reference.with_tasks and isinstance(source, StageSource) and source.stage in nodes:
            plugins = nodes[source.stage].plugins.values()
            tasks = {plugin.name: plugin for plugin in plugins if plugin.group == "tasks"}
            found |= {f"{mention.key}: {name}": plugin for name, plugin in sorted(tasks.items())}
    return found


def _unfit_tasks(
    kind: Plugin,
    settings: StageSettings,
    read: Mapping[str, Plugin],
    path: KeyPath,
    origins: Origins,
    catalogue: Catalogue,
) -> list[_Mistake]:
    """What a stage says against the tasks of the rollouts that it reads, where its kind defines `check_read_tasks`."""
    check = getattr(kind.made, "check_read_tasks", None)
    names = dict.fromkeys(plugin.name for plugin in read.values())
    try:
        if check is not None:
            check(settings, [catalogue.task(name) for name in names])
    except RecipeError as error:
        return [_Mistake(error.what, origins.place(path), error.fix)]
    return []


def _names(entries: Sequence[Any]) -> list[str]:
    """The names of the stages as they are written; empty where one is missing or no text."""
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    return [name if isinstance(name, str) else "" for name in names]


def _sources(
    settings: StageSettings,
    names: Sequence[str],
    makes: Mapping[str, ArtifactKind],
    models: Mapping[str, HubModel],
    path: KeyPath,
    origins: Origins,
    folder: Path,
) -> tuple[dict[str, Source], list[_Mistake]]:
    """What each reference of a stage means.

    Args:
        names: of all stages.
        makes: what each of the stages before it makes.
    """
    index = cast(int, path[1])
    earlier = {name: makes.get(name) for name in names[:index]}
    sources, mistakes = {}, []
    for mention in references(settings):
        try:
            sources[mention.key] = find_source(mention, earlier, names[index:], models, folder)
        except RecipeError as error:
            place = origins.place((*path, *key_path(mention.key)))
            mistakes.append(_Mistake(f"{mention.key}: {error.what}", place, error.fix))
    return sources, mistakes


def _checked(
    model: type[Model],
    table: Mapping[str, Any],
    path: KeyPath,
    origins: Origins,
    catalogue: Catalogue | None = None,
) -> tuple[Model | None, list[_Mistake]]:
    """Strict validation: no unknown key, and no value is turned into another type."""
    try:
        # As JSON, because in strict mode only JSON's lists may become tuples.
        encoded = json.dumps(table, default=str)
        context = {"catalogue": catalogue}
        return model.model_validate_json(encoded, strict=True, by_alias=True, by_name=False, context=context), []
    except ValidationError as error:
        return None, [_mistake(model, detail, path, origins) for detail in error.errors()]
    except ReasonmillError as error:  # a validator of the stage's own, which says more than pydantic's errors
        return None, [_Mistake(error.what, origins.place(path), error.fix)]


def _mistake(model: type[BaseModel], detail: ErrorDetails, path: KeyPath, origins: Origins) -> _Mistake:
    location = tuple(part for part in detail["loc"] if part != "[key]")  # pydantic's word for a key of a table
    key = ".".join(str(part) for part in location)
    where = origins.place((*path, *location))
    if detail["type"] == "extra_forbidden":
        known = _keys(model, location[:-1])
        fix = suggestion(str(location[-1]), known) or (f"keys: {', '.join(known)}" if known else "remove it")
        return _Mistake(f"unknown key {key!r}", where, fix)
    if detail["type"] == "missing":
        return _Mistake(f"the key {key!r} is missing", where, f"add {location[-1]} = ...")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":  # a validator of the stage's own names the value where that helps
        return _Mistake(f"{key}: {message}" if key else message, where)
    allowed = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    given = json.dumps(detail["input"], default=str)
    got = f", got {given}" if len(given) <= 60 else ""
    return _Mistake(f"{key}: {message}{got}", where, suggestion(str(detail["input"]), allowed))


def _keys(model: Any, location: Collection[str | int]) -> list[str]:
    """The keys that the table at a location may have, as a recipe writes them; empty where that is not known."""
    for part in location:
        if get_origin(model) is dict:  # `part` is one of its names, all of which mean the same kind of table
            model = get_args(model)[1]
            continue
        fields = model.model_fields if _is_model(model) else {}
        inner = next((field.annotation for name, field in fields.items() if part in (name, field.alias)), None)
        named = get_origin(inner) is dict
        model = inner if named else next((kind for kind in (inner, *get_args(inner)) if _has_keys(kind)), None)
    if _is_model(model):
        return [field.alias or name for name, field in model.model_fields.items()]
    return [field.name for field in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else []


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _has_keys(candidate: Any) -> bool:
    return _is_model(candidate) or dataclasses.is_dataclass(candidate)


def _refuse(mistakes: Sequence[_Mistake]) -> None:
    """Raises one error for all mistakes, if there are any."""
    if len(mistakes) == 1:
        raise RecipeError(mistakes[0].what, where=mistakes[0].where, fix=mistakes[0].fix)
    if mistakes:
        listed = [f"  {m.where}: {m.what}{f' ({m.fix})' if m.fix else ''}" for m in mistakes]
        raise RecipeError("\n".join([f"the recipe has {len(mistakes)} mistakes:", *listed]))
