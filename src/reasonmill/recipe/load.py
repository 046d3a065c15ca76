"""Recipe files: TOML in, checked settings out. All mistakes are reported at once, each with its place."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from reasonmill.errors import ReasonmillError, RecipeError, suggestion
from reasonmill.plugins.catalogue import Catalogue, DataUse, RewardUse, TaskUse, Use, rows_of
from reasonmill.plugins.plugin import Group, Plugin
from reasonmill.recipe.cycle import Cycle, expand
from reasonmill.recipe.deadlines import Deadlines
from reasonmill.recipe.graph import Node, Recipe, no_stage
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.origin import KeyPath, Origins, key_path
from reasonmill.recipe.overrides import TABLES, override, stage_names
from reasonmill.recipe.reference import Source, StageSource, find_source, references
from reasonmill.rewards.combination import NOT_RULES
from reasonmill.settings import Naming, Real, marks
from reasonmill.stage import ArtifactKind, StageSettings
from reasonmill.types import held_out

Model = TypeVar("Model", bound=BaseModel)

_REPEATED = re.compile(r"[^.]*-g[0-9]+\s*\.")


class RecipeFile(BaseModel):
    """What stands outside of the stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    result: str | None = Field(default=None, description="the stage whose model is the run's; the last one's if unset")
    trust_remote_code: bool = Field(default=False, description="whether code that comes with models may run")
    price_per_hour: Real | None = Field(default=None, ge=0, description="what an hour of one device costs")
    cycle: Cycle | None = None
    models: dict[str, RecipeModel] = Field(default={}, description="models of the recipe, by name")
    watchdog: Deadlines = Field(default=Deadlines(), description="deadlines of the phases of all stages")
    data: dict[str, DataUse] = Field(default={}, description="the recipe's data, by name")
    tasks: dict[str, TaskUse] = Field(default={}, description="the recipe's own tasks, by name")
    rewards: dict[str, RewardUse] = Field(default={}, description="the recipe's own rewards, by name")
    environments: dict[str, Use] = Field(default={}, description="the recipe's own environments, by name")
    stages: dict[str, Use] = Field(default={}, description="the recipe's own kinds of stages, by name")
    stage: list[dict[str, Any]] = Field(min_length=1)


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
    file = find_recipe(name_or_path)
    table, origins = parse(file)
    written = stage_names(table)
    late = [text for text in overrides if _REPEATED.match(text) and text.split(".")[0].strip() not in written]
    folder = file.absolute().parent
    recipe = checked(table, origins, folder, [text for text in overrides if text not in late])
    if "cycle" in table:
        expand(table, origins, recipe.nodes)
    return checked(table, origins, folder, late) if "cycle" in table or late else recipe


