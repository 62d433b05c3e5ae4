"""Writing settings keeps what people wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.cli.settings_file import add_remote, create_settings, remove_remote
from deltareg.config import KEYS, read_settings
from deltareg.errors import BadConfig, InvalidArgument, OutputExists


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's settings file, not yet there."""
    return tmp_path / "deltareg.toml"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_new_file_reads_back_and_names_every_key(project: Path) -> None:
    create_settings(project, remote='/srv/"odd" \\ name')
    settings = read_settings(project)
    assert settings.remote == "origin"
    assert settings.remotes["origin"].url == '/srv/"odd" \\ name'
    text = project.read_text()
    for key in KEYS:
        assert key.split(".")[0] in text


def test_the_commented_keys_of_a_new_file_are_right(project: Path) -> None:
    create_settings(project)
    lines = [line.removeprefix("# ") for line in project.read_text().splitlines()]
    project.write_text("\n".join(line for line in lines if "=" in line or line.startswith("[")))
    settings = read_settings(project)
    assert settings.home == project.parent / "registry"
    assert (settings.threads, settings.remote, set(settings.remotes)) == (4, "team", {"team"})


def test_an_existing_file_stays(project: Path) -> None:
    write(project, "# mine\n")
    with pytest.raises(OutputExists):
        create_settings(project)
    project.unlink()
    project.symlink_to("nowhere")
    with pytest.raises(OutputExists):
        create_settings(project)


def test_comments_and_order_stay(project: Path) -> None:
    before = '# top\nthreads = 2 # two\n\n[remotes.a]\n# why\nurl = "/a"\n'
    write(project, before)
    add_remote(project, "b", "/b")
    assert project.read_text() == before + '\n[remotes.b]\nurl = "/b"\n'
    remove_remote(project, "b")
    assert project.read_text().strip() == before.strip()
    assert list(project.parent.glob(".*")) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "threads = 1",
        "# only a comment",
        '[remotes.a]\nurl = "/a"\n',
        'remotes = {a = {url = "/a"}}\n',
        '[remotes]\na = {url = "/a"}\n',
        '[remotes]\na.url = "/a"\n',
    ],
)
def test_remotes_are_added_to_and_taken_from_every_style(project: Path, text: str) -> None:
    write(project, text)
    before = set(read_settings(project).remotes)
    add_remote(project, "team", "/srv/deltas", default=True)
    settings = read_settings(project)
    assert (set(settings.remotes), settings.remote) == (before | {"team"}, "team")
    remove_remote(project, "team")
    settings = read_settings(project)
    assert (set(settings.remotes), settings.remote) == (before, None)


def test_what_cannot_be_changed_safely_is_left_alone(project: Path) -> None:
    # tomlkit 0.15 would lose the first of two dotted tables.
    write(project, 'remotes.a.url = "/a"\nthreads = 1\n')
    try:
        add_remote(project, "b", "/b")
    except BadConfig as error:
        assert error.hint == "edit it by hand"
        assert project.read_text() == 'remotes.a.url = "/a"\nthreads = 1\n'
    else:
        assert {name: remote.url for name, remote in read_settings(project).remotes.items()} == {"a": "/a", "b": "/b"}


def test_a_link_stays_a_link_and_permissions_stay(project: Path) -> None:
    real = write(project.parent / "dotfiles" / "deltareg.toml", "")
    real.chmod(0o640)
    project.symlink_to(real)
    add_remote(project, "a", "/a")
    assert project.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert set(read_settings(real).remotes) == {"a"}


def test_a_dry_run_finds_faults_and_writes_nothing(project: Path) -> None:
    add_remote(project, "a", "/a", dry_run=True)
    create_settings(project, dry_run=True)
    assert not project.exists()
    with pytest.raises(InvalidArgument):
        add_remote(project, "a b", "/a", dry_run=True)
    write(project, "hoem = 1\n")
    with pytest.raises(BadConfig):
        add_remote(project, "a", "/a", dry_run=True)
