"""General ability by lm-evaluation-harness (Gao et al. 2024), in process, on a policy that is already loaded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from discernment.errors import DataError, ModelError, RecipeError
from discernment.evaluation.results import TaskScore
from discernment.files import content_hash, file_hash
from discernment.models.batch import length_sorted_batches
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Encoded, Policy
from discernment.policies.rule import DecodingRule
from discernment.prompts.conversation import Asked, text_of

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


@dataclass(frozen=True)
class Tasks:
    """Tasks that a run asks for.

    Attributes:
        names: Names that the harness knows, or folders of task files.
    """

    names: tuple[str, ...]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Changes with the harness's version, the names, and every file in a folder of tasks.

        Raises:
            RecipeError: If the extra `capabilities` is not installed.
        """
        with _capabilities():
            version = metadata.version("lm_eval")
        folders = [Path(name).expanduser() for name in self.names]
        return {
            "lm_eval": version,
            "tasks": [
                {"sha256": content_hash(_contents(folder))} if folder.is_dir() else name
                for name, folder in zip(self.names, folders, strict=True)
            ],
        }

    def check(self) -> None:
        """Find out, without a model, whether all of them can be run.

        Raises:
            RecipeError: If the extra `capabilities` is not installed, or there is no such task or folder.
            DataError: If a task's data cannot be had.
        """
        for name in self.names:
            if Path(name).expanduser().is_file():  # what else the task depends on would not be known
                raise RecipeError(f"The task {name} is a file; name the folder that holds it and its data.")
        _load_tasks(self.names)


