"""The names that the package offers at its top."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import discernment

LAZY = sorted(set(discernment.__all__) - {"__version__"})


def names_for_type_checkers():
    """Which module each name comes from, as type checkers see it."""
    tree = ast.parse(Path(discernment.__file__).read_text(encoding="utf-8"))
    guarded = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    assert len(guarded) == 1
    return {
        alias.name: node.module
        for node in guarded[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_see_every_name():
    assert len(LAZY) > 20
    assert sorted(names_for_type_checkers()) == LAZY


@pytest.mark.parametrize("name", LAZY)
def test_a_name_is_what_type_checkers_take_it_for(name):
    home = importlib.import_module(names_for_type_checkers()[name])
    assert getattr(discernment, name) is getattr(home, name)
    assert name in dir(discernment)
    assert getattr(discernment, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'discernment' has no attribute 'refine_all'"):
        _ = discernment.refine_all
    with pytest.raises(ImportError, match="refine_all"):
        exec("from discernment import refine_all")


def test_a_submodule_can_be_imported_from_the_top():
    from discernment import errors

    assert errors.DiscernmentError is discernment.DiscernmentError


@pytest.mark.parametrize(
    "statement",
    ["import discernment", "from discernment import Label, PromptSet, PromptSource, load_source"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement):
    heavy = ["torch", "transformers", "sklearn", "scipy", "matplotlib", "datasets"]
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
