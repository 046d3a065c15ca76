"""How many tokens the stages of a recipe work through.

The settings bound the length of a response, but how long responses will be is not known: so everything is counted under
a guess. Without a measurement, what is likely is meant to be right within a factor of two or three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, comb
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from reasonmill.algo.packing import group_positions
from reasonmill.data.items import NO_TASK
from reasonmill.placement import SLOTS
from reasonmill.plugins.catalogue import rows_of
from reasonmill.plugins.sources import PACKAGE
from reasonmill.recipe.reference import StageSource, references
from reasonmill.types import Artifact, Message, held_out

if TYPE_CHECKING:
    from reasonmill.learn.settings import LoraSettings
    from reasonmill.recipe.graph import Node
    from reasonmill.stage import StageSettings
    from reasonmill.stages import collect, curate, distill, evaluate, reward_model, rl, sft
    from reasonmill.world import pretrain

# Tokens of a prompt: 9 to 19 in the tiny world, some 100 more with R1-Zero's template. Small beside long responses.
PROMPT_TOKENS = 20
# Tokens of a general conversation of the tiny world, and of a document of its corpus (125 million in 4.1 million).
GENERAL_TOKENS = 30
DOCUMENT_TOKENS = 30.5
# Of English and code, in the tokenizers of today's models.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Guess:
    """What the settings leave open.

    Attributes:
        response_share: the mean length of a response as a share of its limit.
        kept_share: the share of samples that curation keeps: those that are right, well-formed and readable.
        refilled_share: the share of the problems that a step may draw in the place of flat groups that it does draw.
        longer_share: how far texts of which the mean is known are longer in a step, from their mean on to their limit.
        prompt_tokens: the mean length of a prompt.
    """

    response_share: float
    kept_share: float
    refilled_share: float
    longer_share: float
    prompt_tokens: float = PROMPT_TOKENS

    def response(self, max_tokens: int) -> float:
        """Tokens of a response."""
        return self.response_share * max_tokens

    def text(self, max_tokens: int) -> float:
        """Tokens of a prompt and its response."""
        return self.prompt_tokens + self.response(max_tokens)

    def given(self, mean: float, limit: int) -> float:
        """Tokens of each text of a step, of texts that are given."""
        return mean + self.longer_share * (max(limit, mean) - mean)


# Responses had 0.1 of their limit at r1-zero-tiny's beginning and 0.4 at its end; R1-Zero's 0.4 at its end (14k of
# 32k); R1's 800k samples 0.16.
LIKELY = Guess(response_share=0.25, kept_share=0.5, refilled_share=0.25, longer_share=0.0)
AT_MOST = Guess(response_share=1.0, kept_share=1.0, refilled_share=1.0, longer_share=1.0)


@dataclass(frozen=True)
class Data:
    """What a stage hands to later ones: texts with their prompts. `problems` and `samples` are those of rollouts."""

    texts: float
    tokens_each: float
    problems: Mapping[str, int] = field(default_factory=dict)
    samples: int = 1


@dataclass(frozen=True)
class Workload:
    """What a stage does, in tokens.

    Attributes:
        sampled: tokens that the model draws, one after the other in each sequence.
        prompts: tokens of prompts, each of which is read once before it is continued.
        trained: tokens of forward and backward passes.
        scored: tokens of forward passes alone, by the key of the settings that names the model which reads them.
        rescored: tokens of forward passes of the trained model that fall away where it and its sampler are in fp32.
        served: tokens that a server reads and writes, a teacher's or a judge's.
        responses: sequences that are sampled.
        calls: how many times a sampler is asked; each time it ends all sequences before it is asked again.
        updates: steps of the optimizer.
        text: tokens of a text that is trained on, on average.
        sequences: how many sequences are sampled together, at most.
        longest: tokens of the longest sequence.
        row: positions of one forward pass of training; 0 if nothing is trained.
        copies: models beside the one that is worked on, by the key that names each; "from" is a frozen copy of it.
        lora: the adapter that is trained in place of the weights; None where these are.
        recompute: whether activations of layers are computed once more in the backward pass, and none kept.
        makes: the data that the stage makes; None for models, verdicts and what is not known.
    """

    sampled: float = 0.0
    prompts: float = 0.0
    trained: float = 0.0
    scored: Mapping[str, float] = field(default_factory=dict)
    rescored: float = 0.0
    served: float = 0.0
    responses: float = 0.0
    calls: int = 0
    updates: int = 0
    text: float = 0.0
    sequences: int = 0
    longest: int = 0
    row: int = 0
    copies: tuple[str, ...] = ()
    lora: LoraSettings | None = None
    recompute: bool = False
    makes: Data | None = None

    @property
    def tokens(self) -> float:
        """All tokens that are sampled, read, trained on or scored, here or by a server."""
        return sum(self.scored.values(), self.sampled + self.prompts + self.trained + self.served)


@dataclass(frozen=True)
class Upstream:
    """What a stage begins with.

    Attributes:
        data: what it reads, by the key of its settings.
        general_share: the share of tasks that reward models judge.
    """

    guess: Guess
    data: Mapping[str, Data] = field(default_factory=dict)
    general_share: float = 0.0

    def of_list(self, length: int) -> list[Data]:
        """What the entries of the settings' `data` name."""
        return [self.data[f"data[{place}]"] for place in range(length)]


