"""What a policy makes of benchmarks: replies, rejection probabilities, verdicts; interrupted work goes on."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from discernment.cost import StageCost
from discernment.errors import DataError
from discernment.evaluation.asked import ask_served
from discernment.evaluation.rows import Found, Row, Tell, draws_of, kept_reply, rows_of, samples_of
from discernment.evaluation.sample import Draw, Sample
from discernment.files import append_json_lines, read_json, read_json_lines, write_json, write_json_lines
from discernment.frozen import Frozen
from discernment.judges import Judge, Judgement, JudgeSpec, KeywordJudge, check_unscored
from discernment.models.batch import length_sorted_batches
from discernment.models.chat import ChatFormat
from discernment.policies.context import Reader, check_context, cut_left, positions_needed
from discernment.policies.draws import seed_of
from discernment.policies.engine import Engine, choose_engine
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.rejection import OpeningTrie, load_openings, read_once
from discernment.policies.served import ServedPolicy
from discernment.policies.vllm import VllmPolicy
from discernment.prompts import PromptSet
from discernment.ranks import check_alone, gathered, is_first, on_first, place, sharing


class Sampling(Frozen):
    """How replies are drawn. The rejection probability does not depend on it: it is that of temperature 1."""

    temperature: float = Field(1.0, gt=0, description="What the logits are divided by.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likeliest tokens that together have this probability."
    )
    n: int = Field(1, ge=1, description="Replies a prompt; it counts with the share of them that is right.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")


class EvaluateOptions(Frozen):
    """Options of an evaluation."""

    max_new_tokens: int = Field(
        32,
        ge=1,
        description="Token cap of a reply; 24 to 64 are enough to tell a refusal, judging harm needs more.",
    )
    batch_size: int = Field(64, ge=1, description="Prompts generated side by side.")
    rejection: bool = Field(True, description="Measure the rejection probability.")
    openings: str | list[str] = Field(
        "en", description="Language of the built-in refusal openings, `all`, or a list of openings."
    )
    too_long: Literal["refuse", "cut_left", "unscored"] = Field(
        "refuse",
        description="What to do where a prompt and its reply do not fit the model's positions: stop before anything is "
        "generated, cut the prompt's text on the left, or leave the prompt without a reply, unscored.",
    )
    sampling: Sampling | None = Field(
        None, description="Draw the replies instead of taking the likeliest token each time."
    )
    engine: Engine = Field(
        "transformers",
        description="What generates: `transformers`, `vllm`, or `auto` for vLLM where it is there and can reply as the policy does.",
        exclude_if=lambda engine: engine == "transformers",  # so stages keep the names that they had before
    )


class JudgedOptions(EvaluateOptions):
    """Options of an evaluation, and who judges it."""

    judge: JudgeSpec = Field(JudgeSpec(), description="Who judges the replies.")
    unscored_limit: float = Field(
        0.2, ge=0, le=1, description="Highest share of a benchmark's replies that may be left unscored."
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="GPUs that share each layer where vLLM generates.",
        exclude_if=lambda count: count == 1,
    )

    @property
    def options(self) -> EvaluateOptions:
        """How to generate: what the replies depend on."""
        return EvaluateOptions(**self.model_dump(include=set(EvaluateOptions.model_fields)))

    def options_for(self, policy: PolicySpec) -> EvaluateOptions:
        """The same with the engine that a policy replies by.

        Raises:
            RecipeError: If that is asked for and not installed.
        """
        return self.options.model_copy(update={"engine": choose_engine(self.engine, policy)})


def evaluate(
    policy: Policy | ServedPolicy,
    benchmarks: Sequence[PromptSet],
    options: EvaluateOptions,
    out: Path,
    *,
    judge: Judge | None = None,
    unscored_limit: float = 1.0,
    progress: Tell | None = None,
) -> StageCost:
    """Let `policy` reply to every prompt, judge the replies, and write `out/samples.jsonl`.

    Replies are kept in `out/completions.jsonl` as they come, each with the thought before it, if there is one, and
    rejection probabilities in `out/rejection.jsonl`: an interrupted call goes on where it was. The batches do not
    depend on what was done already, so that the result is the same.

    Args:
        policy: The policy.
        benchmarks: Prompt sets; their provenance names them.
        options: How to generate.
        out: A directory for this policy and these options.
        judge: Who judges; the keyword judge by default.
        unscored_limit: Highest share of a benchmark's replies that the judge may leave unscored.
        progress: Called with what is being done, how many prompts are done, and how many there are.

    Raises:
        DataError: If it leaves more unscored (the samples are written all the same), a prompt does not fit the model's
            positions and the options do not say what to do with it, or `out` holds replies of other options.
    """
    judge = judge or KeywordJudge()
    tell = progress or (lambda what, done, of: None)
    if isinstance(policy, ServedPolicy):
        check_alone("Asking a model behind an endpoint")
        found = _of_served(policy, rows_of(benchmarks), options, out, unscored_limit, tell)
    else:
        found = _of_local(policy, rows_of(benchmarks), options, out, tell)
    if not is_first():
        return StageCost(steps=0, tokens=0)
    samples = samples_of(found, judge, tell)
    write_json_lines(out / "samples.jsonl", (s.model_dump(mode="json") for s in samples))
    check_samples(samples, unscored_limit, policy.name)
    usage = getattr(judge, "usage", None)
    notes = {"judge": judge.name} | ({"judge_usage": asdict(usage)} if usage else {})
    return StageCost(steps=len(found.rows), tokens=found.tokens, notes=notes | found.notes)


def _keep_options(out: Path, options: EvaluateOptions) -> None:
    """Fail if `out` holds replies that other options were asked with; else note these."""
    # Batches may be made smaller where the memory ran out.
    now, file = options.model_dump(mode="json", exclude={"batch_size"}), out / "options.json"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, now)
        return
    then = read_json(file)
    other = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if other:
        changed = ", ".join(f"`{name}` {then.get(name)!r}, now {now.get(name)!r}" for name in other)
        raise DataError(f"{out} holds replies of other options ({changed}); name another directory.")


def _of_served(
    policy: ServedPolicy,
    rows: Sequence[Row],
    options: EvaluateOptions,
    out: Path,
    limit: float,
    tell: Tell,
) -> Found:
    trie = _trie(policy.chat, options) if options.rejection and policy.chat is not None else None
    notes: dict[str, Any] = {}
    with ExitStack() as held:
        if isinstance(policy, VllmPolicy):
            rows = _fitted(policy, rows, trie, options)
            lengths = [row.length for row in rows if row.left_out is None]
            if lengths:
                longest = max(lengths) + _reply_room(policy, trie, options) + 1
                held.enter_context(policy.serving(longest, out / "vllm.log"))
            notes = {"engine": {"name": "vllm", "tensor_parallel": policy.tensor_parallel}, **_cut(rows)}
        _keep_options(out, options)
        found = ask_served(policy, rows, trie, options, out, unscored_limit=limit, tell=tell)
    return found._replace(notes=found.notes | notes)


def _of_local(
    policy: Policy,
    rows: Sequence[Row],
    options: EvaluateOptions,
    out: Path,
    tell: Tell,
) -> Found:
    trie = _trie(policy.chat, options) if options.rejection else None
    rows = _fitted(policy, rows, trie, options)
    on_first(lambda: _keep_options(out, options))
    asked = [row for row in rows if row.left_out is None]
    lengths = [row.length for row in asked]
    batches = [[asked[i] for i in batch] for batch in length_sorted_batches(lengths, options.batch_size)]
    replies, rejections = _complete(
        out, batches, partial(_ask, policy, trie, options), tell, trie is not None
    )
    tokens = sum(lengths) + sum(r["tokens"] for reply in replies.values() for r in draws_of(reply))
    return Found(rows, replies, rejections, tokens, _cut(rows))


def _cut(rows: Sequence[Row]) -> dict[str, Any]:
    """For the notes: which prompts were cut."""
    cut = [[row.benchmark, row.prompt.id] for row in rows if row.asked != row.prompt.asked]
    return {"cut_left": cut} if cut else {}


def _reply_room(policy: Reader, trie: OpeningTrie | None, options: EvaluateOptions) -> int:
    """Tokens that may come behind a prompt: of its reply, or of an opening."""
    if trie is None:
        return options.max_new_tokens
    # Openings are read behind what the template writes before every reply.
    return max(options.max_new_tokens, len(policy.chat.lead) + max(map(len, trie.sequences)))


def _trie(chat: ChatFormat, options: EvaluateOptions) -> OpeningTrie:
    named = options.openings
    return OpeningTrie.from_openings(load_openings(named) if isinstance(named, str) else named, chat)


def _fitted(
    policy: Reader, rows: Sequence[Row], trie: OpeningTrie | None, options: EvaluateOptions
) -> list[Row]:
    """The rows with their lengths, those that do not fit the model's positions cut or left out as the options say.

    Raises:
        DataError: If one does not fit and is neither to be cut nor left out, or nothing of it fits.
    """
    reply = _reply_room(policy, trie, options)
    sequences = policy.encode([row.asked for row in rows])
    advice = (
        "shorten it or leave it out, lower `max_new_tokens`, or set `too_long` to `cut_left` or `unscored`"
        if options.too_long == "refuse"
        else "the chat template leaves no room for its text, so lower `max_new_tokens` or leave it out"
    )
    limit, found = policy.positions, []
    for row, sequence in zip(rows, sequences, strict=True):
        needed = positions_needed(sequence, reply)
        if limit is None or needed <= limit:
            found.append(row._replace(length=len(sequence)))
        elif options.too_long == "unscored":
            why = f"prompt and reply need {needed} positions, and the model has {limit}"
            found.append(row._replace(left_out=why))
        else:
            text = cut_left(policy, row.asked, reply) if options.too_long == "cut_left" else None
            if text is None:
                name = f"{row.prompt.id!r} of {row.benchmark}"
                check_context(policy, [sequence], [name], reply, advice)
            else:
                (sequence,) = policy.encode([text])
                found.append(row._replace(asked=text, length=len(sequence)))
    return found


def check_samples(samples: Sequence[Sample], limit: float, name: str) -> None:
    """Fail if a judge left too many replies to one benchmark unscored.

    Args:
        samples: Samples of one policy.
        limit: The highest share that is let pass, from 0 to 1.
        name: The policy's name, for the message.

    Raises:
        DataError: If the share is above `limit` in a benchmark.
    """
    for benchmark in dict.fromkeys(s.benchmark for s in samples):
        replies: list[Sample | Draw] = []
        for sample in samples:
            if sample.benchmark == benchmark:
                replies += [sample, *sample.further]
        judgements = [Judgement(reply.verdict, reply.unscored_reason) for reply in replies]
        check_unscored(judgements, limit, f"the replies of {name} to {benchmark}")


def _ask(
    policy: Policy, trie: OpeningTrie | None, options: EvaluateOptions, batch: Sequence[Row]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Replies, and rejection probabilities where there is a tree of openings; the prompts are read once for both."""
    prompts, begun = [r.asked for r in batch], None
    masses: list[dict[str, Any]] = []
    if trie is not None:
        found, begun = read_once(policy, prompts, trie, options.max_new_tokens)
        masses = [{"rejection_probability": mass} for mass in found]
    generate, sampling = (
        partial(policy.generate, policy.encode(prompts), options.max_new_tokens),
        options.sampling,
    )
    if begun is not None:
        generate = partial(generate, begun=begun)
    if sampling is None:
        return [kept_reply(c) for c in generate()], masses
    drawn = [
        generate(temperature=sampling.temperature, top_p=sampling.top_p, seed=seed_of([sampling.seed, n]))
        for n in range(sampling.n)
    ]
    replies = [
        kept_reply(first) | ({"further": [kept_reply(c) for c in further]} if further else {})
        for first, *further in zip(*drawn, strict=True)
    ]
    return replies, masses


