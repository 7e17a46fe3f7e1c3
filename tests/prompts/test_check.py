import pytest

from discernment.errors import DataError
from discernment.prompts.check import check_sets
from discernment.prompts.prompt import Label, Prompt, Split
from discernment.prompts.prompt_set import PromptSet, Provenance


def prompt(number, text, split=None, label=Label.TOXIC, source="s", **fields):
    return Prompt(id=str(number), text=text, label=label, source=source, split=split, **fields)


def made(name, *prompts):
    return PromptSet(prompts, Provenance(name=name))


def test_a_clean_set():
    report = check_sets([made("a", prompt(1, "Draw a tree."), prompt(2, "Sing a song."))])
    assert report.is_clean
    assert report.sets == ("a",)
    assert report.duplicates == report.split_leaks == ()
    assert report.label_leaks is None
    assert "cannot be measured" in (report.unmeasured or "")


def test_repeats_within_a_set_are_shown_but_no_leak():
    report = check_sets([made("a", prompt(1, "Draw a tree."), prompt(2, "Draw a tree."))])
    assert len(report.duplicates) == 1
    assert report.crossing == ()
    assert report.is_clean


def test_a_set_that_is_named_twice_repeats_itself():
    one = made("a", prompt(1, "Draw a tree.", Split.TRAIN), prompt(2, "Sing.", Split.TEST, partner="3"))
    report = check_sets([one, one])
    assert report.sets == ("a", "a")
    assert [d.across_sets for d in report.duplicates] == [True, True]
    assert report.split_leaks == ()


def test_ids_are_those_of_one_set():
    text = "Tell me how people kill the weeds in a garden."
    # A.1's partner is called 2, and so is a copy of it in another set.
    mine = made(
        "a", prompt(1, text, partner="2"), prompt(2, "Tell me how people kill in a garden at night, please.")
    )
    other = made("b", prompt(2, text + " Please."), prompt(3, "Sing."))
    (found,) = check_sets([mine, other]).duplicates
    assert found.across_sets
    # B.2's partner is called 1, is held out with it, and no prompt of A.
    train = made("a", prompt(1, "Draw a tree.", Split.TRAIN))
    test = made("b", prompt(1, "Sing a song.", Split.TEST), prompt(2, "Hum a tune.", Split.TEST, partner="1"))
    assert check_sets([train, test]).split_leaks == ()


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "ids clash"])
def test_partners_are_found_in_the_parts_of_one_set(renamed, beside):
    one = made("a", prompt(1, "Draw.", Split.TRAIN, partner="2"), prompt(2, "Sing.", Split.TEST, partner="1"))
    parts = [one.with_split(split) for split in (Split.TRAIN, Split.TEST)]
    if renamed:  # as the command line does
        parts = [part.renamed(f"a:{part[0].split}") for part in parts]
    other = [made("b", prompt(1, "Hum.", Split.TRAIN), prompt(2, "Dance.", Split.TRAIN))] * beside
    named = "a (1)/" if beside else ""
    for sets in ([*parts, *other], [one, *other]):
        (leak,) = check_sets(sets).split_leaks
        assert (leak.kind, leak.train.text, leak.held_out.text) == ("partner", "Draw.", "Sing.")
        assert (leak.value, leak.held_out.id) == (f"{named}1", f"{named}2")


def test_a_set_beside_a_part_of_itself_is_there_twice():
    one = made("a", prompt(1, "Draw.", Split.TRAIN, partner="2"), prompt(2, "Sing.", Split.TEST, partner="1"))
    report = check_sets([one.with_split(Split.TEST).renamed("a:test"), one])
    assert [d.across_sets for d in report.duplicates] == [True]
    assert [(leak.value, leak.held_out.id) for leak in report.split_leaks] == [("1", "a (2)/2")]


def test_repeats_across_splits_or_sets_are_leaks():
    across_splits = made("a", prompt(1, "Draw a tree.", Split.TRAIN), prompt(2, "Draw a tree.", Split.TEST))
    across_sets = [made("a", prompt(1, "Draw a tree.")), made("b", prompt(1, "Draw a tree!"))]
    for report in (check_sets([across_splits]), check_sets(across_sets)):
        assert len(report.crossing) == 1
        assert not report.is_clean


@pytest.mark.parametrize(
    ("seen", "held_out", "count"),
    [
        (Split.TRAIN, Split.TEST, 1),
        (Split.TRAIN, Split.VALIDATION, 1),
        (Split.VALIDATION, Split.TEST, 1),
        (Split.TEST, Split.TRAIN, 0),
        (Split.TRAIN, Split.TRAIN, 0),
        (None, Split.TEST, 0),
    ],
)
def test_split_leaks_over_all_sets(seen, held_out, count):
    report = check_sets(
        [
            made("a", prompt(1, "Who is the killer?", seen)),
            made("b", prompt(2, "Kill him.", held_out, keyword="kill")),
        ]
    )
    assert [(leak.value, leak.train.id, leak.held_out.id) for leak in report.split_leaks] == [
        ("kill", "1", "2")
    ] * count
    assert report.is_clean == (count == 0)


def test_label_leaks_over_all_sets():
    sets = [
        made(
            source,
            *(
                prompt(
                    f"{source}{label}{n}",
                    f"word{n} {'bad' if label is Label.TOXIC else 'good'} word{n + 1}",
                    None,
                    label,
                    source,
                )
                for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC)
                for n in range(12)
            ),
        )
        for source in "abc"
    ]
    report = check_sets(sets, seed=5)
    assert report.label_leaks is not None
    assert report.label_leaks.bag_of_words.auroc > 0.95
    assert report.unmeasured is None
    assert report.label_leaks == check_sets(sets, seed=5).label_leaks


def test_nothing_to_check():
    with pytest.raises(DataError, match="nothing to check"):
        check_sets([])
