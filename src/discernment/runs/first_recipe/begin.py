"""A first recipe for a model: looks at it, at the machine and at the prompts, and writes down each choice with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discernment.errors import DiscernmentError, RecipeError
from discernment.files import read_yaml, write_text
from discernment.judges import JudgeSpec
from discernment.judges.encoder import trained_encoder
from discernment.models.model_spec import ModelSpec
from discernment.prompts import PromptSet
from discernment.runs.built_in import built_in
from discernment.runs.first_recipe.circumstances import (
    Machine,
    ModelFacts,
    Tried,
    lengths,
    look_at_machine,
    look_at_model,
    try_model,
)
from discernment.runs.first_recipe.estimate import (
    SHARES,
    SPREAD,
    USABLE,
    Asked,
    Way,
    Work,
    choose_way,
    is_aligned,
    seconds,
)
from discernment.runs.first_recipe.folder import OwnPrompts, Said, read_folder
from discernment.runs.first_recipe.sets import Entry, Sizes, test_sets, training_sets
from discernment.runs.recipe import Recipe, parse_recipe

REPLY_ROOM = 64
"""Positions that are kept free behind a prompt of the user's, for the reply."""
LONGEST = 1024
"""Longer examples are cut at the end, and longer prompts of one's own are left out: they would decide the memory of all."""
STEP = 64
BATCH = 32


@dataclass(frozen=True)
class Choices:
    """All that a first recipe says, before it is written down.

    Attributes:
        spec: The model, as the user named it.
        facts: What it is.
        machine: Where it would run.
        tried: What it did with a few prompts; None where it was not tried.
        untried: Why not.
        own: The user's prompts.
        file: Where they are, if there are any.
        way: How it is trained.
        sizes: How much is trained and evaluated.
        data: The entries of `data`.
        benchmarks: What is evaluated on.
        unusable: Public sets that are there and cannot be used, and why.
        max_length: Tokens of the longest example, rounded up.
        longest: Tokens of the longest example.
        cut: Examples that are longer than `max_length`.
        examples: How many there are.
        max_new_tokens: Token cap of a reply.
        judge: Who judges.
        layer: The layer to refine.
        seconds: How long the run takes at least, by estimate; None where the speed is not known.
        known: Whether the recipe `quickstart` is about this very model and these prompts.
    """

    spec: ModelSpec
    facts: ModelFacts
    machine: Machine
    tried: Tried | None
    untried: str
    own: OwnPrompts | None
    file: Path
    way: Way
    sizes: Sizes
    data: Sequence[Entry]
    benchmarks: Sequence[Entry]
    unusable: Sequence[str]
    max_length: int
    longest: int
    cut: int
    examples: int
    max_new_tokens: int
    judge: str
    layer: int | str
    seconds: float | None
    known: bool

    @property
    def aligned(self) -> bool:
        """Whether the model refuses toxic prompts as it is."""
        return is_aligned(self.tried)

    @property
    def calibrated(self) -> Sequence[str]:
        """The methods whose replies are compared at one level of safety, too."""
        return _calibrated(self.facts, self.tried)

    @property
    def jobs(self) -> int:
        """Methods that can be worked on side by side."""
        return min(self.machine.devices, 4)


def prompts_file(recipe: Path) -> Path:
    """Where the user's prompts go that belong to a recipe."""
    return recipe.with_name(f"{recipe.stem}-prompts.jsonl")


def choose(
    spec: ModelSpec,
    folder: Path | None,
    said: Said,
    out: Path,
    minutes: float,
    progress: Callable[[str], None] = lambda what: None,
    machine: Machine | None = None,
) -> Choices:
    """Make all choices, and write the user's prompts beside the recipe, with labels and splits.

    Args:
        spec: The model.
        folder: The user's prompt files; None for the starter set.
        said: What the user said of the files.
        out: Where the recipe will be.
        minutes: How long the run should take at most, by estimate; less is trained and evaluated where it would be more.
        progress: Told what is being looked at.
        machine: Where the recipe would be run; here, where none is named.

    Raises:
        DiscernmentError: If the model cannot be found, or the folder holds nothing usable or something unclear.
    """
    file = prompts_file(out)
    own = read_folder(folder, said, file) if folder is not None else None
    progress("the model")
    facts, machine = look_at_model(spec), machine or look_at_machine(spec)
    known = own is None and spec.model == _quickstart()["model"]["model"]
    spec = _with_system(spec, facts, machine)
    facts = facts._replace(chat=facts.chat.with_system(spec.system))
    if own is not None:
        own = _short_enough(own, facts)
        own.prompts.to_jsonl(file)
    data = training_sets(own, file, Sizes())
    sets = {entry.name: entry.load() for entry in data}
    counted = lengths(facts.chat, [*sets["general"], *sets["safety"], *sets["augmentation"]], replies=True)
    longest = max(counted)
    max_length = _rounded(min(longest, LONGEST, facts.positions or LONGEST), facts.positions)
    work = _work(sets, max_length)
    progress("a step without data")
    way = choose_way(spec, facts.chat, machine, work)
    progress("a few prompts")
    tried, untried = _try(spec, machine, facts, sets["contrast_validation"])
    tokens = 16 if machine.device == "cpu" else 64
    layer: int | str = _quickstart()["refine"]["layer"] if known else tried.layer if tried else "auto"
    sizes, took = Sizes(), None
    if tried is not None:
        asked = [entry.load() for entry in test_sets(own, file, sizes.share)[0]]
        methods = (6 if is_aligned(tried) else 4) + len(_calibrated(facts, tried))
        at = layer if isinstance(layer, int) else facts.layers
        expected = seconds(spec, facts, way, work, Asked(asked, tokens, methods), at, tried.speed)
        share, took = _within(minutes, *expected)
        sizes = sizes.scaled(share)
    entries, unusable = test_sets(own, file, sizes.share)
    return Choices(
        spec=spec, facts=facts, machine=machine, tried=tried, untried=untried, own=own, file=file, way=way, sizes=sizes,
        data=training_sets(own, file, sizes), benchmarks=entries, unusable=unusable, max_length=max_length, longest=longest,
        cut=sum(length > max_length for length in counted), examples=len(counted), max_new_tokens=tokens,
        judge=_judge(), layer=layer, seconds=took, known=known,
    )  # fmt: skip


