"""A folder of prompt files of one's own, as one set of prompts with labels and splits, and what was taken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discernment.errors import DataError
from discernment.judges import KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.prompts import (
    Columns,
    Label,
    Prompt,
    PromptSet,
    Provenance,
    Split,
    assign_splits,
    find_duplicates,
    split_leaks,
)
from discernment.prompts.columns import label_key, plain_value, read_prompt
from discernment.prompts.tables import PACKED, kind_of, known_endings, read_table
from discernment.prompts.words import normalise
from discernment.runs.first_recipe.recognise import (
    LEFT_OUT,
    PROMPT,
    Given,
    Recognised,
    recognise,
    split_in,
    split_of,
)

SHARES: Mapping[Split, float] = {Split.TRAIN: 0.6, Split.VALIDATION: 0.1, Split.TEST: 0.3}
"""More for the test than a large set needs: the intervals of a small one are wide."""
SHARES_BESIDE_A_TEST: Mapping[Split, float] = {Split.TRAIN: 0.85, Split.VALIDATION: 0.15}
SHARES_BESIDE_VALIDATION: Mapping[Split, float] = {Split.TRAIN: 0.7, Split.TEST: 0.3}
HELD_OUT: Mapping[Split | None, int] = {Split.VALIDATION: 1, Split.TEST: 2}
"""Where a text that is there twice belongs: the test before the validation, and both before training."""
MOST_PROMPTS = 4000
"""So many are drawn of a larger folder; a search for near duplicates goes over all pairs."""
ADVICE: Mapping[str, str] = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".xz", *PACKED), "; unpack it"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "; save it as CSV"),
    ".txt": "; save it as a table with the columns `prompt` and `label`",
}
"""How files that are no tables become some, by their endings."""


class Said(NamedTuple):
    """What the user said of the files of a folder.

    Attributes:
        of_file: What was said of a file, by its name in the folder.
        skipped: Files to leave out.
    """

    of_file: Mapping[str, Given] = {}
    skipped: Collection[str] = ()


class OwnPrompts(NamedTuple):
    """The prompts of a folder.

    Attributes:
        prompts: All that can be used, each with a split; no text is there twice.
        taken: Of each file, what was taken for what.
        left_out: What was left out, and why.
        split: How the prompts came by their splits.
    """

    prompts: PromptSet
    taken: Sequence[str]
    left_out: Sequence[str]
    split: str

    def of(self, split: Split, *labels: Label, replies: bool = False) -> list[Prompt]:
        """The prompts of a split with one of some labels; with `replies`, those that have one."""
        return [
            p for p in self.prompts if p.split is split and p.label in labels and (p.response or not replies)
        ]


def read_folder(folder: Path, said: Said, own: Path | None = None) -> OwnPrompts:
    """Read all tables of a folder, or a single one.

    Args:
        folder: The folder, or a file.
        said: What the user said of the files.
        own: A file that is written later, and never read.

    Raises:
        DataError: If there is nothing usable, a file cannot be read, or it is not clear what it holds.
    """
    tables, left_out = _tables(folder, said, own)
    _check_said(said, tables, folder)
    sets, taken = [], []
    for name, path in tables.items():
        prompts, recognised, lost = _read(name, path, said.of_file.get(name, Given()))
        counts = ", ".join(f"{count} {label}" for label, count in prompts.counts().items())
        taken.append(f"{name}: {recognised.in_words()} ({counts or 'no prompts'})")
        left_out += [f"{name}, {line}" for line in lost]
        sets.append(prompts)
    joined = _without_repeats([p for s in sets if len(s) for p in _called_by_set(sets, s)], left_out)
    if not joined:
        raise DataError(f"{folder} holds no usable prompt; {'; '.join(left_out) or 'its files are empty'}.")
    prompts = PromptSet(joined, Provenance(name=folder.name))
    if len(prompts) > MOST_PROMPTS:
        left_out.append(f"{len(prompts) - MOST_PROMPTS} of {len(prompts)} prompts: {MOST_PROMPTS} were drawn")
        prompts = prompts.sample(MOST_PROMPTS, 0)
    split, how = _with_splits(_apart_from_held_out(prompts, left_out))
    return OwnPrompts(split, taken, left_out, how)


def _tables(folder: Path, said: Said, own: Path | None) -> tuple[dict[str, Path], list[str]]:
    """The tables below a folder by their names in it, and what else lies there."""
    if not folder.exists():
        raise DataError(f"There is no folder {folder}; name one with prompt files ({known_endings()}).")
    paths = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    base = folder.parent if folder.is_file() else folder
    tables, left_out = {}, []
    names = [path.relative_to(base).as_posix() for path in paths]
    if missing := [name for name in said.skipped if name not in names]:
        raise DataError(
            f"{folder} holds no file {missing[0]} that could be skipped; give its path below the folder."
        )
    for name, path in zip(names, paths, strict=True):
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if own is not None and path.resolve() == own.resolve():
            continue
        if name in said.skipped:
            left_out.append(f"{name} (as you said)")
        elif kind_of(name) is None:
            left_out.append(f"{name} (no table of prompts{ADVICE.get(path.suffix.casefold(), '')})")
        else:
            tables[name] = path
    if not tables:
        found = f", only {left_out[0]}" if left_out else ""
        raise DataError(
            f"{folder} holds no prompt file{found}; put prompts there as one of {known_endings()}, or leave `--data` out to "
            "begin with the starter set."
        )
    return tables, left_out


def _check_said(said: Said, tables: Mapping[str, Path], folder: Path) -> None:
    unknown = [name for name in said.of_file if name not in tables]
    if unknown:
        raise DataError(
            f"{folder} holds no prompt file {unknown[0]}, of which something was said; it holds {', '.join(tables)}."
        )


def _read(name: str, path: Path, given: Given) -> tuple[PromptSet, Recognised, list[str]]:
    """The prompts of a file, what its columns were taken for, and what of it was left out."""
    wanted = (given.columns["text"],) if "text" in given.columns else PROMPT
    table = read_table(path, wanted=wanted)
    rows = list(table.rows)
    if not rows:
        raise DataError(f"{path} has no prompts at all; fill it or leave it out by `--skip {name}`.")
    _check_flat(path, [row for _, row in rows])
    found = recognise(name, [row for _, row in rows], given)
    lost: Counter[str] = Counter()
    kept = [(n, row) for n, row in rows if not _unusable(row, found, lost)]
    ids = [key for _, row in kept if (key := plain_value(row.get("id"))) is not None]
    numbered = len({*map(str, ids)}) < len(ids)
    columns = Columns(
        text=found.text,
        label=found.label,
        fixed_label=found.fixed_label,
        label_map={value: label for value, label in found.meanings.items() if label != LEFT_OUT},
        response=found.response or "",
        split="",
        **({"id": "", "partner": ""} if numbered else {}),
    )
    provenance = Provenance.of_file(path)
    read = [
        (read_prompt(row, n, f"{path}, {table.unit} {n},", provenance.name, columns), row) for n, row in kept
    ]
    prompts = [
        p.model_copy(update={"split": split_of(row.get(found.split)) if found.split else split_in(name)})
        for p, row in read
    ]
    usable = list(_without_wrong_replies(prompts, lost))
    return PromptSet(usable, provenance), found, [f"{what}: {count}" for what, count in lost.items()]


def _check_flat(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One object that holds all prompts, rows or whole columns, in a list or a mapping of its own is no table."""
    if len(rows) > 1 or any(isinstance(rows[0].get(name), str) for name in PROMPT):
        return
    for column, value in rows[0].items():
        turns = isinstance(value, list) and any(
            isinstance(v, dict) and {"role", "from"} & {*v} for v in value
        )
        if isinstance(value, list | dict) and value and not turns:
            kind = "mapping" if isinstance(value, dict) else "list"
            raise DataError(
                f"{path} is one object, in which `{column}` holds a {kind} of {len(value)}; write an object for each prompt, "
                "with its columns as keys, all of them in one list or one a line."
            )


