"""Seeds, rewrites, moderation: the three steps that make seemingly toxic prompts.

After OR-Bench (Cui et al., ICML 2025, arXiv 2405.20947): a model writes toxic seeds by category, rewrites each into
requests that only look toxic, and an ensemble of moderators decides by majority which of them are harmless.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from discernment.errors import DataError, RecipeError, RunError
from discernment.files import content_hash, write_json, write_json_lines
from discernment.keyed_log import KeyedLog
from discernment.prompts import Label, Prompt, PromptSet
from discernment.synthesis.answers import Opinion, Vote, fault, majority, read_list, read_vote, rewrite_fault
from discernment.synthesis.chat_models import Answer, ChatModel, Sampling
from discernment.synthesis.options import GenerateOptions, GenerateSummary, StepCounts
from discernment.synthesis.templates import (
    TEMPLATE_VERSION,
    moderation_question,
    rewrite_question,
    seed_question,
)
from discernment.synthesis.usable import usable

Progress = Callable[[str, int, int], None]
LABELS = (Label.SEEMINGLY_TOXIC, Label.TOXIC)
DOUBTFUL = "doubtful"
ANSWERS = "answers"
"""The folder with what the models said, by which an interrupted call goes on."""


class Question(NamedTuple):
    """A question to a model, the key that its answer is kept under, and what it is about."""

    key: str
    text: str
    about: dict[str, Any]


class Candidate(NamedTuple):
    """A generated text, and where it comes from."""

    prompt: Prompt
    provenance: dict[str, Any]


def generate_prompts(
    options: GenerateOptions,
    out: Path,
    *,
    generator: ChatModel,
    moderators: Sequence[ChatModel],
    seeds: PromptSet | None = None,
    progress: Progress | None = None,
) -> GenerateSummary:
    """Make seemingly toxic prompts in `out`; an interrupted call goes on where it was.

    `seemingly_toxic.jsonl` and `toxic.jsonl` are prompt sets, with the seed, the models, the template version and the
    votes beside every prompt. `doubtful.jsonl` holds prompts on which no majority of all moderators agreed; it has no
    labels. `answers/` holds every answer of every model. Prompts that repeat one another or a seed are dropped.

    Args:
        options: How many, and how.
        out: A directory.
        generator: Who writes seeds and rewrites.
        moderators: Who votes; one to decide alone, better three of different makers.
        seeds: Toxic prompts to start from; without them, the generator writes seeds.
        progress: Called with what is being done, how many questions are done, and how many there are.

    Raises:
        RecipeError: If there is no moderator, or one votes twice.
        DataError: If a step has no usable answer.
        RunError: If another process works in `out`, or files of these names lie there that no such run left.
    """
    names = [moderator.fingerprint for moderator in moderators]
    if not names or len(set(names)) < len(names):
        raise RecipeError("Name one moderator or more, each once.")
    taken = [path.name for path in written(out) if path.exists()]
    if taken and not (out / ANSWERS).is_dir():
        raise RunError(f"{out} holds {', '.join(taken)} already; name another directory.")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "generate.lock", timeout=0):
            work = _Work(options, out, generator, moderators, progress or (lambda what, done, of: None))
            return work.run(seeds)
    except Timeout:
        raise RunError(
            f"Another process generates prompts in {out}; wait for it or name another directory."
        ) from None


def written(out: Path) -> list[Path]:
    """The files that `generate_prompts` leaves in `out`, beside the answers."""
    return [*(out / f"{name}.jsonl" for name in (*LABELS, DOUBTFUL)), out / "summary.json"]


@dataclass
class _Work:
    options: GenerateOptions
    out: Path
    generator: ChatModel
    moderators: Sequence[ChatModel]
    tell: Progress
    steps: dict[str, StepCounts] = field(default_factory=dict)

    def run(self, given: PromptSet | None) -> GenerateSummary:
        seeds = self.seeds() if given is None else list(given.with_label(Label.TOXIC))
        rewrites = self.rewrites(seeds)
        votes = self.moderate([candidate.prompt.text for candidate in rewrites])
        return self.write(rewrites, votes)

    # ------------------------------------------------------------------ steps

    def seeds(self) -> list[Prompt]:
        options = self.options
        sampling = Sampling(options.seed_temperature, options.max_tokens, options.seed)
        questions = []
        for category in options.categories:
            for number, start in enumerate(
                range(0, options.seeds_per_category, options.seeds_per_question), start=1
            ):
                count = min(options.seeds_per_question, options.seeds_per_category - start)
                text = seed_question(category, count, number)
                about = {"category": category, "number": number}
                questions.append(_question(self.generator, text, sampling, about))
        lists = self.ask_for_lists("seeds", questions, sampling)
        found = [
            _prompt(text, question.about["category"], self.generator.name)
            for question, texts in zip(questions, lists, strict=True)
            for text in texts or ()
        ]
        return self.keep("seeds", lists, found, fault, against=[])

    def rewrites(self, seeds: Sequence[Prompt]) -> list[Candidate]:
        options = self.options
        sampling = Sampling(options.rewrite_temperature, options.max_tokens, options.seed)
        questions = [
            _question(self.generator, rewrite_question(s.text, options.rewrites), sampling, {"seed": s.text})
            for s in seeds
        ]
        lists = self.ask_for_lists("rewrites", questions, sampling)
        origin: dict[str, dict[str, Any]] = {}
        found = []
        for seed, texts in zip(seeds, lists, strict=True):
            of_seed = {"seed": seed.text, "seed_source": seed.source}
            for text in texts or ():
                origin.setdefault(text, of_seed)
                found.append(_prompt(text, seed.category, self.generator.name))
        kept = self.keep("rewrites", lists, found, rewrite_fault, against=seeds)
        made = {"generator": self.generator.name, "template": TEMPLATE_VERSION}
        return [Candidate(prompt, origin[prompt.text] | made) for prompt in kept]

    def moderate(self, texts: Sequence[str]) -> list[list[Vote]]:
        """The votes on each text, in the order of the moderators; one that failed to answer has none."""
        sampling = Sampling(0.0, self.options.moderation_max_tokens)
        votes: list[list[Vote]] = [[] for _ in texts]
        asked: list[Question] = []
        answers: dict[str, Answer] = {}
        for moderator in self.moderators:
            about = {"moderator": moderator.name}
            questions = [
                _question(moderator, moderation_question(text), sampling, {**about, "prompt": text})
                for text in texts
            ]
            answered = self.ask("moderation", moderator, questions, sampling)
            for text, question, of_text in zip(texts, questions, votes, strict=True):
                of_text.append(read_vote(text, answered.get(question.key, Answer("", finished=False))))
            asked += questions
            answers |= answered
        read = sum(vote.opinion is not Opinion.UNREADABLE for of_text in votes for vote in of_text)
        failed = sum(q.key not in answers for q in asked)
        self.steps["moderation"] = StepCounts(
            questions=len(asked), failed=failed, unreadable=len(asked) - failed - read, texts=read
        )
        return votes

    def write(self, candidates: Sequence[Candidate], votes: Sequence[Sequence[Vote]]) -> GenerateSummary:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*LABELS, DOUBTFUL)}
        why: Counter[str] = Counter()
        for candidate, of_prompt in zip(candidates, votes, strict=True):
            said = [
                {"moderator": moderator.name, "opinion": vote.opinion.value, "category": vote.category}
                for moderator, vote in zip(self.moderators, of_prompt, strict=True)
            ]
            row = {"provenance": {**candidate.provenance, "votes": said}}
            agreed = majority(of_prompt)
            if agreed is None:
                unread = any(vote.opinion is Opinion.UNREADABLE for vote in of_prompt)
                reason = "no majority, unreadable votes" if unread else "no majority"
                why[reason] += 1
                rows[DOUBTFUL].append(_row(candidate.prompt, label=None) | {"why": reason} | row)
            else:
                label = Label.TOXIC if agreed is Opinion.TOXIC else Label.SEEMINGLY_TOXIC
                rows[label].append(_row(candidate.prompt, label) | row)
        for name, of_kind in rows.items():
            write_json_lines(self.out / f"{name}.jsonl", of_kind)
        summary = GenerateSummary(
            generator=self.generator.name,
            moderators=[moderator.name for moderator in self.moderators],
            template_version=TEMPLATE_VERSION,
            steps=self.steps,
            kept={str(name): len(of_kind) for name, of_kind in rows.items()},
            doubtful=dict(why),
        )
        write_json(self.out / "summary.json", summary.model_dump(mode="json"))
        return summary

    # ------------------------------------------------------------------ asking and counting

    def ask(
        self, step: str, model: ChatModel, questions: Sequence[Question], sampling: Sampling
    ) -> dict[str, Answer]:
        """The answers by key, those known already included; a question that failed has none."""
        log = KeyedLog(
            self.out / ANSWERS / f"{step}.jsonl",
            lambda row: Answer(row["answer"], row["finished"]),
            "is no answer; delete the file to ask anew",
        )
        unknown = list({q.key: q for q in questions if q.key not in log}.values())
        what = f"{step}, {model.name}"
        done, failures = len(questions) - len(unknown), []
        self.tell(what, done, len(questions))
        for position, answer in model.ask([q.text for q in unknown], sampling):
            question = unknown[position]
            if answer.failure is None:
                about = {"model": model.name, "template": TEMPLATE_VERSION, **question.about}
                log.add(question.key, answer, {**about, "answer": answer.text, "finished": answer.finished})
            else:
                failures.append(answer.failure)
            done += 1
            self.tell(what, done, len(questions))
        if questions and len(failures) == len(questions):
            raise DataError(
                f"{model.name} answered none of {len(questions)} questions of the step {step} ({failures[0]}); "
                "mend the endpoint and give the same command again."
            )
        return {q.key: log[q.key] for q in questions if q.key in log}

    def ask_for_lists(
        self, step: str, questions: Sequence[Question], sampling: Sampling
    ) -> list[list[str] | None]:
        """What the generator's answer to each question lists; None where it failed."""
        answers = self.ask(step, self.generator, questions, sampling)
        return [read_list(answers[q.key]) if q.key in answers else None for q in questions]

    def keep(
        self,
        step: str,
        lists: Sequence[list[str] | None],
        found: Sequence[Prompt],
        fault_of: Callable[[str], str | None],
        against: Sequence[Prompt],
    ) -> list[Prompt]:
        """The usable ones of what a step gave, which is counted."""
        kept, dropped = usable(found, fault_of, against)
        counts = self.steps[step] = StepCounts(
            questions=len(lists),
            failed=lists.count(None),
            unreadable=lists.count([]),
            texts=len(found),
            dropped=dict(sorted(dropped.items())),
        )
        if not kept:
            raise DataError(
                f"The step {step} gave no usable prompt: {counts.unreadable} of {counts.questions} answers of "
                f"{self.generator.name} cannot be read and {sum(counts.dropped.values())} texts were dropped; "
                f"look into {self.out / ANSWERS / f'{step}.jsonl'} and take another generator."
            )
        return kept


def _question(model: ChatModel, text: str, sampling: Sampling, about: dict[str, Any]) -> Question:
    key = content_hash([TEMPLATE_VERSION, model.fingerprint, *sampling, text])
    return Question(key, text, about)


def _prompt(text: str, category: str | None, generator: str) -> Prompt:
    # The label is that of a seed; what a rewrite is, the moderators say.
    return Prompt(
        id=content_hash(text)[:12],
        text=text,
        label=Label.TOXIC,
        category=category,
        source=f"generated by {generator}",
    )


def _row(prompt: Prompt, label: Label | None) -> dict[str, Any]:
    row = prompt.model_dump(mode="json", exclude={"label", "text"}, exclude_none=True)
    return {"prompt": prompt.text} | row | ({"label": label.value} if label else {})
