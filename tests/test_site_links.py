"""What the site makes of the links and the names of the documents."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import discernment

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(f"website_{name}", ROOT / f"website/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


hooks = load("hooks")
HOST = "https://host/us/it"


@pytest.mark.parametrize(
    ("link", "source", "page", "expected"),
    [
        ("[x](data.md#suites)", "docs/recipes.md", "recipes.md", "[x](data.md#suites)"),
        ("[x](../api.md)", "docs/decisions/1.md", "decisions/1.md", "[x](../api.md)"),
        ("[x](docs/data.md)", "README.md", "index.md", "[x](data.md)"),
        ("![x](docs/images/report.png)", "README.md", "index.md", "![x](images/report.png)"),
        ("[x](../CONTRIBUTING.md#add-a-judge)", "docs/api.md", "api.md", "[x](contributing.md#add-a-judge)"),
        ("[x](docs/api.md)", "CONTRIBUTING.md", "contributing.md", "[x](api.md)"),
        ("[x](../README.md)", "docs/api.md", "api.md", "[x](index.md)"),
        ("[data.md](data.md#suites)", "docs/recipes.md", "recipes.md", "[Prompts](data.md#suites)"),
        ("[x](#suites)", "docs/data.md", "data.md", "[x](#suites)"),
        ("[x](https://host/y)", "docs/data.md", "data.md", "[x](https://host/y)"),
    ],
)
def test_a_link_to_a_page_leads_to_the_page(link, source, page, expected):
    assert hooks.relink(link, source, page, None) == expected
    assert hooks.relink(link, source, page, HOST) == expected


def test_a_link_to_what_is_no_page_leads_to_the_repository_or_shows_the_path():
    link = "the recipe [`study`](../src/discernment/runs/recipes/study.yaml), and"
    path = "src/discernment/runs/recipes/study.yaml"
    assert (
        hooks.relink(link, "docs/a.md", "a.md", HOST) == f"the recipe [`study`]({HOST}/blob/HEAD/{path}), and"
    )
    assert hooks.relink(link, "docs/a.md", "a.md", None) == f"the recipe `study` (`{path}`), and"


def test_code_is_left_as_it_is():
    text = "```python\nx = [y](../z.py)\n```\n"
    assert hooks.relink(text, "docs/a.md", "a.md", None) == text


def test_a_folder_in_the_navigation_is_its_pages(tmp_path):
    (tmp_path / "decisions").mkdir()
    for name in ("0002-b.md", "0001-a.md"):
        (tmp_path / "decisions" / name).touch()
    found = hooks._with_folders([{"Inside": [{"Decisions": "decisions/"}]}, "a.md"], tmp_path)
    assert found == [{"Inside": [{"Decisions": ["decisions/0001-a.md", "decisions/0002-b.md"]}]}, "a.md"]


def test_the_reference_has_every_public_name():
    page = hooks.reference()
    names = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    assert len(names) == len(set(names)) > 40
    assert {f"discernment.{name}" for name in discernment.__all__} - set(names) == {"discernment.__version__"}
    for name in (
        "prompts.check_sets",
        "policies.rule.SteeringRule",
        "runs.seeds.run_seeds",
        "errors.DiskError",
    ):
        assert f"discernment.{name}" in names
    for name in names:
        home, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(home), last).__doc__, name


def test_a_field_is_documented_by_its_description():
    import griffe

    source = (
        "class Options(Frozen):\n"
        '    steps: int = Field(150, ge=1, description="At most so many.")\n'
        "    loss: Loss = Field(default_factory=Loss)\n"
        '    layer: int = Field(description="The last one.")\n'
        "    other: int = 3\n"
    )
    extensions = griffe.load_extensions(load("fields").FieldDescriptions())
    with griffe.temporary_visited_module(source, extensions=extensions) as module:
        members = module["Options"].members
        said = {name: (m.docstring and m.docstring.value, m.value) for name, m in members.items()}
    assert {name: (text, value if value is None else str(value)) for name, (text, value) in said.items()} == {
        "steps": ("At most so many.", "150"),
        "loss": (None, "Loss()"),
        "layer": ("The last one.", None),
        "other": (None, "3"),
    }