def _calibrated(facts: ModelFacts, tried: Tried | None) -> Sequence[str]:
    """What is refined, and what it is compared with; neither where the template thinks before the reply begins."""
    return () if facts.chat.lead else ("base" if is_aligned(tried) else "stl", "dcr")


def _with_system(spec: ModelSpec, facts: ModelFacts, machine: Machine) -> ModelSpec:
    """The model with an empty system message, where the template's own would take much of the time of a processor."""
    if spec.system is None and facts.own_system and machine.device == "cpu":
        return spec.model_copy(update={"system": ""})
    return spec


def _short_enough(own: OwnPrompts, facts: ModelFacts) -> OwnPrompts:
    """The prompts that the model can read."""
    read = min(LONGEST, facts.positions or LONGEST)
    limit = read - min(REPLY_ROOM, read // 4)
    counted = lengths(facts.chat, own.prompts.prompts, replies=False)
    kept = [p for p, length in zip(own.prompts, counted, strict=True) if length <= limit]
    if len(kept) == len(own.prompts):
        return own
    if not kept:
        raise RecipeError(
            f"Every prompt has more than {limit} tokens; shorten them, or name a model that reads more."
        )
    lost = f"{len(own.prompts) - len(kept)} prompts of more than {limit} tokens"
    return own._replace(prompts=PromptSet(kept, own.prompts.provenance), left_out=[*own.left_out, lost])


def _work(sets: Mapping[str, PromptSet], max_length: int) -> Work:
    """What the stages are given, in full size."""
    mix = [sets["general"], sets["safety"]]
    return Work(
        examples=PromptSet.concatenate(mix, "stl"),
        augmented=PromptSet.concatenate([*mix, sets["augmentation"]], "stl_aug"),
        contrast=sets["contrast"],
        max_length=max_length,
        batch=BATCH,
        steps=Sizes().steps,
    )


def _rounded(length: int, positions: int | None) -> int:
    up = -(-length // STEP) * STEP
    return min(up, positions) if positions else up


def _try(
    spec: ModelSpec, machine: Machine, facts: ModelFacts, prompts: PromptSet
) -> tuple[Tried | None, str]:
    """What the model does with a few prompts; or None, and why it was not tried."""
    needed = facts.parameters * machine.dtype.itemsize
    if needed > USABLE * machine.free:
        return None, "the model is too large to be tried here as it is"
    try:
        return try_model(spec, prompts), ""
    except DiscernmentError as error:
        return None, f"the model could not be tried ({str(error).rstrip('.')})"


def _within(minutes: float, fixed: float, growing: float) -> tuple[float, float]:
    """The largest share whose run takes so many minutes at most, by estimate, else the smallest; and its seconds."""
    took = {share: fixed + share * growing for share in SHARES}
    share = next((s for s in SHARES if SPREAD * took[s] <= 60 * minutes), SHARES[-1])
    return share, took[share]


def _judge() -> str:
    """The encoder judge where `discern judges train` has left one, else the keywords."""
    if not trained_encoder().is_dir():
        return "keywords"
    try:
        _ = JudgeSpec.model_validate("encoder").fingerprint
    except DiscernmentError:
        return "keywords"
    return "encoder"


def _quickstart() -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(built_in()["quickstart"].path.read_text(encoding="utf-8"))
    return content


def write_recipe(text: str, out: Path) -> Recipe:
    """Check a recipe as `discern run` does, and write it."""
    recipe = parse_recipe(read_yaml(text), str(out))
    write_text(out, text)
    return recipe
