"""`deltareg yank`, `unyank` and `channel`, as a user types them, here and at a remote."""

from __future__ import annotations

import json
import shutil

import pytest

from deltareg.names import parse_reference
from deltareg.remote import DirectoryRemote
from deltareg.store import Store
from deltareg.store.index import YANKED
from tests.cli.program import Pair, Workplace, told_beside_licences
from tests.disks import read_only

FIRST, SECOND = "acme/search:1.0.0", "acme/search:1.1.0"


@pytest.fixture
def two(stocked: Workplace, pair: Pair) -> Workplace:
    """A user who has two versions, which a remote called team has, too."""
    stocked.ok("diff", pair.base, pair.post, "--tag", SECOND, "--description", "better")
    (stocked.root / "share").mkdir()
    stocked.ok("remote", "add", "team", stocked.root / "share")
    for name in (FIRST, SECOND):
        stocked.ok("push", name)
    return stocked


def digest_of(workplace: Workplace, reference: str) -> str:
    return workplace.ok("show", reference, "--json").document("show")["digest"]


# --- yank ---


def test_yanked_version_is_skipped_and_told_everywhere(two: Workplace) -> None:
    report = two.ok("yank", SECOND, "--reason", "answers nonsense", "--json").document("yank")
    assert report == {
        "reference": SECOND,
        "digest": digest_of(two, SECOND),
        "registry": str(two.home),
        "yanked": "answers nonsense",
        "dryRun": False,
    }
    assert two.ok("show", "acme/search", "--json").document("show")["reference"] == FIRST
    shown = two.ok("show", SECOND, "--json").document("show")
    assert shown["yanked"] == "answers nonsense"
    assert "answers nonsense" in two.ok("show", SECOND).out
    rows = two.ok("list", "--json").document("list")["deltas"]
    assert {row["reference"]: row["yanked"] for row in rows} == {FIRST: None, SECOND: "answers nonsense"}
    assert "answers nonsense" in two.ok("list").out
    assert [row["reference"] for row in two.ok("search", "--json").document("search")["results"]] == [FIRST]
    found = two.ok("search", "--yanked", "--json").document("search")["results"]
    assert {row["reference"]: row["yanked"] for row in found} == {FIRST: None, SECOND: "answers nonsense"}
    assert "answers nonsense" in two.ok("search", "--yanked").out
    assert two.ok("unyank", SECOND, "--json").document("yank")["yanked"] is None
    assert two.ok("show", "acme/search", "--json").document("show")["reference"] == SECOND


def test_a_remote_is_yanked_in_by_name_and_pulled_with_a_warning(two: Workplace) -> None:
    done = two.ok("yank", SECOND, "--reason", "answers nonsense", "--remote", "team")
    assert done.out == f"yanked {SECOND} in {(two.root / 'share').as_uri()}: answers nonsense\n"
    assert two.ok("show", SECOND, "--json").document("show")["yanked"] is None, "nothing here"
    rows = two.ok("list", "--remote", "team", "--json").document("list")["deltas"]
    assert [row["yanked"] for row in rows] == [None, "answers nonsense"]
    shutil.rmtree(two.home)
    assert two.ok("pull", "acme/search", "--json").document("transfer")["reference"] == FIRST
    done = two.ok("pull", SECOND)
    assert f"warning: {SECOND} is yanked at" in done.err
    assert "answers nonsense" in done.err
    assert two.ok("show", SECOND, "--json").document("show")["yanked"] == "answers nonsense"
    done = two.ok("unyank", SECOND, "--remote", "team")
    assert done.out.startswith(f"unyanked {SECOND} in file://")
    assert two.ok("pull", SECOND).err == ""
    assert two.ok("show", SECOND, "--json").document("show")["yanked"] is None


