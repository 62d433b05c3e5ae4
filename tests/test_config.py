"""Settings: who wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.config import (
    Settings,
    load_settings,
    parse_settings,
    read_settings,
    user_file,
)
from deltareg.errors import BadConfig, DeltaregError, InvalidArgument


@pytest.fixture(autouse=True)
def user_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's settings lie."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return user_file()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's settings file, not yet there."""
    (tmp_path / "project" / "src" / "deep").mkdir(parents=True)
    return tmp_path / "project" / "deltareg.toml"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_any_file_nothing_is_set(project: Path) -> None:
    assert load_settings(project.parent, {}) == Settings()


def test_the_nearest_file_above_is_the_projects(project: Path) -> None:
    write(project, "threads = 3\n")
    assert load_settings(project.parent / "src" / "deep", {}).threads == 3
    nearer = write(project.parent / "src" / "deltareg.toml", "threads = 5\n")
    settings = load_settings(project.parent / "src" / "deep", {})
    assert (settings.threads, settings.files) == (5, (nearer,))


def test_variables_win_over_the_project_and_the_project_over_the_user(project: Path, user_place: Path) -> None:
    write(
        user_place, 'threads = 1\nhome = "/srv/user"\nremote = "a"\n[remotes.a]\nurl = "/a"\n[remotes.b]\nurl = "/b"\n'
    )
    write(project, 'threads = 2\n[remotes.a]\nurl = "/c"\n')
    settings = load_settings(project.parent, {})
    assert (settings.threads, settings.home, settings.default_remote) == (2, Path("/srv/user"), "a")
    assert {name: remote.url for name, remote in settings.remotes.items()} == {"a": "/c", "b": "/b"}
    assert settings.files == (project, user_place)
    variables = {"DELTAREG_THREADS": "3", "DELTAREG_HOME": "/srv/mine", "DELTAREG_REMOTE": "b"}
    settings = load_settings(project.parent, variables)
    assert (settings.threads, settings.home, settings.default_remote) == (3, Path("/srv/mine"), "b")
    # An empty variable is as none.
    assert load_settings(project.parent, dict.fromkeys(variables, "")).threads == 2


def test_relative_paths_count_from_the_file(project: Path) -> None:
    write(
        project,
        'home = "registry"\n[remotes.a]\nurl = "../share"\n[remotes.b]\nurl = "file:///b"\n[remotes.c]\nurl = "~/c"\n',
    )
    settings = load_settings(project.parent / "src", {})
    assert settings.home == project.parent / "registry"
    assert settings.remotes["a"].url == str(project.parent / "../share")
    assert settings.remotes["b"].url == "file:///b"
    assert settings.remotes["c"].url == str(Path.home() / "c")
    # A variable's counts from where the command runs.
    assert load_settings(project.parent / "src", {"DELTAREG_HOME": "here"}).home == project.parent / "src" / "here"


def test_the_only_remote_is_the_default(project: Path) -> None:
    write(project, '[remotes.a]\nurl = "/a"\n')
    assert load_settings(project.parent, {}).remote_url() == "/a"
    write(project, '[remotes.a]\nurl = "/a"\n[remotes.b]\nurl = "/b"\n')
    with pytest.raises(InvalidArgument, match="no default remote") as caught:
        load_settings(project.parent, {}).remote_url()
    assert caught.value.cause == "there are a, b"


def test_a_remote_is_named_by_its_name_its_url_or_a_path(project: Path) -> None:
    write(project, '[remotes.team]\nurl = "/a"\n')
    settings = load_settings(project.parent, {})
    assert settings.remote_url("team") == "/a"
    for location in ("file:///x", "./team", "/x", "x/y", "~/x", ".", "..", "https://example.org/r"):
        assert settings.remote_url(location) == location
    with pytest.raises(InvalidArgument) as caught:
        settings.remote_url("taem")
    assert caught.value.hint == "did you mean team?"
    with pytest.raises(InvalidArgument) as caught:
        settings.remote_url("elsewhere")
    assert "./elsewhere" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("thread = 4", "unknown key thread (did you mean threads?)"),
        ("zebra = 4", "unknown key zebra"),
        ('[remote.team]\nurl = "/a"', "remote takes a text"),
        ('[remotes.team]\nulr = "/a"', "unknown key remotes.team.ulr (did you mean remotes.team.url?)"),
        ("[remotes.team]", "remotes.team: url is missing"),
        ("[remotes.team]\nurl = 4", "remotes.team.url takes a text, not 4"),
        ('[remotes."a/b"]\nurl = "/a"', "remotes.a/b: no name for a remote"),
        ("remotes = 4", "remotes is a int, not a table"),
        ("remotes.team = 4", "remotes.team is a int, not a table"),
        ("threads = 0", "threads takes a number from 1 on, not 0"),
        ("threads = true", "threads takes a number from 1 on, not True"),
        ('threads = "4"', "threads takes a number from 1 on, not '4'"),
        ("home = 4", "home takes a text, not 4"),
        ('home = ""', "home takes a text, not ''"),
        ("home = ", "is not valid TOML"),
        ("home = 'a'\nhome = 'b'", "is not valid TOML"),
        ("home = '\udcff'", "is not valid TOML"),
    ],
)
def test_what_a_file_must_not_say(project: Path, text: str, told: str) -> None:
    project.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadConfig) as caught:
        read_settings(project)
    assert str(project) in caught.value.message
    assert told in caught.value.message