def workloads(
    nodes: Sequence[Node],
    artifacts: Mapping[str, Artifact],
    guess: Guess,
    own: Mapping[str, Guess] = MappingProxyType({}),
) -> dict[str, Workload | None]:
    """What each stage does, by its name; None where that is not known.

    Args:
        nodes: the stages of a recipe.
        artifacts: what finished stages made, by their names.
        own: what takes the place of the guess where a stage's responses were measured, by its name.
    """
    made: dict[str, Data] = {}
    found: dict[str, Workload | None] = {}
    for node in nodes:
        name = node.settings.name
        read = {key: source.stage for key, source in node.sources.items() if isinstance(source, StageSource)}
        data = {key: made[earlier] for key, earlier in read.items() if earlier in made}
        upstream = Upstream(own.get(name, guess), data | _of_tables(node), _general_share(node))
        work = found[name] = workload(node.settings, upstream, artifacts.get(name))
        if work is not None and work.makes is not None:
            made[name] = work.makes
    return found


def _of_tables(node: Node) -> dict[str, Data]:
    """What a stage learns from tables of data, by the keys of its settings that name them."""
    found = {}
    for mention in references(node.settings):
        plugin = node.plugins.get(mention.key)
        if plugin is None or not mention.mark.rows:
            continue
        rows = rows_of(plugin.made, plugin.name, mention.mark.rows)
        if mention.mark.rows == "conversations":
            said = [[*row.messages, Message("assistant", row.response)] for row in rows if not held_out(row.split)]
            found[mention.key] = Data(len(said), _tokens_each(said))
        else:
            groups = [group for group in rows if not held_out(group.problem.split)]
            said = [
                [*group.problem.messages, Message("assistant", rollout.completion.text)]
                for group in groups
                for rollout in group.rollouts
            ]
            samples = round(len(said) / max(len(groups), 1))
            found[mention.key] = Data(len(said), _tokens_each(said), {NO_TASK: len(groups)}, samples)
    return found


def _tokens_each(texts: Sequence[Sequence[Message]]) -> float:
    """The tokens of a text with its prompt, by its length."""
    characters = sum(len(message.content) for messages in texts for message in messages)
    return characters / CHARACTERS_PER_TOKEN / max(len(texts), 1)


def _general_share(node: Node) -> float:
    """The share of general tasks, which reward models judge, among the tasks that a stage draws problems of."""
    shares: Mapping[str, float] = getattr(node.settings, "tasks", {})
    tasks = {plugin.name: plugin.made for plugin in node.plugins.values() if plugin.group == "tasks"}
    # In a user's kind of stage, `tasks` may mean anything.
    if _estimator(node.settings) is None or not isinstance(shares, Mapping) or not shares:
        return 0.0
    return sum(share for name, share in shares.items() if tasks[name].domain != "reasoning") / sum(shares.values())


def workload(settings: StageSettings, upstream: Upstream, artifact: Artifact | None = None) -> Workload | None:
    """What a stage does; None where its kind or the data that it reads is not known.

    Args:
        artifact: what the stage made, if it is finished: what that counts is no longer guessed.
    """
    estimated = _estimator(settings)
    try:
        found = estimated(settings, upstream) if estimated else None
    except KeyError:  # data of a stage that is not known
        return None
    if found is None or found.makes is None or artifact is None:
        return found
    counted = artifact.metrics.get("conversations")
    return found if counted is None else replace(found, makes=replace(found.makes, texts=counted))


def _estimator(settings: StageSettings) -> Callable[[Any, Upstream], Workload] | None:
    """What estimates a kind of stage of this package; None for a user's, which may bear the name of one of these."""
    return WORKLOADS.get(settings.kind) if type(settings).__module__.partition(".")[0] == PACKAGE else None


