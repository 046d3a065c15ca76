"""Models of the Hugging Face hub in recipes: what is refused, what needs no network, and what a failure says."""

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from rich.console import Console
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from contexts import BACKEND
from reasonmill.errors import ReasonmillError, RecipeError, UnsupportedModel
from reasonmill.mill.display import LineDisplay
from reasonmill.mill.inputs import model_path
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.mill.planning import plan
from reasonmill.recipe.hub import fetch
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.reference import ModelSource, shipped_bases
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.templates import CHAT_TEMPLATES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = RecipeModel(hub="owner/policy", revision=COMMIT, parameters=1e6)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def hub_recipe(recipe_file: Path, base: Path) -> Path:
    """The recipe of the fake stages, whose first one starts from a model of the hub."""
    text = recipe_file.read_text().replace(f'from = "{base}"', 'from = "policy"')
    table = f'[models.policy]\nhub = "owner/policy"\nrevision = "{COMMIT}"\nparameters = 1e6\n'
    recipe_file.write_text(text.replace('name = "small"\n', f'name = "small"\n\n{table}'))
    return recipe_file


def put_into(cache: Path, base: Path) -> Path:
    """The hub's cache as it is after a download."""
    target = cache / "models--owner--policy" / "snapshots" / COMMIT
    shutil.copytree(base, target)
    return target


def run(path: Path, home_path: Path) -> RunResult:
    with Home.open(home_path) as home:
        return run_recipe(
            load_recipe(str(path)),
            home,
            LineDisplay(Console(file=StringIO())),
            until=None,
            backend=BACKEND,
            stop_requested=lambda: False,
        )


def test_a_stage_refers_to_a_model_of_the_recipe(hub_recipe: Path) -> None:
    recipe = load_recipe(str(hub_recipe))
    assert recipe.nodes[0].sources == {"from": ModelSource("policy", MODEL)}
    assert recipe.resolved()["models"]["policy"]["revision"] == COMMIT


def test_another_commit_is_another_model(hub_recipe: Path) -> None:
    other = "f" * 40
    recipe = load_recipe(str(hub_recipe), [f"models.policy.revision={other}"])
    assert recipe.models["policy"].revision == other
    assert recipe.models["policy"].digest != MODEL.digest
    assert MODEL.model_copy(update={"parameters": 2e6}).digest == MODEL.digest  # a size is no content


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        (COMMIT, "main", "models.policy.revision: 'main' is no commit of 40 hexadecimal digits", ""),
        ('"owner/policy"', '"policy"', "models.policy.hub: String should match pattern", ""),
        ("parameters = 1e6\n", "", "models.policy: a model of the hub needs parameters", ""),
        ("parameters =", "parameter = 1\nparameters =", "unknown key 'models.policy.parameter'",
         "did you mean 'parameters'?"),
        ("[models.policy]", "[models.first]", "the recipe has 2 mistakes", ""),
        ('from = "policy"', 'from = "polcy"', "from: missing model: 'polcy'", "did you mean 'policy'?"),
    ],
)  # fmt: skip
def test_mistakes_are_told(hub_recipe: Path, old: str, new: str, what: str, fix: str) -> None:
    text = hub_recipe.read_text()
    assert old in text
    hub_recipe.write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(hub_recipe))
    assert caught.value.what.startswith(what)
    assert caught.value.fix.startswith(fix)


def test_a_stage_and_a_model_can_not_share_a_name(hub_recipe: Path) -> None:
    hub_recipe.write_text(hub_recipe.read_text().replace("policy", "first"))
    with pytest.raises(RecipeError, match="a stage and a model are both named 'first'"):
        load_recipe(str(hub_recipe))


