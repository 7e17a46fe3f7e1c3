"""Everything that can make a prompt set measure the wrong thing, in one report."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, count

from discernment.errors import DataError
from discernment.prompts.duplicates import Duplicate, find_duplicates
from discernment.prompts.leaks import LabelLeaks, label_leaks
from discernment.prompts.prompt import Split
from discernment.prompts.prompt_set import PromptSet
from discernment.prompts.split import SplitLeak, split_leaks


@dataclass(frozen=True)
class CheckReport:
    """What `check_sets` found.

    Attributes:
        sets: The names of the sets.
        duplicates: Prompts that repeat one another, within a set and across sets.
        split_leaks: What an earlier split gives away of a later one (train, validation, test), over all sets.
        label_leaks: What the surface gives away of the labels; None if it cannot be measured.
        unmeasured: Why not.
    """

    sets: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    split_leaks: tuple[SplitLeak, ...]
    label_leaks: LabelLeaks | None
    unmeasured: str | None = None

    @property
    def crossing(self) -> tuple[Duplicate, ...]:
        """The duplicates that stand in two sets or in two splits."""
        return tuple(d for d in self.duplicates if d.crosses)

    @property
    def is_clean(self) -> bool:
        """Whether nothing that is held out is seen elsewhere: no split leak, no duplicate across sets or splits."""
        return not (self.split_leaks or self.crossing)


def check_sets(sets: Sequence[PromptSet], *, seed: int = 0) -> CheckReport:
    """Look for duplicates, split leaks and label leaks.

    Args:
        sets: The sets that are to be used together.
        seed: Of the bootstrap in the label leaks.

    Raises:
        DataError: If there is no set.
    """
    if not sets:
        raise DataError("There is nothing to check; name at least one prompt set.")
    prompts = PromptSet.concatenate(_numbered(sets), "all").prompts
    leaks, unmeasured = None, None
    try:
        leaks = label_leaks(prompts, seed=seed)
    except DataError as error:
        unmeasured = str(error)
    by_split = {split: [p for p in prompts if p.split is split] for split in Split}
    return CheckReport(
        sets=tuple(s.provenance.name for s in sets),
        duplicates=tuple(find_duplicates(sets)),
        split_leaks=tuple(
            leak
            for earlier, later in combinations(Split, 2)
            for leak in split_leaks(by_split[earlier], by_split[later])
        ),
        label_leaks=leaks,
        unmeasured=unmeasured,
    )


def _numbered(sets: Sequence[PromptSet]) -> list[PromptSet]:
    """The sets under names by which partners are found in the parts of one set and in no other.

    Parts get one number, so that a pair which they part is seen; where they repeat an id, the set is there once more.
    """
    parts: dict[tuple[tuple[str | None, ...], int], list[PromptSet]] = defaultdict(list)
    wholes = []
    for s in sets:
        ids, origin = {p.id for p in s}, s.provenance.origin
        times = next(
            n for n in count() if all(ids.isdisjoint(p.id for p in part) for part in parts[origin, n])
        )
        parts[origin, times].append(s)
        wholes.append((origin, times))
    numbers = {whole: number for number, whole in enumerate(parts, start=1)}
    named = []
    for s, whole in zip(sets, wholes, strict=True):
        alone = len({part.provenance.name for part in parts[whole]}) == 1
        name = s.provenance.name if alone else whole[0][0]
        named.append(s.renamed(f"{name} ({numbers[whole]})"))
    return named
