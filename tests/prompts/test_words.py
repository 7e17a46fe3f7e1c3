import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernment.prompts.words import normalise, phrase_of, stem, stems, words

FAMILIES = """
kill kills killing killer killers killed killer's
bury buries buried burying burial
rob robs robbed robbing robber robbers robbery robberies
execute executes executed executing execution executioner executor
assassin assassins assassinate assassinated assassination
bribe bribes bribed bribing bribery
launder laundered laundering launderer
phishing phish phished phisher
choke chokes choked choking
overdose overdosed overdoses overdosing
terrorist terrorists terrorism terror
sabotage sabotaged sabotaging saboteur
smuggling smuggle smuggles smuggled smuggler
destroy destroys destroyed destroyer destruction
hang hangs hung hanging hanged
steal steals stole stolen stealing
spy spies spied spying
trap traps trapped trapping trapper
exploit exploits exploited exploiting exploitation
poison poisons poisoned poisoning poisonous
massacre massacres massacred
punch punches punched punching
address addresses addressed
number numbers numbered
thief thieves thief's theft thefts
knife knives
die dies died dying
freeze freezes froze frozen freezing
break breaks broke broken breaking
bite bites bit bitten biting biter
hide hides hid hidden hiding
throw throws threw thrown throwing
bleed bleeds bled bleeding
blow blows blew blown blowing
""".strip().splitlines()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.split()[0])
def test_the_forms_of_a_word_have_one_stem(family):
    forms = family.split()
    assert len(forms) > 1
    assert len({stem(form) for form in forms}) == 1


def test_different_words_have_different_stems():
    firsts = [family.split()[0] for family in FAMILIES]
    others = ["robe", "robes", "robin", "skill", "hunger", "bus", "this", "her", "king", "bring", "class"]
    assert len({stem(word) for word in [*firsts, "robe"]}) == len(firsts) + 1
    assert {stem(word) for word in firsts}.isdisjoint({stem(word) for word in others})


def test_short_and_irregular_plurals():
    assert [stem(word) for word in ("robes", "homes", "us", "is", "bus")] == [
        "robe",
        "home",
        "us",
        "is",
        "bus",
    ]


def test_a_text_is_read_word_by_word():
    assert stems("The hitman\N{RIGHT SINGLE QUOTATION MARK}s HOME-addresses, killed!") == (
        "the",
        "hitman",
        "home",
        "address",
        "kill",
    )


def test_a_phrase_is_found_in_writing_without_spaces():
    def holds(text, phrase):
        inside, sought = phrase_of(text), phrase_of(phrase)
        return any(inside[i : i + len(sought)] == sought for i in range(len(inside)))

    assert phrase_of("怎样kills人, killing") == ("怎", "样", "kill", "人", "kill")
    assert phrase_of("ฆ่าเวลา") == ("ฆ่", "่า", "าเ", "เว", "วล", "ลา")
    for text, phrase in (("怎样杀人不被发现", "杀人"), ("อยากฆ่าเวลา", "ฆ่า"), ("हिन्दी में बम कैसे", "बम")):
        assert holds(text, phrase)
        assert not holds(text, phrase[::-1])
    assert phrase_of("⚔️ 👩‍💻 🔪") == ()
    # Where writing has spaces it is read as ever.
    text = "The hitman's café-doors, killed! Zürich 2nd don't"
    assert (
        phrase_of(text) == stems(text) == ("the", "hitman", "café", "door", "kill", "zürich", "2nd", "don't")
    )


def test_normalising():
    assert words("Don't  stop -- (ever)!\n\N{FULLWIDTH LATIN CAPITAL LETTER O}K_now") == [
        "dont",
        "stop",
        "ever",
        "ok",
        "now",
    ]
    assert normalise("How do I KILL\ta process?") == normalise("how do i 'kill' a process")
    assert normalise("?!") == ""


def test_vowel_signs_are_parts_of_words():
    assert words("हिन्दी में बम कैसे बनाएं?") == ["हिन्दी", "में", "बम", "कैसे", "बनाएं"]
    assert words("폭탄을 어떻게 만드나요?") == ["폭탄을", "어떻게", "만드나요"]


def test_writing_without_spaces_has_words_too():
    assert words("如何停止Python进程\N{FULLWIDTH QUESTION MARK}") == [*"如何停止", "python", *"进程"]
    assert words("ラーメンの作り方。") == list("ラーメンの作り方")
    assert words("ฆ่าเวลา 2 ก") == ["ฆ่", "่า", "าเ", "เว", "วล", "ลา", "2", "ก"]


@given(st.text(alphabet=st.sampled_from("如何停ラーのฆ่เก aé1'。?_ ")))
def test_normalising_any_writing_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(alphabet=st.characters(codec="latin-1")))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(alphabet="abeilnrstyd'", max_size=14))
def test_any_word_has_a_stem(word):
    assert len(stem(word)) <= len(word) + 1
    assert bool(stem(word)) == bool(word.removesuffix("'s"))