def _unusable(row: Mapping[str, Any], found: Recognised, lost: Counter[str]) -> bool:
    """Whether a row is to be left out; the reason is counted."""

    def empty(column: str) -> bool:
        value = plain_value(row.get(column))
        return value is None or (isinstance(value, str) and not value.strip())

    why = None
    if empty(found.text):
        why = "rows without a prompt"
    elif found.label is not None and empty(found.label):
        why = "rows without a label"
    elif found.label is not None and _meant(found, row[found.label]) == LEFT_OUT:
        why = f"rows whose `{found.label}` you left out"
    if why is not None:
        lost[why] += 1
    return why is not None


def _meant(found: Recognised, value: Any) -> str | None:
    key = label_key(value)
    return next((label for said, label in found.meanings.items() if label_key(said) == key), None)


def _without_wrong_replies(prompts: Sequence[Prompt], lost: Counter[str]) -> Iterator[Prompt]:
    """Take away replies that no method should learn: to toxic prompts what is no refusal, to others what is one."""
    judge = KeywordJudge()
    for prompt in prompts:
        if prompt.response:
            verdict = judge.judge(prompt.text, prompt.response)
            if prompt.label.should_refuse and verdict is not Verdict.REFUSAL:
                lost["replies to toxic prompts that are no refusals, which are not learned from"] += 1
                prompt = prompt.model_copy(update={"response": None})
            elif not prompt.label.should_refuse and verdict is not Verdict.COMPLIANCE:
                lost["replies to harmless prompts that refuse, which are not learned from"] += 1
                prompt = prompt.model_copy(update={"response": None})
        yield prompt