def test_every_fault_is_told_at_once(project: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        parse_settings(b'thread = 1\nhome = 2\n[remotes.a]\nurl = "/a"\nuser = "me"\n', project)
    assert caught.value.data["faults"] == [
        "unknown key thread (did you mean threads?)",
        "home takes a text, not 2",
        "unknown key remotes.a.user",
    ]


@pytest.mark.parametrize("value", ["0", "-1", "four", "1.5", "٣", "0x4"])
def test_a_variable_must_be_a_number_of_threads(project: Path, value: str) -> None:
    with pytest.raises(BadConfig, match="DELTAREG_THREADS"):
        load_settings(project.parent, {"DELTAREG_THREADS": value})


def test_a_file_that_cannot_be_read_is_told(project: Path) -> None:
    project.mkdir()
    with pytest.raises(DeltaregError, match="could not read the settings"):
        read_settings(project)


def test_an_enormous_file_is_not_read(project: Path) -> None:
    project.write_bytes(b"#" * (1 << 21))
    with pytest.raises(BadConfig, match="larger"):
        read_settings(project)


def test_home_of_nobody_is_told_wherever_it_stands(project: Path) -> None:
    with pytest.raises(InvalidArgument, match="nobody's home"):
        load_settings(project.parent, {"DELTAREG_HOME": "~nosuch-user/x"})
    write(project, 'home = "~nosuch-user/x"\n[remotes.team]\nurl = "~nosuch-user/y"\n')
    with pytest.raises(BadConfig) as raised:
        load_settings(project.parent, {})
    assert [str(fault).partition(":")[0] for fault in raised.value.data["faults"]] == ["home", "remotes.team.url"]  # type: ignore[attr-defined]


def test_the_tables_of_a_recipe_are_not_read(project: Path) -> None:
    write(project, 'threads = 4\n[build]\nzebra = 1\n[[delta]]\nref = "a/b"\n')
    assert load_settings(project.parent, {}).threads == 4
    write(project, "[buidl]\nbase = 1\n")
    with pytest.raises(BadConfig, match=r"unknown key buidl \(did you mean build\?\)"):
        load_settings(project.parent, {})


def test_names_are_bound_to_remotes(project: Path, user_place: Path) -> None:
    write(user_place, '[remotes.a]\nurl = "/a"\nnamespaces = ["acme"]\n[remotes.b]\nurl = "/b"\nnamespaces = ["bob"]\n')
    write(project, '[remotes.a]\nurl = "/c"\nnamespaces = ["ann/search", "ann"]\n')
    settings = load_settings(project.parent, {"DELTAREG_REMOTE": "/srv/x"})
    # The project's remote replaces the user's of that name, with what is bound to it.
    assert settings.bound == {"ann/search": "a", "ann": "a", "bob": "b"}
    assert settings.urls == {"a": "/c", "b": "/b", "/srv/x": "/srv/x"}
    assert load_settings(project.parent, {}).urls == {"a": "/c", "b": "/b"}


def test_a_name_that_is_bound_twice_is_told_with_both_files(project: Path, user_place: Path) -> None:
    write(user_place, '[remotes.a]\nurl = "/a"\nnamespaces = ["acme"]\n')
    write(project, '[remotes.b]\nurl = "/b"\nnamespaces = ["acme", "bob"]\n')
    with pytest.raises(BadConfig) as caught:
        load_settings(project.parent, {})
    assert caught.value.message == f"acme is bound to b ({project}) and to a ({user_place})"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('namespaces = "acme"', "remotes.a.namespaces takes a list of texts"),
        ("namespaces = [1]", "remotes.a.namespaces takes a text, not 1"),
        ('namespaces = ["Acme"]', "remotes.a.namespaces: 'Acme' is no namespace"),
        ('namespaces = ["acme/x:1.0.0"]', "remotes.a.namespaces: 'acme/x:1.0.0' is no namespace"),
        ('namespaces = ["acme/"]', "remotes.a.namespaces: 'acme/' is no namespace"),
        ('namespace = ["acme"]', "unknown key remotes.a.namespace (did you mean remotes.a.namespaces?)"),
        ('[remotes.local]\nurl = "/x"', "remotes.local: recipes call the registry of this machine so"),
    ],
)
def test_what_cannot_be_bound_is_refused(project: Path, text: str, told: str) -> None:
    write(project, f'[remotes.a]\nurl = "/a"\n{text}\n')
    with pytest.raises(BadConfig) as caught:
        load_settings(project.parent, {})
    assert told in caught.value.message


def test_a_file_that_is_nested_deep_is_refused(project: Path) -> None:
    write(project, "home = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(BadConfig, match="not valid TOML"):
        load_settings(project.parent, {})
