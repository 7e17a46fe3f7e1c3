"""The names that the package offers at its top, and what the documents say of them and of recipes."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import discernment
from discernment import AlignOptions, ModelSpec, PromptSource, Recipe, RefineOptions
from discernment.evaluation.evaluate import Sampling
from discernment.judges import JudgeSpec
from discernment.methods.method import find_method, known_methods
from discernment.methods.think_first import ReflectionOptions
from discernment.models.model_spec import EndpointOptions
from discernment.policies.rule import find_rule
from discernment.runs.plans import EvaluationPlan
from discernment.runs.recipe import MethodEntry, TrainingData
from discernment.training.options import LoraOptions, LossOptions, OptimizerOptions
from discernment.training.replies import ReplyOptions

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


def section(heading):
    """What stands under a heading of docs/recipes.md."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def tables(heading):
    """The rows `key -> default` of the tables under a heading of docs/recipes.md."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section(heading), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def shown(field):
    """How the document writes a field's default."""
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    if isinstance(default, JudgeSpec):
        return f"`{default.kind}`"
    if isinstance(default, dict | LossOptions | TrainingData | EndpointOptions):
        return "`{}`"
    if isinstance(default, float) and "e" in str(default):  # which YAML reads as a text
        default = f"{default:.9f}".rstrip("0")
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
        (["`sampling`"], Sampling, set()),
        (["`judge`"], JudgeSpec, set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_key_of_a_recipe_is_documented_with_its_default(headings, model, said_in_words):
    rows = {key: default for heading in headings for key, default in tables(heading).items()}
    inner = {
        RefineOptions: [LossOptions, LoraOptions],
        AlignOptions: [LoraOptions],
        ModelSpec: [EndpointOptions],
    }
    for options in inner.get(model, []):
        for key, field in options.model_fields.items():
            assert rows.pop(key) == shown(field), key
    assert rows.keys() == model.model_fields.keys()
    for key in rows.keys() - said_in_words:
        field = model.model_fields[key]
        assert rows[key] == ("required" if field.is_required() else shown(field)), key


def test_every_method_is_in_the_table_with_what_it_stands_on():
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*?) ?\|$", section("Built-in methods"), re.MULTILINE)
    found = {name: on.strip("`") or None for names, on in rows for name in re.findall(r"`(\w+)`", names)}
    assert found == {name: find_method(name).on for name in known_methods()}


def test_every_option_of_a_rule_is_documented_with_its_default():
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    section = re.search(r"^## Options of rules$(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)[1]
    parts = dict(re.findall(r"^### `(\w+)`$(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    rules = groups["discernment.decoding_rules"] | groups["discernment.steering_rules"]
    assert parts.keys() == rules.keys()
    for name, value in rules.items():
        module, _, kind = value.partition(":")
        fields = getattr(importlib.import_module(module), kind).model_fields
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", parts[name], re.MULTILINE)
        assert [key for key, _ in rows] == list(fields)
        for key, default in rows:
            if key not in {"system", "safety"}:  # whose defaults are long
                assert default == shown(fields[key]), (name, key)


def test_every_option_of_a_method_is_documented_with_its_default():
    found = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \|", section("Options of methods"), re.MULTILINE)
    rows = {(method, key): default for method, key, default in found}
    assert len(rows) == len(found)
    expected = {}
    for name in known_methods():
        kind = find_method(name).options_type
        above = [other for other in kind.__mro__ if not issubclass(OptimizerOptions, other)]
        own = {key for other in above for key in vars(other).get("__annotations__", {})}
        for key, field in kind.model_fields.items():
            if key in own:
                expected[name, key] = "`{}`" if isinstance(field.default_factory, type) else shown(field)
    assert len(expected) > 10
    assert rows == expected
    assert tables("Replies of the base model") == {
        key: shown(field) for key, field in ReplyOptions.model_fields.items()
    }
    assert ReflectionOptions().max_tokens == 48  # as the document says


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
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text("utf-8"), re.DOTALL)
    labels = []
    for block in found:
        content = yaml.safe_load(block)
        assert Recipe.model_validate(yaml.safe_load(own) | content)
        if "methods" not in content:
            continue
        methods = [MethodEntry.model_validate(m) for m in content["methods"]]
        for method in methods:
            if method.rule:
                find_rule(method.method, method.rule)
        labels.append([m.label for m in methods])
    assert [len(set(of)) for of in labels] == [len(of) for of in labels] == [4, 3, 3, 3, 3]


def resolve(dotted):
    """What a dotted name stands for, from the package on."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(f"discernment.{'.'.join(parts[:length])}")
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AttributeError(dotted)


def in_backticks(path):
    """What stands in single backticks, outside of blocks of code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize(("document", "least"), [("architecture", 80), ("statistics", 12), ("ability", 4)])
def test_names_of_the_code_are_names_that_there_are(document, least):
    names = [n for n in in_backticks(ROOT / f"docs/{document}.md") if re.fullmatch(r"\w+(\.\w+)+", n)]
    names = [n for n in names if n.rpartition(".")[2] not in ("html", "json", "jsonl", "toml", "yaml")]
    assert len(names) >= least
    for name in names:
        assert resolve(name) is not None, name


def test_the_picture_of_the_rooms_is_the_order_that_is_held():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    levels = []
    for line in picture.splitlines():
        bracket, room = re.match(r" ([ ┌│└]) (\w+)  ", line).groups()
        if bracket in " ┌":
            levels.append([])
        levels[-1].append(room)
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = held["tool"]["importlinter"]["contracts"][0]["layers"]
    assert levels == [re.findall(r"discernment\.(\w+)", layer) for layer in layers]
    inside = [p for p in (ROOT / "src/discernment").iterdir() if p.suffix in ("", ".py")]
    there = {path.stem for path in inside if not path.name.startswith("_")}
    assert there == {room for level in levels for room in level}


def test_files_of_the_code_are_files_that_there_are():
    named = [
        (path, name)
        for path in DOCUMENTS
        for name in in_backticks(path)
        if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|yaml|toml)", name)
    ]
    assert len(named) > 20
    for path, name in named:
        assert any((place / name).is_file() for place in (ROOT, ROOT / "src/discernment", path.parent)), name