def _complete(
    out: Path,
    batches: Sequence[Sequence[Row]],
    work: Callable[[Sequence[Row]], tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    tell: Tell,
    rejection: bool,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Do `work` on all rows of which something is not kept yet, batch by batch, and return everything by key.

    Where several processes do it, they take turns with the batches; the first of them keeps and returns what all have found.
    """
    paths = [out / "completions.jsonl"] + ([out / "rejection.jsonl"] if rejection else [])
    what = "replies and rejection probabilities" if rejection else "replies"
    known = on_first(lambda: [_read(path) for path in paths])
    # All of a batch again: its composition decides how floating point rounds.
    left = [batch for batch in batches if any(row.key not in kept for kept in known for row in batch)]
    done, total = sum(map(len, batches)) - sum(map(len, left)), sum(map(len, batches))
    tell(what, done, total)
    for begin in range(0, len(left), sharing()):
        turn = left[begin : begin + sharing()]
        for batch, made in zip(
            turn, gathered(work(turn[place()]) if place() < len(turn) else None), strict=False
        ):
            for path, kept, values in zip(paths, known, made or (), strict=False):
                found = [
                    {"key": row.key, **value}
                    for row, value in zip(batch, values, strict=True)
                    if row.key not in kept  # of two files one may have been lost
                ]
                append_json_lines(path, found)
                kept.update({row["key"]: row for row in found})
            done += len(batch)
            tell(what, done, total)
    return known[0], known[1] if rejection else {}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {row["key"]: row for _, row in read_json_lines(path, allow_torn_end=True)}