def test_a_dry_run_yanks_nothing(two: Workplace) -> None:
    done = two.ok("yank", FIRST, "--reason", "x", "--dry-run")
    assert done.out == f"would have yanked {FIRST} in {two.home}: x\n"
    two.ok("yank", FIRST, "--reason", "x", "--remote", "team", "--dry-run")
    assert two.ok("show", FIRST, "--json").document("show")["yanked"] is None
    assert [entry.yanked for entry in DirectoryRemote(two.root / "share").list()] == [None, None]
    two.ok("yank", FIRST, "--reason", "x")
    two.ok("unyank", FIRST, "--dry-run")
    assert two.ok("show", FIRST, "--json").document("show")["yanked"] == "x"


@pytest.mark.parametrize("where", [[], ["--remote", "team"]])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_is_not_there_is_not_yanked(two: Workplace, where: list[str], dry_run: list[str]) -> None:
    for command in (["yank", "--reason", "x"], ["unyank"]):
        done = two.run(*command, "acme/search:9.0.0", *where, *dry_run)
        assert (done.status, done.codes) == (1, ["DR0002"])


def test_yanking_where_there_is_no_registry_makes_none(workplace: Workplace) -> None:
    done = workplace.run("yank", FIRST, "--reason", "x")
    assert (done.status, done.codes) == (1, ["DR0002"])
    assert not workplace.home.exists()
    done = workplace.run("yank", FIRST, "--reason", "x", "--remote", "./nowhere")
    assert (done.status, done.codes) == (6, ["DR0500"])


def test_a_reason_that_somebody_smuggled_in_does_not_reach_the_terminal(two: Workplace) -> None:
    place = two.root / "share" / "index.json"
    index = json.loads(place.read_text())
    for entry in index["manifests"]:
        entry["annotations"][YANKED] = "\x1b]0;owned\x07\u202e\nwarning: all is well"
    place.write_text(json.dumps(index))
    for command in (
        ["list", "--remote", "team"],
        ["channel", "list", "acme/search", "--remote", "team"],
        ["pull", FIRST],
    ):
        done = two.ok(*command)
        assert "\x1b" not in done.out + done.err
        assert "\x07" not in done.out + done.err
        assert "\u202e" not in done.out + done.err
        assert "\nwarning: all is well" not in done.err
    assert "owned" in two.ok("show", FIRST).out


def test_applying_a_yanked_version_works_and_warns(two: Workplace, pair: Pair) -> None:
    two.ok("yank", SECOND, "--reason", "answers nonsense")
    assert told_beside_licences(two.ok("apply", pair.base, "acme/search", "-o", "plain").err) == []
    done = two.ok("apply", pair.base, SECOND, "-o", "out")
    assert f"warning: {SECOND} is yanked: answers nonsense" in done.err
    report = two.ok("apply", pair.base, SECOND, "-o", "again", "--dry-run", "--json").document("apply")
    assert report["warnings"] == [f"{SECOND} is yanked: answers nonsense"]
    # What is said of a version later does not change what it builds.
    card = (two.directory / "out" / "README.md").read_bytes()
    two.ok("unyank", SECOND)
    two.ok("apply", pair.base, SECOND, "-o", "later")
    assert (two.directory / "later" / "README.md").read_bytes() == card


# --- deprecate ---


def test_deprecated_versions_are_told_everywhere_and_used_as_before(two: Workplace, pair: Pair) -> None:
    report = two.ok("deprecate", "acme/search", "--reason", "use acme/find", "--json").document("deprecation")
    assert report == {
        "reference": "acme/search",
        "registry": str(two.home),
        "versions": [{"reference": name, "digest": digest_of(two, name)} for name in (FIRST, SECOND)],
        "deprecated": "use acme/find",
        "dryRun": False,
    }
    shown = two.ok("show", "acme/search", "--json").document("show")
    assert (shown["reference"], shown["deprecated"]) == (SECOND, "use acme/find")
    assert "use acme/find" in two.ok("show", SECOND).out
    for command, key in (("list", "deltas"), ("search", "results")):
        rows = two.ok(command, "--json").document(command)[key]
        assert {row["reference"]: row["deprecated"] for row in rows} == dict.fromkeys((FIRST, SECOND), "use acme/find")
        assert "use acme/find" in two.ok(command).out
    applied = two.ok("apply", pair.base, SECOND, "-o", "out")
    assert f"{SECOND} is deprecated: use acme/find" in " ".join(applied.err.split())
    done = two.ok("channel", "set", "acme/search:prod", "1.0.0")
    assert "1.0.0 is deprecated: use acme/find" in done.err
    assert "use acme/find" in two.ok("channel", "list", "acme/search").out
    done = two.ok("undeprecate", FIRST)
    assert done.out == f"undeprecated {FIRST} in {two.home}\n"
    assert two.ok("show", FIRST, "--json").document("show")["deprecated"] is None
    assert two.ok("show", SECOND, "--json").document("show")["deprecated"] == "use acme/find"


