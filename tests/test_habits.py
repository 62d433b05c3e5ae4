"""What the repository promises of itself."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deltareg

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["deltareg", *sorted(found.name for found in pkgutil.walk_packages(deltareg.__path__, "deltareg."))]
LIGHT = [
    "deltareg",
    "deltareg.artifact",
    "deltareg.catalog",
    "deltareg.checkpoint",
    "deltareg.cli",
    "deltareg.fingerprint",
    "deltareg.homology",
    "deltareg.manifest",
    "deltareg.remote",
    "deltareg.store",
    "deltareg.transfer",
]
# Ann and Bob are the people of our examples.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|opt|(?:home|Users)(?!/(?:ann|bob)\b))/[\w.-]+|/tmp/\w+/")


def repository_files() -> list[Path]:
    """What git tracks, and what it would take in."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("module", LIGHT)
def test_metadata_modules_load_no_array_library(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'numba', 'numpy', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_exists(module: str) -> None:
    loaded = importlib.import_module(module)
    assert hasattr(loaded, "__all__"), f"{module} does not say what is public"
    assert len(loaded.__all__) == len(set(loaded.__all__))
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("name", ["apply", "check", "diff", "pull", "push"])
@pytest.mark.parametrize("first", ["deltareg.apply", "deltareg.diff", "deltareg.transfer", "deltareg"])
def test_functions_are_not_hidden_by_modules_of_their_name(name: str, first: str) -> None:
    program = f"import deltareg, {first}; deltareg.{name}; print(callable(deltareg.{name}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content:  # golden files and pictures
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {hit}" for hit in MACHINE_PATH.findall(line)]
    assert found == []


def test_the_search_for_machine_paths_finds_them() -> None:
    for path in ("/" + "root/.cache", "in " + "/home" + "/eve/x", "'" + "/tmp" + "/scratch/x'"):
        assert MACHINE_PATH.search(path), path
    for path in ("https://example.org/home/x", "deltareg/work/x", "/usr/bin/env", "/home/ann/x"):
        assert not MACHINE_PATH.search(path), path


def test_licence_is_apache_2() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License\n" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_version_has_its_changelog_entry() -> None:
    titles = re.findall(r"^## \[(.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert any(
        title.startswith((f"Unreleased] - {deltareg.__version__}", f"{deltareg.__version__}]")) for title in titles
    )


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {_normal(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert all(pinned.values())
    assert pinned["torch"] == "2.13.0"
    names = {_normal(re.match(r"[\w.-]+", one)[0]) for one in wanted}  # type: ignore[index]
    assert names - set(pinned) == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
