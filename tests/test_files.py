"""A file is the old one or the new one, an append may be torn, and a hash knows content from form."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.errors import DataError
from discernment.files import (
    append_json_lines,
    content_hash,
    read_json,
    read_json_lines,
    replace_directory,
    write_json,
    write_json_lines,
    write_text,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


def rows(path, **options):
    return [value for _, value in read_json_lines(path, **options)]


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (write_text, "half a pair: \ud83d"),
        (write_json, {"loss": float("nan")}),
        (write_json_lines, [{"a": 1}, {"b": object()}]),
    ],
)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, write, value):
    path = tmp_path / "kept.json"
    write_text(path, "old\n")
    with pytest.raises((ValueError, TypeError)):
        write(path, value)
    assert path.read_text() == "old\n"
    write_text(path, "new\n")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new\n"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json_lines(path, [{"n": 0}])

    def slow():
        for n in range(1, 4):
            assert rows(path) == [{"n": 0}]
            yield {"n": n}

    write_json_lines(path, slow())
    assert rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


@given(st.lists(VALUES, max_size=5))
@settings(deadline=None)
def test_json_lines_read_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    write_json_lines(path, values)
    assert rows(path) == values
    append_json_lines(path, values)
    assert rows(path) == [*values, *values]


@pytest.mark.parametrize("kept", range(1, len('{"text": "🎈"}'.encode()) + 1))
def test_a_torn_append_costs_its_own_row_only(tmp_path, kept):
    path = tmp_path / "log.jsonl"
    append_json_lines(path, [{"text": "one"}])
    whole = path.read_bytes()
    path.write_bytes(whole + '{"text": "🎈"}'.encode()[:kept])
    assert rows(path, allow_torn_end=True) == [{"text": "one"}]
    append_json_lines(path, [{"text": "two"}])
    assert rows(path) == [{"text": "one"}, {"text": "two"}]


def test_only_the_end_may_be_torn(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 3, is not JSON"):
        rows(path, allow_torn_end=True)
    path.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(DataError, match=r"log\.jsonl, line 2, is not JSON"):
        rows(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    latin = tmp_path / "latin.json"
    latin.write_bytes("{'a': 'ä'}".encode("latin-1"))
    for read in (read_json, rows):
        with pytest.raises(DataError, match=r"There is no file .*nowhere\.json"):
            read(tmp_path / "nowhere.json")
        with pytest.raises(DataError, match=r"latin\.json, line 1, is not UTF-8"):
            read(latin)


@given(st.dictionaries(st.text("abcdef"), VALUES, max_size=6), st.randoms())
@settings(deadline=None)
def test_a_content_hash_ignores_key_order_and_layout(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert content_hash({key: value[key] for key in keys}) == content_hash(value)
    assert content_hash(json.loads(json.dumps(value, indent=3))) == content_hash(value)
    assert content_hash([value, 1]) != content_hash([value, 2])
    assert content_hash([value, keys]) == content_hash((value, tuple(keys)))


def test_content_hashes_tell_values_apart():
    values = [None, False, 0, "", "0", [], {}, [0], ["0"], {"0": 0}, 1.5, -1]
    assert len({content_hash(v) for v in values}) == len(values)


def test_a_directory_takes_the_place_of_another(tmp_path):
    part, final = tmp_path / "x.part", tmp_path / "x"
    for folder, name in ((part, "new"), (final, "old")):
        folder.mkdir()
        (folder / name).touch()
    replace_directory(part, final)
    assert [p.name for p in final.iterdir()] == ["new"]
    assert not part.exists()