def run_tasks(
    policy: Policy,
    tasks: Sequence[str | Path],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    chat: bool = False,
    seed: int = 0,
) -> list[TaskScore]:
    """Run tasks of lm-evaluation-harness.

    Nothing is downloaded for a task that lies in a local folder. Data of the harness's own tasks come from the hub or
    from its cache; with `HF_HUB_OFFLINE=1`, from the cache alone.

    Args:
        policy: The policy.
        tasks: Names that the harness knows (`arc_easy`, `mmlu`, ...), task files, or folders of them (no files of groups).
            Data files in a task file are named relative to it.
        limit: Most questions a task.
        batch_size: Questions a forward pass.
        chat: Put questions into the chat template; published numbers of base models are without.
        seed: Fixes which examples are shown before a question, and the bootstrap of some standard errors.

    Returns:
        Every metric of every task, groups after their tasks.

    Raises:
        RecipeError: If the extra `capabilities` is not installed, or there is no such task.
        DataError: If a task's data cannot be had.
        ModelError: If `chat` is asked for with a decoding rule.
    """
    if chat and isinstance(policy.rule, DecodingRule):
        raise ModelError(
            f"{policy.name} reads questions in contexts of its own (rule {policy.rule.name!r}), which the harness's chat "
            "template would hide; run the tasks without `chat`."
        )
    model = as_harness_model(policy, batch_size)
    from lm_eval import simple_evaluate

    manager, loaded = _load_tasks(tasks)
    found = simple_evaluate(
        model,
        tasks=loaded,
        limit=limit,
        batch_size=batch_size,
        apply_chat_template=chat,
        system_instruction=policy.chat.system if chat else None,
        task_manager=manager,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert found is not None  # only other ranks of a distributed run get nothing
    return _scores(found, policy.name)


def as_harness_model(policy: Policy, batch_size: int = 16) -> HFLM:
    """The policy as lm-evaluation-harness wants it: its model, and its rule where it has one.

    Raises:
        RecipeError: If the extra `capabilities` is not installed.
    """
    with _capabilities():
        from lm_eval.models.huggingface import HFLM
    kind = HFLM if policy.rule is None else _rule_model()
    model = kind(pretrained=policy.model, tokenizer=policy.chat.tokenizer, batch_size=batch_size)
    if policy.rule is not None:
        model.policy = raw = copy.copy(policy)
        raw.chat = _RawText(policy.chat, model.tok_encode)
    return model


class _RawText(ChatFormat):
    """The harness writes its questions itself: no template, and a system message stands before them."""

    def __init__(self, chat: ChatFormat, encode: Callable[[str], list[int]]) -> None:
        self.__dict__.update(chat.__dict__)
        self.system, self.end_of_turn = None, chat.end_of_turn
        self._encode = encode

    def render(self, prompt: Asked) -> str:
        text = text_of(prompt)  # the harness has no conversations
        return f"{self.system}\n\n{text}" if self.system else text

    def encode(self, prompt: Asked) -> list[int]:
        return self._encode(self.render(prompt))


def _cut(encoded: Encoded, room: int) -> Encoded:
    """The last tokens of each context, as the harness cuts what is too long."""
    return Encoded(*(ids[-room:] for ids in (encoded, *encoded.others))) if room > 0 else encoded


def _rule_model() -> type[HFLM]:
    """`HFLM` that asks a policy where it would ask the bare model."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    class RuleModel(HFLM):
        policy: Policy

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            found: dict[int, tuple[float, bool]] = {}
            lengths = [len(context) + len(reply) for _, context, reply in requests]
            for rows in length_sorted_batches(lengths, int(self.batch_size)):
                replies = [list(requests[r][2]) for r in rows]
                contexts = self._contexts([requests[r] for r in rows])
                for row, reply, logits in zip(
                    rows, replies, self.policy.reply_logits(contexts, replies), strict=True
                ):
                    log, targets = logits.log_softmax(-1), torch.tensor(reply, device=logits.device)
                    likely = bool((log.argmax(-1) == targets).all())
                    found[row] = float(log.gather(-1, targets[:, None]).sum()), likely
            return [found[n] for n in range(len(requests))]

        def _contexts(self, requests: Sequence[Any]) -> list[Encoded]:
            """The contexts of questions, cut on the left where they are too long, as the harness cuts them."""
            count = 1 + len(self.policy.encode(["x"])[0].others)
            found = []
            for names, context, reply in requests:
                # None where a text is scored from its beginning, and for the windows of a long one.
                question = names[0].rstrip() if names and names[0] else ""
                encoded = self.policy.encode([question])[0] if question else Encoded(*[context] * count)
                found.append(_cut(encoded, self.max_length + 1 - len(reply)))
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [self._reply(*request.args) for request in requests]

        def _reply(self, question: str, options: Mapping[str, Any]) -> str:
            asked = normalize_gen_kwargs(dict(options), self.max_gen_toks)
            if asked["do_sample"]:
                raise RecipeError(
                    f"A task of general ability draws its replies, and {self.policy.name} takes the likeliest token each time; set "
                    "`do_sample: false` in the task."
                )
            cap = asked["max_gen_toks"]
            [encoded] = self.policy.encode([question])
            [reply] = self.policy.generate([_cut(encoded, self.max_length - cap)], cap)
            text = str(self.tok_decode(reply.ids))
            for stop in handle_stop_sequences(asked["until"], eos=self.tok_decode(self.eot_token_id)):
                text = text.partition(stop)[0] if stop else text
            return text

    return RuleModel


@contextlib.contextmanager
def _capabilities() -> Iterator[None]:
    """Say which extra is missing where something of the harness is."""
    try:
        yield
    except ImportError as error:
        raise RecipeError(
            f"General ability by tasks needs `pip install 'discernment[capabilities]'` ({error})."
        ) from error


def _contents(folder: Path) -> list[tuple[str, str]]:
    """Every file under a folder with its hash; hidden ones and what Python compiles are left out."""
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        (path.as_posix(), file_hash(folder / path))
        for path in inside
        if not any(part.startswith((".", "__pycache__")) for part in path.parts)
    ]


def _load_tasks(tasks: Sequence[str | Path]) -> tuple[Any, list[Any]]:
    """A task manager, and the tasks and groups with their data."""
    with _capabilities():
        from lm_eval.tasks import TaskManager

    files = [file for task in tasks for file in _task_files(task)]
    names = [str(task) for task in tasks if not _task_files(task)]
    manager = TaskManager(include_defaults=bool(names))  # listing the harness's own takes seconds
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise RecipeError(
            f"lm-evaluation-harness knows no task {unknown[0]!r}, and there is no such file or folder."
        )
    wanted: list[str | Path] = [*files, *names]
    return manager, [task for what in wanted for task in _load(manager, what)]


def _task_files(task: str | Path) -> list[Path]:
    """The task files that `task` stands for; none if it is a name.

    Raises:
        RecipeError: If it is a folder without any.
    """
    path = Path(task).expanduser().resolve()
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    files = sorted(path.glob("*.yaml"))
    if not files:
        raise RecipeError(f"The folder {task} holds no task file (*.yaml).")
    return files


def _load(manager: Any, what: str | Path) -> list[Any]:
    """Tasks and groups, with their data."""
    folder = what.parent if isinstance(what, Path) else Path.cwd()
    try:
        with contextlib.chdir(folder):  # where `datasets` looks for data files with relative names
            found = manager.load(str(what))
    except Exception as error:  # whatever a task file and a data set can hold
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"The task {str(what)!r} cannot be loaded ({reason.rstrip('.')}).") from error
    # A group comes first, then the groups within it, which it holds anyway.
    return [*found["groups"].values()][:1] or [*found["tasks"].values()]


def _scores(found: Any, policy: str) -> list[TaskScore]:
    scores = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, answer_filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{answer_filter}")
            scores.append(
                TaskScore(
                    policy=policy,
                    task=task,
                    metric=metric,
                    filter=answer_filter,
                    value=value,
                    standard_error=error if isinstance(error, int | float) else None,
                    questions=values["sample_len"],
                )
            )
    return scores
