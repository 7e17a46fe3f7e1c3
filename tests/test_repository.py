"""What the repository's own files say, beside the code and the documents."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import discernment

ROOT = Path(__file__).parents[1]


def read(name):
    return ROOT.joinpath(name).read_text(encoding="utf-8")


def test_the_citation_names_this_version_and_the_paper_that_readme_names():
    cited = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert cited["version"] == discernment.__version__ == project["version"]
    assert cited["license"] == project["license"]
    (paper,) = cited["references"]
    entry = dict(re.findall(r"^  (\w+) += \{(.+)\},?$", read("README.md"), re.MULTILINE))
    assert paper["title"] == entry["title"]
    assert paper["url"] == entry["url"]
    assert str(paper["year"]) == entry["year"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(names) == entry["author"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem
)
def test_an_issue_form_asks_for_something(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len(asked) >= 3
    assert len({part["id"] for part in asked}) == len(asked)
    assert all(part["attributes"]["label"] for part in asked)


def test_checks_before_a_commit_fetch_nothing():
    (found,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert found["repo"] == "local"
    assert {hook["language"] for hook in found["hooks"]} == {"system"}
    assert "make check" in {hook["entry"] for hook in found["hooks"]}


def test_what_the_dockerfile_copies_is_let_through():
    copied = [
        name
        for line in re.findall(r"^COPY (.+)$", read("Dockerfile"), re.MULTILINE)
        for name in line.split()[:-1]
    ]
    let = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert len(copied) > 3
    assert set(copied) <= let
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r'"\.\[([\w,]+)\]"', read("Dockerfile"))[1].split(",")
    assert set(extras) <= tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"].keys()
