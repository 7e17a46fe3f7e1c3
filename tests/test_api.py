"""The names that the package offers at its top, and what the documents say of them and of recipes."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import discernment
from discernment import AlignOptions, ModelSpec, PromptSource, Recipe, RefineOptions
from discernment.judges import JudgeSpec
from discernment.prompts import CatalogueEntry
from discernment.runs.recipe import EvaluationPlan, MethodEntry, TrainingData
from discernment.training.losses import LossOptions

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


ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").rglob("*.md"),
]


def tables(heading):
    """The rows `key -> default` of the tables under a heading of docs/recipes.md."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section[1], re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def shown(field):
    """How the document writes a field's default."""
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    if isinstance(default, JudgeSpec):
        return f"`{default.kind}`"
    if isinstance(default, dict | LossOptions | TrainingData):
        return "`{}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


@pytest.mark.parametrize(
    ("headings", "model", "said_in_words"),
    [
        (["Top level"], Recipe, {"data"}),
        (["`model`"], ModelSpec, set()),
        (["`data`"], TrainingData, set()),
        (["Prompt sources"], PromptSource, set()),
        (["`refine`", "Options of both stages"], RefineOptions, {"seed", "layer"}),
        (["`align`", "Options of both stages"], AlignOptions, {"seed"}),
        (["`methods`"], MethodEntry, {"name"}),
        (["`evaluate`"], EvaluationPlan, {"reference"}),
        (["`judge`"], JudgeSpec, set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_key_of_a_recipe_is_documented_with_its_default(headings, model, said_in_words):
    rows = {key: default for heading in headings for key, default in tables(heading).items()}
    if model is RefineOptions:
        for key, field in LossOptions.model_fields.items():
            assert rows.pop(key) == shown(field), key
    assert rows.keys() == model.model_fields.keys()
    for key in rows.keys() - said_in_words:
        field = model.model_fields[key]
        assert rows[key] == ("required" if field.is_required() else shown(field)), key


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in slugs, target


def test_python_in_the_documents_uses_names_that_there_are():
    blocks = [
        b for d in DOCUMENTS for b in re.findall(r"```python\n(.*?)```", d.read_text("utf-8"), re.DOTALL)
    ]
    imports = [
        (node.module, alias.name)
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(imports) > 30
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), (module, name)
    used = {name for module, name in imports if module == "discernment"}
    named = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert {name for name in LAZY if name not in named} == set()
    assert len(used) > 15


def test_yaml_in_the_documents_is_valid():
    (own,) = re.findall(r"```yaml\n(.*?)```", DOCUMENTS[0].read_text("utf-8"), re.DOTALL)
    recipe = Recipe.model_validate(yaml.safe_load(own))
    assert recipe.reference == "stl"
    (ablation,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text("utf-8"), re.DOTALL)
    methods = [MethodEntry.model_validate(m) for m in yaml.safe_load(ablation)["methods"]]
    assert len({m.label for m in methods}) == len(methods) == 4
    (entry,) = re.findall(r"```yaml\n(.*?)```", DOCUMENTS[1].read_text("utf-8"), re.DOTALL)
    ((name, fields),) = yaml.safe_load(entry).items()
    assert CatalogueEntry(name=name, **fields).rows == 300
