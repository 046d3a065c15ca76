"""A recipe's models as a home has them. What is made of a GGUF file is an object of the home, made once; which file a
package carries stands in its ledger, so that keys are known without another download.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from reasonmill.content import file_digest
from reasonmill.errors import StoreError
from reasonmill.model.gguf import refuse_gguf, write_model
from reasonmill.model.gguf_header import CONVERSION, read_header
from reasonmill.model.runnable import refuse_unrunnable
from reasonmill.recipe.graph import Node, Recipe
from reasonmill.recipe.hub import fetch_description
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.package import downloaded_gguf
from reasonmill.recipe.reference import DirectorySource, ModelSource
from reasonmill.store.commit import disk_errors
from reasonmill.store.home import OBJECTS, Home
from reasonmill.types import Artifact, content_digest

# What records of the ledger say of bases: which file a package carries, and what an object was made of.
_CARRIES, _MADE_OF, _BY = "carries_gguf", "made_of_gguf", "conversion"
Note = Callable[[str], None]


def known_digest(model: RecipeModel, home: Home | None) -> str | None:
    """Identifies the model's content; None for a package that the home has never had."""
    file = _gguf_digest(model, home)
    if file is None:
        return None if model.package is not None else object_of(model, home) or model.digest
    return model.converted_digest(file)


def object_of(model: RecipeModel, home: Home | None) -> str | None:
    """The digest under which the home's ledger knows a model whose path is an object of the home; None for others."""
    if home is None or model.hub is not None or not model.is_as_it_lies:
        return None
    directory = model.directory
    if directory.parent != (home.path / OBJECTS).resolve() or not home.objects.exists(directory.name):
        return None
    return directory.name if home.ledger.knows(directory.name) else None


def ready_directory(model: RecipeModel, digest: str, home: Home | None) -> Path:
    """Where stages find a model of the recipe. One that is not as it lies is made when a stage needs it.

    Args:
        digest: the model's.
    """
    if model.is_as_it_lies or home is None:
        return model.gguf or model.directory
    return home.scratch(f"model-{digest}")


def found_directory(model: RecipeModel, home: Home | None) -> Path | None:
    """The directory that the model is made from, or was made into; None where there is none by now."""
    if not model.is_converted:
        return model.directory if model.directory.is_dir() else None
    file = _gguf_digest(model, home)
    digest = None if file is None or home is None else _converted(file, home)
    return None if digest is None or home is None else home.objects.location(digest)


def download_packages(node: Node, home: Home, note: Note) -> None:
    """Downloads packages that a stage reads and the home does not know, and makes models of their GGUF files."""
    for source in node.sources.values():
        if isinstance(source, ModelSource) and known_digest(source.model, home) is None:
            _make(source.model, home, note)


def refuse_models(recipe: Recipe, coming: Sequence[Node], home: Home, note: Note) -> None:
    """Looks at the models from outside that stages are going to read: what can't be run is refused without its weights.

    Raises:
        UnsupportedModel: with what stands against a model.
        RecipeError, ReasonmillError: one can't be downloaded.
    """
    for source in dict.fromkeys(source for node in coming for source in node.sources.values()):
        path = source.path if isinstance(source, DirectorySource) else None
        of_hub = isinstance(source, ModelSource) and source.model.hub is not None
        if isinstance(source, ModelSource) and not source.model.is_converted:
            if of_hub:
                note(f"looks for {source.model.hub}")
                fetch_description(source.model)
            path = source.model.directory
        if path is not None:
            refuse_unrunnable(path, trust_remote_code=recipe.trust_remote_code, has_weights=not of_hub)
    for node in coming:
        download_packages(node, home, note)


def make_ready(model: RecipeModel, home: Home, note: Note) -> None:
    """Makes the directory that stages read a model from, where that is not its own.

    Raises:
        UnsupportedModel: nothing can be made of its GGUF file.
    """
    if model.is_as_it_lies:
        return
    source = _sound(model, home, note) if model.is_converted else model.directory
    digest = known_digest(model, home)
    assert digest is not None  # it was downloaded
    model.link_as_meant(ready_directory(model, digest, home), source)


def _sound(model: RecipeModel, home: Home, note: Note) -> Path:
    """What was made of a model's GGUF file; it is made where it was not, or is damaged."""
    file = _gguf_digest(model, home)
    return _whole(file, home) or _make(model, home, note)


def _make(model: RecipeModel, home: Home, note: Note) -> Path:
    """Makes a model of a GGUF file; returns its directory."""
    if model.gguf is not None:
        return _convert(model, model.gguf, home, note)
    note(f"downloads {model.title}")
    with disk_errors(home.path), downloaded_gguf(model, home.scratch("")) as file:
        before = _gguf_digest(model, home)
        carried = file_digest(file)
        if before not in (None, carried):
            raise StoreError(
                "the package carries another GGUF file than when the home had it before",
                where=model.title,
                fix="start in a new home, or give the file that was in it as the model's path",
            )
        made = _convert(model, file, home, note)
        if before is None:
            record = Artifact(
                _package_digest(model), "base", model.title, (), content_digest(None), {_CARRIES: carried}
            )
            home.ledger.register(record)
    return made


def _convert(model: RecipeModel, file: Path, home: Home, note: Note) -> Path:
    of = file_digest(file)
    known = _whole(of, home)
    if known is not None:
        return known
    header = read_header(file)
    refuse_gguf(header)
    note(f"converts {model.title}")
    digest = home.objects.put(partial(write_model, header))
    made = {_MADE_OF: of, _BY: CONVERSION}
    home.ledger.register(Artifact(digest, "base", model.title, (), content_digest(None), made))
    return home.objects.location(digest)


def _gguf_digest(model: RecipeModel, home: Home | None) -> str | None:
    """The digest of a model's GGUF file; None where it has none, or where that is not known yet."""
    if model.gguf is not None:
        return file_digest(model.gguf)
    if model.package is None or home is None:
        return None
    wanted = _package_digest(model)
    records = (record for record in home.ledger.artifacts() if record.digest == wanted)
    return next((str(record.metrics[_CARRIES]) for record in records if _CARRIES in record.metrics), None)


def _whole(file: str | None, home: Home) -> Path | None:
    """What was made of a GGUF file; None where it was not, or where that is damaged."""
    digest = None if file is None else _converted(file, home)
    return None if digest is None else home.objects.sound_path(digest, instead="it is made of its GGUF file again")


def _package_digest(model: RecipeModel) -> str:
    return content_digest({"package": model.package, "version": model.version, "file": model.file})


def _converted(file: str, home: Home) -> str | None:
    """The digest of what was made of a GGUF file last, if it is there."""
    wanted = {_MADE_OF: file, _BY: CONVERSION}
    made = [record.digest for record in home.ledger.artifacts() if wanted.items() <= record.metrics.items()]
    return next((digest for digest in reversed(made) if home.objects.exists(digest)), None)