def checked(table: dict[str, Any], origins: Origins, folder: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a table, which is first changed as the overrides ask.

    Args:
        folder: what its paths are relative to.

    Raises:
        RecipeError: an override or a setting is wrong.
    """
    mistakes: list[RecipeError] = []
    for text in overrides:
        with _gathered(mistakes, f"--set {text}"):
            override(table, origins, text)
    _refuse(mistakes)
    return _Check(table, origins, folder).recipe()


@contextmanager
def _gathered(mistakes: list[RecipeError], where: str, key: str = "") -> Iterator[None]:
    """An error in the block is one of the mistakes, of a key at this place."""
    try:
        yield
    except RecipeError as error:
        what = f"{key}: {error.what}" if key else error.what
        mistakes.append(RecipeError(what, where=where, fix=error.fix))


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe, or the one that a path names.

    Raises:
        RecipeError: there is none.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = f"shipped recipes: {', '.join(shipped)}"
    raise RecipeError(
        f"missing recipe: {name_or_path!r} is neither a shipped recipe nor a file",
        fix=" ".join(part for part in (suggestion(name_or_path, shipped), known) if part),
    )


def parse(file: Path) -> tuple[dict[str, Any], Origins]:
    """What a recipe's file says, and where.

    Raises:
        RecipeError: it is no TOML.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        return tomllib.loads(text), Origins(text, str(file))
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text", where=str(file)) from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{file}:{line.group(1)}" if line else str(file)
        raise RecipeError(f"the recipe is not valid TOML: {error}", where=place) from error


class _Check:
    """One look at all that a recipe's tables say, which gathers what is wrong with them."""

    def __init__(self, table: dict[str, Any], origins: Origins, folder: Path) -> None:
        self._table = table
        self._origins = origins
        self._folder = folder
        self._mistakes: list[RecipeError] = []

    def recipe(self) -> Recipe:
        """The recipe.

        Raises:
            RecipeError: one for all mistakes.
        """
        self._look_for_wide_integers(self._table, ())
        head = self._settings(RecipeFile, self._table, ())
        entries = self._table.get("stage")
        nodes: list[Node] = []
        catalogue = Catalogue({group: getattr(head, group) for group in TABLES if head is not None}, self._folder)
        # Where plug-ins are wrong, what names them would be wrong for the same reason.
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) and self._has_own(catalogue):
            names = stage_names(self._table)
            nodes = self._nodes(entries, names, head, catalogue)
            for table in ("models", "data") if head is not None else ():
                for name in getattr(head, table):
                    if name in names:
                        one = "model" if table == "models" else "table of data"
                        what = f"a stage and a {one} are both named {name!r}"
                        self._add(what, (table, name), "give each a name of its own")
            for name, model in head.models.items() if head is not None else ():
                with self._gathering(("models", name), f"models.{name}"):
                    model.refuse()
            if head is not None and head.result is not None and head.result not in names:
                with self._gathering(("result",)):
                    raise no_stage(head.result, names)
        _refuse(self._mistakes)
        assert head is not None  # there are no mistakes
        return Recipe(
            head.name,
            head.seed,
            tuple(nodes),
            catalogue,
            head.result,
            head.models,
            head.watchdog,
            *(head.trust_remote_code, head.price_per_hour),
        )

    def _add(self, what: str, path: KeyPath, fix: str = "") -> None:
        self._mistakes.append(RecipeError(what, where=self._origins.place(path), fix=fix))

    def _look_for_wide_integers(self, value: Any, path: KeyPath) -> None:
        """TOML's integers have 64 bits; Python would take longer ones, and what they are given to would not."""
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                self._look_for_wide_integers(inner, (*path, key))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            self._add(f"{'.'.join(map(str, path))}: {value} is no integer of 64 bits", path, "write a smaller one")

    def _gathering(self, path: KeyPath, key: str = "") -> AbstractContextManager[None]:
        return _gathered(self._mistakes, self._origins.place(path), key)

    def _has_own(self, catalogue: Catalogue) -> bool:
        """Whether all of the recipe's own tasks, rewards, environments and kinds of stages can be made."""
        before = len(self._mistakes)
        wrong: set[tuple[Group, str]] = set()
        for group, tables in catalogue.tables.items():
            for name, use in tables.items():
                so_far = len(self._mistakes)
                path: KeyPath = (group, name)
                key = "use"  # of the table, whose value is at fault
                try:
                    plugin = catalogue.plugin(group, name)
                    if group == "stages" and use.arguments:
                        fix = "give the stages of this kind what they need under [[stage]]"
                        given = ", ".join(use.arguments)
                        self._add(f"a kind of stage takes no {given}", (*path, next(iter(use.arguments))), fix)
                    elif self._settings(plugin.arguments, use.arguments, path) is not None:
                        for named, part in plugin.named.items():
                            key = named
                            catalogue.part(*part)
                        key = "use"
                        if wrong.isdisjoint(plugin.named.values()):  # else it would be wrong for the same reason
                            plugin.made  # noqa: B018  # made once, and then kept
                except RecipeError as error:
                    written = self._origins.place((*path, key))
                    place = ", ".join(part for part in (written, error.where) if part)
                    what = f"{group}.{name}: {error.what}"
                    self._mistakes.append(RecipeError(what, where=place, fix=error.fix))
                if len(self._mistakes) > so_far:
                    wrong.add((group, name))
        return len(self._mistakes) == before

    def _nodes(
        self, entries: Sequence[dict[str, Any]], names: Sequence[str], head: RecipeFile | None, catalogue: Catalogue
    ) -> list[Node]:
        """The stages whose settings are right, with all that they refer to."""
        makes: dict[str, ArtifactKind] = {}  # by the name of each stage so far whose kind is known
        nodes: list[Node] = []
        for index, (entry, name) in enumerate(zip(entries, names, strict=True)):
            path: KeyPath = ("stage", index)
            if name and name in names[:index]:
                self._add(f"two stages are named {name!r}", (*path, "name"), "give each stage a name of its own")
            kind = self._kind(entry, path, catalogue)
            if kind is None:
                continue
            makes[name] = kind.made.MAKES
            settings = self._settings(cast(type[StageSettings], kind.made.Settings), entry, path, catalogue)
            if settings is None or head is None:  # without the head, references to its models would look wrong
                continue
            earlier = {other: makes.get(other) for other in names[:index]}
            sources: dict[str, Source] = {}
            data: dict[str, Plugin] = {}
            for mention in references(settings):
                with self._gathering((*path, *key_path(mention.key)), mention.key):
                    if mention.mark.rows and mention.value in head.data:
                        data[mention.key] = catalogue.plugin("data", mention.value)
                        rows_of(data[mention.key].made, mention.value, mention.mark.rows)
                        continue
                    found = find_source(mention, earlier, names[index:], head.models, self._folder, head.data)
                    _require_kept(found, nodes)
                    sources[mention.key] = found
                    if mention.mark.to_train and isinstance(found, StageSource):
                        _refuse_held_out(found.stage, nodes)
            read = _read_tasks(settings, sources, nodes)
            check_read_tasks = getattr(kind.made, "check_read_tasks", None)
            if check_read_tasks is not None:
                with self._gathering(path):
                    tasks = dict.fromkeys(plugin.name for plugin in read.values())
                    check_read_tasks(settings, [catalogue.task(task) for task in tasks])
            nodes.append(Node(settings, sources, kind, {**_plugins(settings, catalogue), **read, **data}))
        return nodes

    def _kind(self, entry: dict[str, Any], path: KeyPath, catalogue: Catalogue) -> Plugin | None:
        """The kind of a stage, if it can be imported."""
        if entry.get("kind") is None:
            self._add("the stage has no kind", path, f"add kind = one of {', '.join(catalogue.names('stages'))}")
            return None
        with self._gathering((*path, "kind")):
            kind = catalogue.plugin("stages", str(entry["kind"]))
            kind.made  # noqa: B018  # imported once, and then kept
            return kind
        return None

    def _settings(
        self, model: type[Model], table: Mapping[str, Any], path: KeyPath, catalogue: Catalogue | None = None
    ) -> Model | None:
        """Strict validation: no unknown key, and no value is turned into another type."""
        try:
            # As JSON, because in strict mode only JSON's lists may become tuples.
            encoded = json.dumps(table, default=str)
            context = {"catalogue": catalogue, "folder": self._folder}
            return model.model_validate_json(encoded, strict=True, by_alias=True, by_name=False, context=context)
        except ValidationError as error:
            for detail in error.errors():
                location = tuple(part for part in detail["loc"] if part != "[key]")  # pydantic's word for a table's key
                what, fix = _said(model, detail, location)
                self._add(what, (*path, *location), fix)
        except ReasonmillError as error:  # a validator of the stage's own, which says more than pydantic's errors
            self._add(error.what, path, error.fix)
        return None