def _pretrain(settings: pretrain.Settings, upstream: Upstream) -> Workload:
    trained = settings.steps * settings.documents_per_step * DOCUMENT_TOKENS
    return Workload(trained=trained, updates=settings.steps, text=DOCUMENT_TOKENS, row=settings.tokens_per_batch)


def _sft(settings: sft.Settings, upstream: Upstream) -> Workload:
    data = upstream.of_list(len(settings.data))
    trained = sum(read.texts * min(read.tokens_each, settings.max_tokens) for read in data) * settings.epochs
    texts = sum(read.texts for read in data)
    text = trained / settings.epochs / max(texts, 1)
    longest = upstream.guess.given(text, settings.max_tokens)
    return Workload(
        trained=trained,
        updates=settings.epochs * ceil(texts / settings.conversations_per_step),
        text=text,
        row=_row(settings.tokens_per_batch, min(settings.conversations_per_step, texts), longest),
        lora=settings.lora,
        recompute=settings.recompute,
    )


def _rl(settings: rl.Settings, upstream: Upstream) -> Workload:
    """Where groups whose rewards are all alike are left out, that is not taken off: nobody knows how many."""
    judged = upstream.general_share * settings.preference_share
    reference = {"from": 1.0} if settings.loss.kl_coefficient > 0 else {}
    readers = {**reference, **{f"reward_models.{name}": judged for name in settings.reward_models}}
    work = _on_policy(settings, upstream.guess, readers)
    more = upstream.guess.refilled_share * (settings.most_problems / settings.problems_per_step - 1)
    refilled = settings.steps * settings.problems_per_step * settings.group_size * more
    sampled = work.sampled + refilled * upstream.guess.response(settings.sampling.max_tokens)
    work = replace(work, sampled=sampled, responses=work.responses + refilled)
    if settings.old_policy == "sampler":
        return work
    if settings.old_policy == "auto" and settings.loss.correction is None:
        return replace(work, rescored=work.trained)
    return replace(work, scored={**work.scored, "from": work.scored.get("from", 0.0) + work.trained})


def _distill(settings: distill.Settings, upstream: Upstream) -> Workload:
    return _on_policy(settings, upstream.guess, {"teacher": 1.0})


def _on_policy(settings: rl.Settings | distill.Settings, guess: Guess, readers: Mapping[str, float]) -> Workload:
    """What samples and trains on it.

    Args:
        readers: the share of the texts that each model beside the trained one reads.
    """
    together = min(settings.sampling.slots, settings.problems_per_step * settings.group_size)
    problems, max_tokens = settings.steps * settings.problems_per_step, settings.sampling.max_tokens
    sampling = replace(
        _sampling(problems, settings.group_size, max_tokens, together, guess),
        calls=settings.steps,
        updates=settings.steps * settings.updates_per_step,
        text=guess.text(max_tokens),
    )
    texts = problems * settings.group_size * guess.text(max_tokens)
    # What completions share is read once by the learner, its reference and a teacher. An update of rl has a part of
    # each group, and one of distill whole groups.
    parts = settings.updates_per_step if settings.kind == "rl" else 1
    response, limit = guess.response(max_tokens), settings.tokens_per_batch
    of_part = group_positions(settings.group_size / parts, guess.prompt_tokens, response, limit)
    packed = problems * parts * of_part
    scored = {**sampling.scored}
    for key, share in readers.items():
        scored[key] = scored.get(key, 0.0) + share * (packed if key in ("from", "teacher") else texts)
    sampled = sampling.sampled
    if settings.curve is not None:
        asked = settings.curve.num_points(settings.steps) * settings.curve.answers
        sampled += asked * guess.response(max_tokens)
        sampling = replace(sampling, responses=sampling.responses + asked)
    row = _row(settings.tokens_per_batch, settings.problems_per_step * settings.group_size, guess.text(max_tokens))
    row = max(row, sampling.longest)  # which any of them may be
    # Without its adapter, a policy is its own reference.
    copies = tuple(key for key in readers if key != "from" or settings.lora is None)
    learned = replace(sampling, trained=packed, scored=scored, row=row, copies=copies)
    return replace(learned, sampled=sampled, lora=settings.lora, recompute=settings.recompute)


def _collect(settings: collect.Settings, upstream: Upstream) -> Workload:
    together = min(settings.sampling.slots, settings.problems_per_commit * settings.samples)
    calls = ceil(sum(settings.tasks.values()) / settings.problems_per_commit)
    sampled = replace(_samples(settings, together, upstream.guess), calls=calls)
    return sampled if settings.teacher is None else _served(sampled)