def test_a_plan_needs_neither_network_nor_model(
    hub_recipe: Path, base: Path, cache: Path, tmp_path: Path, stages: Any
) -> None:
    recipe = load_recipe(str(hub_recipe))
    fresh = plan(recipe, None, None)
    assert [stage.status for stage in fresh] == ["to run", "unknown", "unknown"]
    put_into(cache, base)
    made = run(hub_recipe, tmp_path / "home")
    assert made.stages[0].key == fresh[0].key
    shutil.rmtree(cache)
    with Home.open(tmp_path / "home", write=False) as home:
        assert [stage.status for stage in plan(recipe, home, None)] == ["cached"] * 3
    assert [stage.cached for stage in run(hub_recipe, tmp_path / "home").stages] == [True] * 3


def test_a_run_reads_the_model_from_the_cache_of_the_hub(
    hub_recipe: Path, base: Path, cache: Path, tmp_path: Path
) -> None:
    assert put_into(cache, base) == MODEL.directory
    result = run(hub_recipe, tmp_path / "home")
    assert (result.directory / "model" / "weights.txt").read_text() == "baseaaab"
    with Home.open(tmp_path / "home", write=False) as home:
        (parent,) = result.stages[0].artifact.parents
        assert home.ledger.artifact(parent).stage == "owner/policy"
        # A gate may leave the model of the hub in place: then its digest is all that a stage knows of it.
        assert model_path(home, MODEL.digest, load_recipe(str(hub_recipe))) == MODEL.directory


def test_a_model_that_can_not_be_had_stops_the_run_before_the_stage(
    hub_recipe: Path, cache: Path, tmp_path: Path, stages: Any
) -> None:
    with pytest.raises(ReasonmillError, match="the model can't be downloaded") as caught:
        run(hub_recipe, tmp_path / "home")
    assert caught.value.where == f"owner/policy at {COMMIT}"
    assert stages.calls == []


@pytest.fixture
def refusing_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that refuses every request with the error codes in the list, the last one for good."""
    codes = ["RepoNotFound"]

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", codes[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield codes
    server.shutdown()
    server.server_close()


class ServingHub:
    """A hub on this machine with one repository at one commit, and what was asked of it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.read = files, list[str]()
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                name = self.path.partition(f"/resolve/{COMMIT}/")[2]
                if name:
                    held = hub.files[name]
                    hub.read += [name] if body else []
                elif "/tree/" in self.path:
                    held = json.dumps([entry(file, held) for file, held in hub.files.items()]).encode()
                else:
                    siblings = [{"rfilename": file} for file in hub.files]
                    held = json.dumps({"id": "owner/policy", "sha": COMMIT, "siblings": siblings}).encode()
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(held).hexdigest()}"')
                self.send_header("Content-Length", str(len(held)))
                self.end_headers()
                if body:
                    self.wfile.write(held)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def entry(file: str, held: bytes) -> dict[str, Any]:
    return {"type": "file", "path": file, "size": len(held), "oid": hashlib.sha1(held).hexdigest()}


@pytest.fixture
def serving_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingHub]:
    base = shipped_bases()["tiny-base-weak"]
    hub = ServingHub({file.name: file.read_bytes() for file in base.iterdir()})
    address = f"http://127.0.0.1:{hub.server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_of_weights_in_several_forms_one_is_downloaded(serving_hub: ServingHub) -> None:
    whole = serving_hub.files.pop("model.safetensors")
    part, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    other = {"pytorch_model.bin": b"x", "model.onnx": b"x", "original/consolidated.00.pth": b"x", "LICENSE": b"free"}
    serving_hub.files |= {part: whole, index: json.dumps({"weight_map": {"x": part}}).encode(), **other}
    fetch(MODEL)
    assert sorted(serving_hub.read) == sorted(serving_hub.files.keys() - (other.keys() - {"LICENSE"}))
    assert (MODEL.directory / part).read_bytes() == whole