def _plugins(settings: StageSettings, catalogue: Catalogue) -> dict[str, Plugin]:
    """The plug-ins that a stage names, by the keys that name them."""
    found = {}
    for named in marks(settings, Naming):
        if not (named.mark.group == "rewards" and named.value in NOT_RULES):
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
        if mention.mark.with_tasks and isinstance(source, StageSource) and source.stage in nodes:
            plugins = nodes[source.stage].plugins.values()
            tasks = {plugin.name: plugin for plugin in plugins if plugin.group == "tasks"}
            found |= {f"{mention.key}: {name}": plugin for name, plugin in sorted(tasks.items())}
    return found


def _require_kept(source: Source, earlier: Sequence[Node]) -> None:
    """Checks that a model that a stage keeps on its way is one that it does keep.

    Raises:
        RecipeError: it is not.
    """
    if not isinstance(source, StageSource) or source.step is None:
        return
    for node in (node for node in earlier if node.settings.name == source.stage):
        kept = node.settings.kept_steps()
        if source.step not in kept:
            some = f"it keeps them after {', '.join(map(str, kept[:4]))}{', ...' if len(kept) > 4 else ''} steps"
            raise RecipeError(
                f"stage {source.stage!r} keeps no model after {source.step} steps",
                fix=some if kept else f"set models_every of stage {source.stage!r}, if it is one that can: rl, distill",
            )


