"""What a method left, in a folder that others can load, and on the hub."""

import shutil
from pathlib import Path

from discernment.disk import room
from discernment.errors import ModelError, RunError
from discernment.files import replace_directory, write_text
from discernment.models.loading import MODEL_FILES
from discernment.policies.policy_spec import FILE, PolicySpec

CARD = "README.md"


def collect(policy: PolicySpec, card: str, folder: Path) -> Path:
    """Put the weights that a method left, or its last adapter, and a card into a folder, which is replaced if it is there.

    Args:
        policy: What the method left.
        card: The model card, as Markdown.
        folder: Where it all goes.

    Raises:
        ModelError: If the policy acts by a rule, which no other program would apply, or is the untrained model itself.
        RunError: If the folder holds something else.
    """
    policy.without_rule("What is published")
    if len(policy.adapters) > 1:
        raise ModelError(
            "The policy has several adapters, of which a hub repository holds one; publish a method whose stages were "
            "folded in (`merge: true`)."
        )
    source = Path(policy.adapters[-1] if policy.adapters else policy.model.model)
    if not (policy.folder / FILE).is_file():
        raise ModelError(f"{source} is a model that exists already; publish a method that trains one.")
    if folder.exists() and any(folder.iterdir()) and not (folder / CARD).is_file():
        raise RunError(f"The folder {folder} holds something else; name another with --out.")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    files = [p for p in sorted(source.iterdir()) if p.suffix in MODEL_FILES and p.name != CARD]
    with room(folder.parent, sum(p.stat().st_size for p in files)):
        part.mkdir(parents=True)
        for path in files:
            shutil.copy2(path, part / path.name)
        write_text(part / CARD, card)
    replace_directory(part, folder)
    return folder


def send(folder: Path, repository: str, *, private: bool) -> str:
    """Send a folder to the hub.

    Args:
        folder: What `collect` left.
        repository: Its name there; it is made if it is not there.
        private: Whether a new one is private.

    Returns:
        The address.

    Raises:
        RunError: If the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder)
    except Exception as error:  # the hub and what carries it raise what they like
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(
            f"The hub did not take {repository} ({first}); log in with `hf auth login` and give the same command again. "
            f"The folder {folder} is whole."
        ) from error
    return str(made)