def test_a_remote_is_deprecated_in_by_name_and_pulled_with_a_warning(two: Workplace) -> None:
    done = two.ok("deprecate", SECOND, "--reason", "slow", "--remote", "team")
    assert done.out == f"deprecated {SECOND} in {(two.root / 'share').as_uri()}: slow\n"
    rows = two.ok("list", "--remote", "team", "--json").document("list")["deltas"]
    assert [row["deprecated"] for row in rows] == [None, "slow"]
    assert f"warning: {SECOND} is deprecated at" in two.ok("pull", "acme/search").err
    assert two.ok("show", SECOND, "--json").document("show")["deprecated"] == "slow"


def test_a_dry_run_deprecates_nothing(two: Workplace) -> None:
    done = two.ok("deprecate", "acme/search", "--reason", "x", "--dry-run")
    assert done.out.splitlines() == [f"would have deprecated {name} in {two.home}: x" for name in (FIRST, SECOND)]
    assert two.ok("show", FIRST, "--json").document("show")["deprecated"] is None


def test_what_cannot_be_deprecated_is_refused(two: Workplace) -> None:
    for name in ("acme/search:9.0.0", "acme/none"):
        done = two.run("deprecate", name, "--reason", "x")
        assert (done.status, done.codes) == (1, ["DR0002"])
    for name in ("acme/search:prod", f"acme/search@{digest_of(two, FIRST)}", "search"):
        done = two.run("deprecate", name, "--reason", "x")
        assert (done.status, done.codes) == (2, ["DR0102"])
    done = two.run("deprecate", FIRST, "--reason", "two\nlines")
    assert (done.status, done.codes) == (2, ["DR0101"])
    assert two.ok("show", FIRST, "--json").document("show")["deprecated"] is None


# --- channel ---


@pytest.mark.parametrize("where", [[], ["--remote", "team"]], ids=["here", "remote"])
def test_channel_is_set_moved_listed_and_removed(two: Workplace, where: list[str]) -> None:
    report = two.ok("channel", "set", "acme/search:prod", "1.0.0", *where, "--json").document("channel")
    assert (report["version"], report["before"], report["digest"]) == ("1.0.0", None, digest_of(two, FIRST))
    report = two.ok("channel", "set", "acme/search:prod", "1.1.0", *where, "--json").document("channel")
    assert (report["version"], report["before"]) == ("1.1.0", "1.0.0")
    done = two.ok("channel", "set", "acme/search:prod", "1.1.0", *where)
    assert "acme/search:prod is 1.1.0 already" in done.out
    two.ok("channel", "set", "acme/search:tried", "prod", *where)
    listed = two.ok("channel", "list", "acme/search", *where, "--json").document("channel-list")
    assert [(row["channel"], row["version"], row["computed"]) for row in listed["channels"]] == [
        ("latest", "1.1.0", True),
        ("prod", "1.1.0", False),
        ("tried", "1.1.0", False),
    ]
    assert "prod" in two.ok("channel", "list", "acme/search", *where).out
    report = two.ok("channel", "remove", "acme/search:prod", *where, "--json").document("channel")
    assert (report["version"], report["before"]) == (None, "1.1.0")
    done = two.run("channel", "remove", "acme/search:prod", *where)
    assert (done.status, done.codes) == (1, ["DR0002"])
    assert two.ok("channel", "remove", "acme/search:tried", *where).out.startswith("removed acme/search:tried from ")