def _refuse_held_out(stage: str, earlier: Sequence[Node]) -> None:
    """Refuses to train on what a stage draws from a held-out split.

    Raises:
        RecipeError: it has a setting `split`, which is a held-out one.
    """
    splits = [getattr(node.settings, "split", None) for node in earlier if node.settings.name == stage]
    if any(held_out(split) for split in splits):
        raise RecipeError(
            f"stage {stage!r} draws from the held-out split {splits[0]!r}, and nothing of it is trained on",
            fix=f'let a stage with split = "train" draw what is trained on: {stage!r} is for looking at',
        )


def _said(model: type[BaseModel], detail: ErrorDetails, location: KeyPath) -> tuple[str, str]:
    """What is wrong with the value at a location, and how to fix it."""
    key = ".".join(map(str, location))
    if detail["type"] == "extra_forbidden":
        known = _keys(model, location[:-1])
        fix = suggestion(str(location[-1]), known) or (f"keys: {', '.join(known)}" if known else "remove it")
        return f"unknown key {key!r}", fix
    if detail["type"] == "missing":
        return f"the key {key!r} is missing", f"add {location[-1]} = ..."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":  # a validator of the stage's own names the value where that helps
        return f"{key}: {message}" if key else message, ""
    allowed = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    given = json.dumps(detail["input"], default=str)
    got = f", got {given}" if len(given) <= 60 else ""
    return f"{key}: {message}{got}", suggestion(str(detail["input"]), allowed)


def _keys(model: Any, location: Collection[str | int]) -> list[str]:
    """The keys that the table at a location may have, as a recipe writes them; empty where that is not known."""
    for part in location:
        if get_origin(model) is dict:  # `part` is one of its names, all of which mean the same kind of table
            model = get_args(model)[1]
            continue
        fields = model.model_fields if _is_model(model) else {}
        inner = next((field.annotation for name, field in fields.items() if part in (name, field.alias)), None)
        named = get_origin(inner) is dict
        model = inner if named else next((kind for kind in (inner, *get_args(inner)) if _is_model(kind)), None)
    return [field.alias or name for name, field in model.model_fields.items()] if _is_model(model) else []


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _refuse(mistakes: Sequence[RecipeError]) -> None:
    """Raises one error for all mistakes, if there are any."""
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        listed = [f"  {m.where}: {m.what}{f' ({m.fix})' if m.fix else ''}" for m in mistakes]
        raise RecipeError("\n".join([f"the recipe has {len(mistakes)} mistakes:", *listed]))