def test_only_a_pickle_of_weights_is_downloaded_if_there_is_nothing_else(serving_hub: ServingHub) -> None:
    serving_hub.files["pytorch_model.bin"] = serving_hub.files.pop("model.safetensors")
    fetch(MODEL)
    assert "pytorch_model.bin" in serving_hub.read


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "mamba"}, "run MambaForCausalLM: it"),
        ({"model_type": "unheard-of"}, "its architecture 'unheard-of' is not one that transformers"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}, r"code that comes with it: own\.py"),
        (None, "the model has no tokenizer"),
    ],
)
def test_what_can_not_be_run_is_refused_before_weights_are_downloaded_or_anything_is_sampled(
    hub_recipe: Path, serving_hub: ServingHub, tmp_path: Path, stages: Any, changed: dict[str, Any] | None, said: str
) -> None:
    if changed is None:
        serving_hub.files = {name: held for name, held in serving_hub.files.items() if "token" not in name}
    else:
        config = json.loads(serving_hub.files["config.json"])
        serving_hub.files["config.json"] = json.dumps({**config, **changed}).encode()
    # The first stage starts from a directory, and only the last one reads the model of the hub.
    base = hub_recipe.parent / "base"
    text = hub_recipe.read_text().replace('from = "policy"', f'from = "{base}"')
    hub_recipe.write_text(text.replace('from = "second"', 'from = "policy"'))
    with pytest.raises(UnsupportedModel, match=said):
        run(hub_recipe, tmp_path / "home")
    assert stages.calls == []
    assert "config.json" in serving_hub.read
    assert "model.safetensors" not in serving_hub.read


def test_a_package_is_named_with_its_version_and_needs_the_extra(
    hub_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = hub_recipe.read_text()
    named = text.replace(f'hub = "owner/policy"\nrevision = "{COMMIT}"', 'package = "some-model"\nversion = "1.2"')
    monkeypatch.setitem(sys.modules, "gguf", None)
    for changed, said in (
        (named, r"needs the package gguf, which is not installed"),
        (named.replace('version = "1.2"', ""), "a model in a package needs version"),
        (named.replace('"1.2"', '">=1"'), r"models\.policy\.version: String should match pattern"),
        (named.replace('"some-model"', '"-r x"'), r"models\.policy\.package: String should match pattern"),
        (named.replace("version", 'base = "b"\nversion'), "base has no effect on a model in a package"),
        (text.replace("revision", 'file = "x"\nrevision'), "file has no effect on a model of the hub"),
    ):
        hub_recipe.write_text(changed)
        with pytest.raises(RecipeError, match=said) as caught:
            load_recipe(str(hub_recipe))
    hub_recipe.write_text(named)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(hub_recipe))
    assert caught.value.fix == "pip install 'reasonmill[gguf]'"


@pytest.mark.parametrize(
    ("code", "what"), [("RepoNotFound", "the hub has no such repository"), ("RevisionNotFound", "has no such commit")]
)
def test_what_the_hub_does_not_have_is_a_mistake_of_the_recipe(refusing_hub: list[str], code: str, what: str) -> None:
    refusing_hub[0] = code
    with pytest.raises(RecipeError, match=what) as caught:
        fetch(MODEL)
    assert caught.value.where == f"owner/policy at {COMMIT}"


# A template of the recipe's own

TRAINED = """name = "templated"

[models.policy]
hub = "owner/policy"
revision = "{commit}"
parameters = 1e6

[[stage]]
name = "zero"
kind = "rl"
from = "policy"
steps = 1
problems_per_step = 2
group_size = 2
tasks = {{ countdown-3 = 1.0 }}
rewards = {{ accuracy = 1.0, format = 1.0 }}
schedule = {{ peak = 1e-6 }}
sampling = {{ max_tokens = 4 }}
"""