@pytest.mark.parametrize("where", [[], ["--remote", "team"]], ids=["here", "remote"])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["really", "dry"])
def test_channel_that_names_another_version_than_expected_stays(
    two: Workplace, where: list[str], dry_run: list[str]
) -> None:
    two.ok("channel", "set", "acme/search:prod", "1.0.0", "--expected", "none", *where)
    for expected in ("none", "1.1.0"):
        done = two.run("channel", "set", "acme/search:prod", "1.1.0", "--expected", expected, *where, *dry_run)
        assert (done.status, done.codes) == (1, ["DR0007"])
        assert "channel list acme/search" in done.err
    done = two.run("channel", "set", "acme/search:prod", "1.1.0", "--expected", "9.0.0", *where, *dry_run)
    assert done.codes == ["DR0002"]
    listed = two.ok("channel", "list", "acme/search", *where, "--json").document("channel-list")
    assert {row["channel"]: row["version"] for row in listed["channels"]} == {"latest": "1.1.0", "prod": "1.0.0"}
    two.ok("channel", "set", "acme/search:prod", "1.1.0", "--expected", "1.0.0", *where, *dry_run)
    listed = two.ok("channel", "list", "acme/search", *where, "--json").document("channel-list")
    assert listed["channels"][1]["version"] == ("1.0.0" if dry_run else "1.1.0")


def test_channel_of_a_yanked_version_is_set_with_a_warning(two: Workplace) -> None:
    two.ok("yank", SECOND, "--reason", "answers nonsense")
    done = two.ok("channel", "set", "acme/search:prod", "1.1.0")
    assert "warning: 1.1.0 is yanked: answers nonsense" in done.err
    listed = two.ok("channel", "list", "acme/search", "--json").document("channel-list")
    assert {row["channel"]: (row["version"], row["yanked"]) for row in listed["channels"]} == {
        "latest": ("1.0.0", None),
        "prod": ("1.1.0", "answers nonsense"),
    }
    assert two.ok("show", "acme/search:prod", "--json").document("show")["yanked"] == "answers nonsense"


def test_a_channel_is_pulled_as_it_is_set(two: Workplace) -> None:
    two.ok("channel", "set", "acme/search:prod", "1.0.0", "--remote", "team")
    shutil.rmtree(two.home)
    assert two.ok("pull", "acme/search:prod", "--json").document("transfer")["reference"] == FIRST
    two.ok("channel", "set", "acme/search:prod", "1.1.0", "--remote", "team")
    two.ok("pull", "acme/search:prod")
    assert two.ok("show", "acme/search:prod", "--json").document("show")["digest"] == digest_of(two, SECOND)


@pytest.mark.parametrize("where", [[], ["--remote", "team"]], ids=["here", "remote"])
def test_channels_of_nothing(two: Workplace, where: list[str]) -> None:
    for command in (["list", "acme/other"], ["set", "acme/other:prod", "1.0.0"], ["set", "acme/search:prod", "9.0.0"]):
        done = two.run("channel", *command, *where)
        assert (done.status, done.codes) == (1, ["DR0002"])


def test_a_dry_run_removes_no_channel(two: Workplace) -> None:
    two.ok("channel", "set", "acme/search:prod", "1.0.0")
    done = two.ok("channel", "remove", "acme/search:prod", "--dry-run")
    assert done.out == f"would have removed acme/search:prod from {two.home}\n"
    store = Store(two.home / "registry", create=False)
    assert store.resolve(parse_reference("acme/search:prod"))


def test_a_read_only_remote_is_not_changed(two: Workplace) -> None:
    with read_only(two.root / "share"):
        for command in (["yank", FIRST, "--reason", "x"], ["channel", "set", "acme/search:prod", "1.0.0"]):
            done = two.run(*command, "--remote", "team")
            assert (done.status, done.codes) == (4, ["DR0300"])
