"""What is published: the source distribution, the wheel that is built from it, and the command that runs from that alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/discernment"
FOLDERS = ["runs/recipes", "reporting/templates", "judges/phrases", "judges/starter", "prompts/starter"]


def build(source: Path, kind: str, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it where nothing else is."""
    if importlib.util.find_spec("hatchling") is None and not os.environ.get("CI"):
        pytest.skip("hatchling is not installed; `make setup` brings it")
    place = tmp_path_factory.mktemp("packages")
    sources = build(ROOT, "sdist", place / "sdist")
    with tarfile.open(sources) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return sources, build(unpacked, "wheel", place / "wheel")


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(place)
    return place


def files_of_the_package() -> list[str]:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(str(path.relative_to(PACKAGE.parent)) for path in files)


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(installed: Path) -> None:
    expected = files_of_the_package()
    data = [name for name in expected if not name.endswith(".py")]
    for folder in FOLDERS:
        assert any(name.startswith(f"discernment/{folder}/") for name in data), folder
    assert len(data) > 50
    found = sorted(str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file())
    assert [name for name in found if ".dist-info/" not in name] == expected
    for name in expected:
        assert (installed / name).read_bytes() == (PACKAGE.parent / name).read_bytes(), name


def test_the_sources_have_what_a_reader_needs_and_no_more(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= names
    assert {f"src/{name}" for name in files_of_the_package()} <= names
    assert {name.partition("/")[0] for name in names} & {
        "tests",
        "runs",
        "docs",
        "site",
        "benchmarks",
    } == set()


def test_the_wheel_announces_the_command_the_methods_and_the_rules(installed: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (written,) = installed.glob("*.dist-info/entry_points.txt")
    parser = ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(written)
    found = {name: dict(parser[name]) for name in parser.sections()}
    assert found == {"console_scripts": project["scripts"], **project["entry-points"]}
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["recipes"], "discern run quickstart"),
        (["recipes", "quickstart"], "name: quickstart"),
        (["prompts", "list"], "starter/pairs"),
        (["prompts", "show", "starter/forms", "--count", "1"], "six forms"),
        (["judges", "calibrate", "--labels", "starter/verdicts", "--judge", "keywords"], "kappa"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_verb_runs_from_the_wheel_alone(
    installed: Path, tmp_path: Path, arguments: list[str], shown: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "300"}
    begin = f"import discernment; assert discernment.__file__.startswith({str(installed)!r})"
    code = f"{begin}; from discernment.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
