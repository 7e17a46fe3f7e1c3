"""What a method left, in a folder that others can load, and on the hub."""

import json
import shutil
from pathlib import Path
from typing import Literal

from discernment.disk import room
from discernment.errors import ModelError, RunError
from discernment.files import read_json, replace_directory, write_text
from discernment.models.adapter_files import CONFIG
from discernment.models.loading import MODEL_FILES
from discernment.policies.policy_spec import FILE, PolicySpec

CARD = "README.md"
MARK = "<!-- made by discern publish -->"
"""In the card: the folder may be replaced."""


def collect(policy: PolicySpec, card: str, folder: Path) -> Path:
    """Put the weights that a method left, or its adapter, and a card into a folder, which is replaced if it is there.

    Args:
        policy: What the method left.
        card: The model card, as Markdown.
        folder: Where it all goes.

    Raises:
        ModelError: If the policy acts by a rule, which no other program would apply, is the untrained model itself, or is an
            adapter that stands on weights of the run.
        RunError: If the folder holds something else.
    """
    source = _source(policy)
    if not may_be_replaced(folder):
        raise RunError(f"{folder} holds something else; name another folder with --out.")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    files = [p for p in sorted(source.iterdir()) if p.suffix in MODEL_FILES]
    with room(folder.parent, sum(p.stat().st_size for p in files)):
        part.mkdir(parents=True)
        for path in files:
            shutil.copy2(path, part / path.name)
        write_text(part / CARD, f"{card}\n{MARK}\n")
        if policy.adapters:
            _name_the_base(part / CONFIG, policy.model.model)
    replace_directory(part, folder)
    return folder


def _source(policy: PolicySpec) -> Path:
    if policy.rule is not None:
        raise ModelError(
            f"The method acts by the rule {policy.rule.name!r} while it replies, which no other program would apply; "
            "publish the method that it stands on."
        )
    if not (policy.folder / FILE).is_file():
        raise ModelError(
            f"{policy.model.model} is a model that exists already; publish a method that trains one."
        )
    trained_below = (Path(policy.model.model).parent / FILE).is_file()
    if policy.adapters and (trained_below or len(policy.adapters) > 1):
        raise ModelError(
            "The method's last adapter stands on weights of the run, without which it is another model; train with "
            "`lora: {keep: merged}` and publish that."
        )
    return Path(policy.adapters[-1] if policy.adapters else policy.model.model)


def may_be_replaced(folder: Path) -> bool:
    """Whether a folder is not there, is empty, or holds what was put there to be sent, by its card."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    held = list(folder.iterdir())
    ours = (folder / CARD).is_file() and MARK in (folder / CARD).read_text(encoding="utf-8", errors="replace")
    return not held or (ours and all(p.is_file() for p in held))


def _name_the_base(config: Path, model: str) -> None:
    """Let an adapter name its base model as others do, not by where it lies here."""
    content = read_json(config)
    content["base_model_name_or_path"] = Path(model).name if Path(model).exists() else model
    write_text(config, json.dumps(content, indent=2) + "\n")


def send(folder: Path, repository: str, *, private: bool, kind: Literal["model", "dataset"] = "model") -> str:
    """Send a folder to the hub; what the repository held goes.

    Args:
        folder: What `collect` left, or `collect_dataset`.
        repository: Its name there; it is made if it is not there.
        private: Whether a new one is private.
        kind: What the repository holds.

    Returns:
        The address.

    Raises:
        RunError: If the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True, repo_type=kind)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, delete_patterns="*", repo_type=kind)
    except Exception as error:  # the hub and what carries it raise what they like
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        status = getattr(getattr(error, "response", None), "status_code", None)
        mend = "log in with `hf auth login` and " if status in (401, 403) else ""
        raise RunError(
            f"The hub did not take {repository} ({first}); {mend}give the same command again. {folder} is whole."
        ) from error
    return str(made)
