"""Which generated texts are kept: sound ones, each once."""

from collections import Counter
from collections.abc import Callable, Sequence

from discernment.prompts import Prompt, PromptSet, Provenance, find_duplicates


def usable(
    found: Sequence[Prompt], fault_of: Callable[[str], str | None], against: Sequence[Prompt]
) -> tuple[list[Prompt], Counter[str]]:
    """Those without a fault that repeat neither an earlier one nor one of `against`, and why the others were dropped.

    Args:
        found: Generated texts, in order.
        fault_of: Says what is wrong with a text; None if nothing is.
        against: Prompts that they must not repeat.
    """
    dropped: Counter[str] = Counter()
    sound: dict[str, Prompt] = {}
    for prompt in found:
        reason = fault_of(prompt.text) or ("exact duplicate" if prompt.text in sound else None)
        if reason:
            dropped[reason] += 1
        else:
            sound[prompt.text] = prompt
    known = PromptSet(
        [p.model_copy(update={"id": str(n)}) for n, p in enumerate(against)], Provenance(name="seeds")
    )
    gone: set[str] = set()
    for pair in find_duplicates([known, PromptSet(sound.values(), Provenance(name="new"))]):
        second_is_new = pair.second_set == "new" and pair.second.text not in gone
        first_stays = pair.across_sets or pair.first.text not in gone
        if second_is_new and first_stays:
            gone.add(pair.second.text)
            dropped["like a seed" if pair.across_sets else f"{pair.likeness} duplicate"] += 1
    return [prompt for text, prompt in sound.items() if text not in gone], dropped