def _served(sampled: Workload) -> Workload:
    """The same from a server."""
    assert sampled.makes is not None
    return Workload(served=sampled.makes.texts * sampled.makes.tokens_each, makes=sampled.makes)


def _evaluate(settings: evaluate.Settings, upstream: Upstream) -> Workload:
    from reasonmill.stages.evaluate import CHUNK  # which loads nothing that its settings did not

    calls = sum(ceil(count / CHUNK) for count in settings.tasks.values())
    sampled = replace(_samples(settings, min(SLOTS, CHUNK * settings.samples), upstream.guess), calls=calls)
    return sampled if settings.server is None else _served(sampled)


def _samples(settings: collect.Settings | evaluate.Settings, together: int, guess: Guess) -> Workload:
    """Samples that are kept."""
    problems, max_tokens = sum(settings.tasks.values()), settings.sampling.max_tokens
    made = Data(problems * settings.samples, guess.text(max_tokens), settings.tasks, settings.samples)
    return replace(_sampling(problems, settings.samples, max_tokens, together, guess), makes=made)


def _sampling(problems: int, samples: int, max_tokens: int, together: int, guess: Guess) -> Workload:
    """Samples of problems, each of which is read once; `together` of them at most at the same time."""
    return Workload(
        sampled=problems * samples * guess.response(max_tokens),
        prompts=problems * guess.prompt_tokens,
        responses=problems * samples,
        calls=1,
        sequences=min(together, problems * samples),
        longest=ceil(guess.prompt_tokens) + max_tokens,
    )


def _row(tokens_per_batch: int, texts: float, tokens_each: float) -> int:
    """Positions of a forward pass of training: no more than all texts of a step have, and a longer text whole."""
    return ceil(max(min(tokens_per_batch, texts * tokens_each), tokens_each))


def _curate(settings: curate.Settings, upstream: Upstream) -> Workload:
    texts = tokens = served = 0.0
    for data in upstream.of_list(len(settings.data)):
        asked = kept = data.texts * upstream.guess.kept_share
        if settings.keep.per_problem is not None and data.problems:
            kept = min(kept, sum(data.problems.values()) * min(settings.keep.per_problem, data.samples))
        texts, tokens = texts + kept, tokens + kept * data.tokens_each
        if settings.judge is not None:
            served += asked * (data.tokens_each + upstream.guess.response(settings.judge.max_tokens))
    if settings.max_conversations is not None and texts > settings.max_conversations:
        tokens *= settings.max_conversations / texts
        texts = settings.max_conversations
    if settings.general is not None:
        texts += settings.general.conversations
        tokens += settings.general.conversations * GENERAL_TOKENS
    return Workload(served=served, makes=Data(texts, tokens / texts))


def _reward_model(settings: reward_model.Settings, upstream: Upstream) -> Workload:
    tokens = served = 0.0
    for data in upstream.of_list(len(settings.data)):
        counting = (NO_TASK, *(settings.tasks or data.problems))
        problems = sum(count for task, count in data.problems.items() if task in counting)
        each = data.samples
        if settings.objective == "pairwise":
            each = 2 * min(settings.pairs_per_problem, comb(data.samples, 2))
        tokens += problems * each * min(data.tokens_each, settings.max_tokens)
        if settings.judge is not None:  # each pair in both orders, which are as many as its responses
            judged = 2 * data.tokens_each + upstream.guess.response(settings.judge.max_tokens)
            served += problems * each * judged
    read = upstream.of_list(len(settings.data))
    texts = sum(data.texts for data in read)
    text = sum(data.texts * min(data.tokens_each, settings.max_tokens) for data in read) / max(texts, 1)
    longest = upstream.guess.given(text, settings.max_tokens)
    return Workload(
        served=served,
        trained=tokens * (1 - settings.held_out) * settings.epochs,
        updates=settings.epochs * ceil(texts * (1 - settings.held_out) / settings.examples_per_step),
        text=text,
        scored={"from": tokens * settings.held_out},
        row=_row(settings.tokens_per_batch, min(settings.examples_per_step, texts), longest),
    )


WORKLOADS: Mapping[str, Callable[[Any, Upstream], Workload]] = {
    "pretrain": _pretrain,
    "sft": _sft,
    "rl": _rl,
    "distill": _distill,
    "collect": _collect,
    "evaluate": _evaluate,
    "curate": _curate,
    "reward-model": _reward_model,
    "shorten": lambda settings, upstream: Workload(),
    "gate": lambda settings, upstream: Workload(),
}
