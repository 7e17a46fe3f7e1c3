"""What MkDocs does not do by itself: pages from files beside docs/, links that leave docs/, the page of all public names."""

import ast
import os.path
import re
import tomllib
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ADOPTED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
README = "README.md"
HOME = "index.md"
BEGINNING = "<!-- On the site, the beginning of README.md stands here. -->"
REFERENCE = "reference.md"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder where the navigation names one."""
    config.nav = [_with_folders(item, Path(config.docs_dir)) for item in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in ADOPTED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Bring in what README.md begins with, and let every link lead somewhere on the site or to the repository."""
    uri = page.file.src_uri
    of_page = {new: old for old, new in ADOPTED.items()}.get(uri, f"docs/{uri}")
    address = _repository()
    text = relink(markdown, of_page, uri, address)
    if uri == HOME:
        beginning = (ROOT / README).read_text(encoding="utf-8").partition("\n## ")[0]
        text = text.replace(BEGINNING, relink(beginning.partition("\n")[2], README, uri, address))
    return text


def relink(markdown: str, source: str, uri: str, address: str | None) -> str:
    """Rewrite the links of a text for the page that it becomes.

    Args:
        markdown: The text; blocks of code in it are left alone.
        source: Its file, relative to the repository.
        uri: The page, relative to docs/.
        address: The repository, for links to what is no page; None shows their text and the path instead.
    """

    def one(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        file, hash_sign, anchor = target.partition("#")
        if "://" in target or not file:
            return match[0]
        path = os.path.normpath(PurePosixPath(source).parent / file).replace(os.sep, "/")
        page = {**ADOPTED, README: HOME}.get(path) or path.removeprefix("docs/")
        if page != path:
            if text in (file, path) and path.endswith(".md"):  # a file's name says little where it is a page
                text = _title(path)
            return f"{mark}[{text}]({os.path.relpath(page, PurePosixPath(uri).parent)}{hash_sign}{anchor})"
        if address:
            return f"{mark}[{text}]({address}/blob/HEAD/{path}{hash_sign}{anchor})"
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(one, part) for part in parts)


def reference() -> str:
    """The page of all public names, by the room that each is from; mkdocstrings fills it."""
    by_room = defaultdict(list)
    for name, room in sorted(public_names().items(), key=lambda item: item[0].rpartition(".")[2].lower()):
        by_room[room].append(name)
    lines = [
        "# Reference",
        "",
        "Every name that [the page on Python](api.md) speaks of, by the room of the package that it is from.",
    ]
    for room, names in sorted(by_room.items()):
        lines += ["", f"## {room}", *(f"\n::: {name}" for name in names)]
    return "\n".join(lines) + "\n"


def public_names() -> dict[str, str]:
    """The names at the top of the package and those that docs/api.md names, each with its room."""
    package = griffe.load("discernment", search_paths=[str(ROOT / "src")], resolve_aliases=True)
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    imports = [n for b in blocks for n in ast.walk(ast.parse(b)) if isinstance(n, ast.ImportFrom)]
    named = {f"{n.module}.{alias.name}" for n in imports for alias in n.names}
    named |= {f"discernment.{name}" for name in package.exports or () if name != "__version__"}
    named |= set(re.findall(r"`(discernment\.[\w.]+)`", text))
    named = {name for name in named if name.startswith("discernment.")}
    modules = {name for name in named if _find(package, name).is_module}
    known = {name.rpartition(".")[2] for name in named}
    bare = set(re.findall(r"`(\w+)`", text)) - known
    homes = modules | {name.rpartition(".")[0] for name in named} - {"discernment"}
    named |= {f"{home}.{name}" for home in homes for name in bare if name in _find(package, home).members}
    found = {name: _find(package, name) for name in named}
    return {name: that.canonical_path.split(".")[1] for name, that in found.items() if not that.is_module}


def _find(package: Any, name: str) -> Any:
    found = package
    for part in name.split(".")[1:]:
        found = found[part]
    return found.final_target if found.is_alias else found


def _title(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _repository() -> str | None:
    """The repository's address where pyproject.toml names one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = {key.casefold(): url for key, url in project.get("urls", {}).items()}
    return urls.get("repository") or urls.get("source")


def _with_folders(item: Any, docs: Path) -> Any:
    if isinstance(item, dict):
        return {title: _with_folders(inner, docs) for title, inner in item.items()}
    if isinstance(item, list):
        return [_with_folders(inner, docs) for inner in item]
    if item.endswith("/"):
        return [f"{item}{path.name}" for path in sorted((docs / item).glob("*.md"))]
    return item