def test_a_model_is_trained_with_the_template_of_the_recipe(cache: Path, tmp_path: Path) -> None:
    snapshot = put_into(cache, shipped_bases()["tiny-base"])
    before = {file.name: file.read_bytes() for file in snapshot.iterdir()}
    path = tmp_path / "templated.toml"
    path.write_text(TRAINED.format(commit=COMMIT))
    (plain,) = plan(load_recipe(str(path)), None, None)
    path.write_text(path.read_text().replace("parameters", 'template = "r1-zero"\nparameters'))
    (templated,) = plan(load_recipe(str(path)), None, None)
    assert templated.key != plain.key

    result = run(path, tmp_path / "home")
    assert result.stages[0].key == templated.key
    saved = AutoTokenizer.from_pretrained(result.directory / "model")
    assert saved.chat_template == CHAT_TEMPLATES["r1-zero"]
    with Home.open(tmp_path / "home", write=False) as home:
        (group, _) = read_groups(home.objects.path(home.ledger.step_groups(templated.key, 0) or "") / GROUPS_FILE)
        prompt = saved.decode(group.rollouts[0].prompt_tokens)
    assert prompt.endswith(f"</answer>. User: {group.problem.messages[0].content}. Assistant:")
    assert {file.name: file.read_bytes() for file in snapshot.iterdir()} == before


def test_the_path_of_a_model_is_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    shutil.copytree(shipped_bases()["tiny-base"], there / "my-model")
    here.mkdir()
    of_hub = f'hub = "owner/policy"\nrevision = "{COMMIT}"\nparameters = 1e6\n'
    (there / "own.toml").write_text(TRAINED.format(commit=COMMIT).replace(of_hub, 'path = "./my-model"\n'))
    monkeypatch.chdir(here)
    assert load_recipe(str(there / "own.toml")).models["policy"].directory == there / "my-model"
    shutil.move(there / "my-model", here / "my-model")
    with pytest.raises(RecipeError) as caught:
        plan(load_recipe(str(there / "own.toml")), None, None)
    assert f"looked for at {there / 'my-model'}, beside the recipe, and not at {here / 'my-model'}" in caught.value.fix


def test_a_template_is_content_and_one_that_nobody_knows_is_refused(hub_recipe: Path) -> None:
    templated = load_recipe(str(hub_recipe), ["models.policy.template=r1-zero"]).models["policy"]
    assert templated.digest != MODEL.digest
    with pytest.raises(RecipeError, match=r"models.policy.template: 'r1' is no template: write 'r1-zero', or the path"):
        load_recipe(str(hub_recipe), ["models.policy.template=r1"])


def test_a_gate_may_leave_a_model_with_a_template_in_place(
    hub_recipe: Path, base: Path, cache: Path, tmp_path: Path
) -> None:
    put_into(cache, base)
    recipe = load_recipe(str(hub_recipe), ["models.policy.template=r1-zero"])
    model = recipe.models["policy"]
    with Home.open(tmp_path / "home") as home:
        directory = model_path(home, model.digest, recipe)
        model.link_as_meant(directory, model.directory)
        assert (directory / "weights.txt").read_text() == "base"
        assert (directory / "chat_template.jinja").read_text() == CHAT_TEMPLATES["r1-zero"]


def test_a_template_begins_as_the_models_tokenizer_begins_a_text(hub_recipe: Path, cache: Path, tmp_path: Path) -> None:
    """Some put a token before every text, others have one and never use it."""
    model = load_recipe(str(hub_recipe), ["models.policy.template=r1-zero"]).models["policy"]
    snapshot = put_into(cache, shipped_bases()["tiny-base"])
    tokenizer = AutoTokenizer.from_pretrained(snapshot)
    tokenizer.bos_token = "<|user|>"
    for processor, beginning in (("$A", ""), ("<|user|> $A", "<|user|>"), ("<|user|> $A <|end|>", "<|user|>")):
        used = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in ("<|user|>", "<|end|>") if mark in processor]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=processor, special_tokens=used)
        tokenizer.save_pretrained(snapshot)
        model.link_as_meant(tmp_path / "model", model.directory)
        assert (tmp_path / "model" / "chat_template.jinja").read_text() == beginning + CHAT_TEMPLATES["r1-zero"]
