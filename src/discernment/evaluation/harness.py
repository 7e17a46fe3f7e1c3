"""General ability by lm-evaluation-harness (Gao et al. 2024), in process, on a policy that is already loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discernment.errors import DataError, ModelError, RecipeError
from discernment.evaluation.results import TaskScore
from discernment.files import content_hash, file_hash
from discernment.policies.policy import Policy

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

__all__ = ["TaskScore", "Tasks", "as_harness_model", "run_tasks"]


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
        policy: The policy; one with a decoding rule of its own cannot be run.
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
        ModelError: If the policy has a decoding rule of its own.
    """
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
    """The policy's model and tokenizer as lm-evaluation-harness wants them.

    Raises:
        RecipeError: If the extra `capabilities` is not installed.
        ModelError: If the policy has a decoding rule of its own, which the harness would pass by.
    """
    if {type(policy).next_token_logits, type(policy).generate} != {Policy.next_token_logits, Policy.generate}:
        raise ModelError(
            f"lm-evaluation-harness asks the bare model, and {policy.name} decodes by a rule of its own; "
            "run the harness on its model alone."
        )
    with _capabilities():
        from lm_eval.models.huggingface import HFLM
    return HFLM(pretrained=policy.model, tokenizer=policy.chat.tokenizer, batch_size=batch_size)


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