def _called_by_set(sets: Sequence[PromptSet], one: PromptSet) -> Iterator[Prompt]:
    """The prompts of a set; where there are several sets, ids and partners get its number in front."""
    if len(sets) == 1:
        yield from one
        return
    number = next(n for n, s in enumerate(sets, start=1) if s is one)
    for prompt in one:
        ids = {"id": f"{number}/{prompt.id}", "partner": prompt.partner and f"{number}/{prompt.partner}"}
        yield prompt.model_copy(update=ids)


def _without_repeats(prompts: Sequence[Prompt], left_out: list[str]) -> list[Prompt]:
    """Each text once, the most held out, then the one with a reply; two labels for one text are a mistake."""
    kept: dict[str, Prompt] = {}
    keys: dict[str, str] = {}
    partners: dict[str, str] = {}
    for prompt in prompts:
        key = normalise(prompt.whole) or prompt.whole
        keys[prompt.id] = key
        if prompt.partner:
            partners.setdefault(key, prompt.partner)
        before = kept.setdefault(key, prompt)
        if before.label is not prompt.label:
            raise DataError(
                f"The prompt {prompt.text[:60]!r} is {before.label} in {before.source} and {prompt.label} in {prompt.source}; "
                "mend one of the two."
            )
        kept[key] = max(before, prompt, key=lambda p: (HELD_OUT.get(p.split, 0), bool(p.response)))
    if len(kept) < len(prompts):
        left_out.append(f"{len(prompts) - len(kept)} prompts that are there twice")

    def matched(key: str, prompt: Prompt) -> Prompt:
        """The prompt with a partner that is kept: its own or a repeat's."""
        partner = prompt.partner or partners.get(key)
        if partner in keys:
            partner = kept[keys[partner]].id
        return prompt.model_copy(update={"partner": None if partner == prompt.id else partner})

    return [matched(key, prompt) for key, prompt in kept.items()]


def _apart_from_held_out(prompts: PromptSet, left_out: list[str]) -> PromptSet:
    """Without prompts of no split that hang together with one that the files hold out: training would give it away."""
    from discernment.prompts.clusters import linked

    splits = {p.split for p in prompts}
    if None not in splits or splits.isdisjoint(HELD_OUT):
        return prompts
    position = {p.id: n for n, p in enumerate(prompts)}
    links = [(leak.train, leak.held_out) for leak in split_leaks(prompts, prompts)]
    links += [(copy.first, copy.second) for copy in find_duplicates([prompts])]
    groups = linked([(position[a.id], position[b.id]) for a, b in links], len(prompts))
    held_out = {group for group, p in zip(groups, prompts, strict=True) if p.split in HELD_OUT}
    kept = [p for group, p in zip(groups, prompts, strict=True) if p.split or group not in held_out]
    if len(kept) < len(prompts):
        left_out.append(
            f"{len(prompts) - len(kept)} prompts without a split that share a frame, key word, pair or text with your test or validation"
        )
    return PromptSet(kept, prompts.provenance)


def _with_splits(prompts: PromptSet) -> tuple[PromptSet, str]:
    """The prompts with a split each, and how they came by it: their own splits go first."""
    test = [p for p in prompts if p.split is Split.TEST]
    rest = [p for p in prompts if p.split is not Split.TEST]
    filled = [p if p.split else p.model_copy(update={"split": Split.TRAIN}) for p in prompts]
    unwatched = [p for p in rest if p.split is not Split.VALIDATION]
    try:
        if not test and 0 < len(unwatched) < len(rest):
            dealt = {
                p.id: p
                for p in assign_splits(PromptSet(unwatched, prompts.provenance), SHARES_BESIDE_VALIDATION)
            }
            split = PromptSet([dealt.get(p.id, p) for p in prompts], prompts.provenance)
            return (
                split,
                "the validation as the files say, the rest, which has no test, split 70/30 into train and test",
            )
        if not test:
            return assign_splits(prompts, SHARES), (
                "split 60/10/30 into train, validation and test, so that no near copy stands on two sides"
            )
        if not rest or any(p.split is Split.VALIDATION for p in rest):
            # What says nothing may be trained on: the test is named.
            return PromptSet(filled, prompts.provenance), "split as the files say"
        dealt = {p.id: p for p in assign_splits(PromptSet(rest, prompts.provenance), SHARES_BESIDE_A_TEST)}
        split = PromptSet([dealt.get(p.id, p) for p in prompts], prompts.provenance)
        return split, "the test as the files say, the rest split 85/15 into train and validation"
    except DataError:  # fewer prompts, or groups that hang together, than splits
        if test:
            said = "the test as the files say, the rest, too few to split, for training"
            return PromptSet(filled, prompts.provenance), said
        alone = [p.model_copy(update={"split": Split.TEST}) for p in prompts]
        return PromptSet(alone, prompts.provenance), "too few to split, so all are kept for the test"
