"""Recipes from the command line: new, add, remove."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from deltareg.cli.session import sources
from deltareg.config import load_settings
from deltareg.recipe import read_recipe
from deltareg.recipe_file import SCENARIOS, template
from tests.cli.program import Done, Pair, Workplace


def recipe_of(workplace: Workplace) -> Path:
    return workplace.directory / "deltareg.toml"


def test_new_writes_a_template_and_fills_it(workplace: Workplace) -> None:
    workplace.ok("new", "--scenario", "3")
    assert recipe_of(workplace).read_text() == template(3)
    done = workplace.run("new", "--scenario", "1")
    assert done.codes == ["DR0104"]
    # The examples' own names in another order, and one more.
    deltas = [
        part
        for one in ("acme/medical@^1.2=0.4", "acme/instruct=-0.5", "b/c:prod=0.1..0.2")
        for part in ("--delta", one)
    ]
    done = workplace.ok("new", "--base", "./b", *deltas, "--method", "ties", "--name", "a/b", "-o", "x.toml", "--json")
    assert done.document("recipe-change")["done"] == "wrote"
    recipe = read_recipe(workplace.directory / "x.toml")
    assert [(one.ref, one.wanted, one.weight) for one in recipe.delta] == [
        ("acme/medical", "^1.2", 0.4),
        ("acme/instruct", "*", -0.5),
        ("b/c", "channel prod", [0.1, 0.2]),
    ]
    assert (recipe.build.base, recipe.build.method, recipe.build.name) == ("./b", "ties", "a/b")
    assert "# α" in (workplace.directory / "x.toml").read_text()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_template_is_filled_and_goes_on_explaining(workplace: Workplace, scenario: int) -> None:
    deltas = ["--delta", "b/one@^2=0.5", *(("--delta", "b/two=0.25") if scenario == 4 else ())]
    workplace.ok("new", "--scenario", str(scenario), "--base", "hf://b/base@1f0c2a", *deltas, "--name", "b/made")
    recipe = read_recipe(recipe_of(workplace))
    assert (recipe.build.base, recipe.build.name) == ("hf://b/base@1f0c2a", "b/made")
    wanted = [("b/one", "^2", 0.5), ("b/two", "*", 0.25)]
    assert [(one.ref, one.wanted, one.weight) for one in recipe.delta] == wanted[: 2 if scenario == 4 else 1]
    written = recipe_of(workplace).read_text().splitlines()
    comments = [line for line in template(scenario).splitlines() if line.startswith("#")]
    assert [line for line in written if line.startswith("#")] == comments


def at_terminal(workplace: Workplace, typed: str, *arguments: str) -> Done:
    """Run the real program at a terminal where somebody types."""
    outer, inner = pty.openpty()
    os.write(outer, typed.encode())
    try:
        return workplace.execute("new", *arguments, stdin=inner)
    finally:
        os.close(inner)
        os.close(outer)


def test_new_asks_at_a_terminal(workplace: Workplace) -> None:
    done = at_terminal(workplace, "4\n./llama\nacme/one=0.6\nacme/two@^1.2=0.4\n\nties\n")
    assert done.status == 0, done.err
    recipe = read_recipe(recipe_of(workplace))
    assert (recipe.build.base, recipe.build.method) == ("./llama", "ties")
    assert [(one.ref, one.wanted, one.weight) for one in recipe.delta] == [
        ("acme/one", "*", 0.6),
        ("acme/two", "^1.2", 0.4),
    ]
    assert "several deltas" in done.err


def test_new_asks_again_for_what_is_not_allowed(workplace: Workplace) -> None:
    typed = "7\n1\n./b\nNo/Name\nacme/one=heavy\nacme/one=0.5\nacme/one\n\nzebra\n\n"
    done = at_terminal(workplace, typed)
    assert done.status == 0, done.err
    for told in ("scenarios are 1, 2, 3, 4", "'heavy' is no weight", "acme/one is there already", "unknown method"):
        assert told in done.err
    recipe = read_recipe(recipe_of(workplace))
    assert [(one.ref, one.weight) for one in recipe.delta] == [("acme/one", 0.5)]
    assert recipe.build.method == "linear"


def test_new_writes_nothing_when_whoever_is_asked_leaves(workplace: Workplace) -> None:
    done = at_terminal(workplace, "1\n./b\n\x04")
    assert done.codes == ["DR0100"]
    assert not recipe_of(workplace).exists()


def test_new_without_a_terminal_says_what_to_give(workplace: Workplace) -> None:
    for done in (
        workplace.run("new"),
        workplace.run("new", "--method", "ties", "--name", "a/b"),
        workplace.execute("new", stdin=subprocess.DEVNULL),
        # Closed.
        workplace.execute("new", preexec_fn=lambda: os.close(0)),
    ):
        assert done.status == 2 and done.codes == ["DR0100"], done.err
        assert all(flag in done.err for flag in ("--scenario", "--base", "--delta"))
    assert not recipe_of(workplace).exists()


def test_new_refuses_an_unknown_method(workplace: Workplace) -> None:
    assert workplace.run("new", "--base", "b", "--method", "zebra").codes == ["DR0101"]
    assert not recipe_of(workplace).exists()


def test_add_looks_the_highest_version_up(stocked: Workplace, pair: Pair) -> None:
    for version in ("1.3.2", "2.0.0-rc.1"):
        stocked.ok("diff", pair.base, pair.post, "--tag", f"acme/search:{version}")
    stocked.ok("diff", pair.base, pair.post, "--tag", "acme/young:0.1.0-rc.1")
    stocked.ok("new", "--base", "b", "--delta", "acme/other")
    done = stocked.ok("add", "acme/search", "--weight", "0.5", "--where", "mlp=0.2..0.4", "--json")
    assert done.document("recipe-change") == {
        "file": str(recipe_of(stocked)),
        "done": "added",
        "deltas": [
            {
                "ref": "acme/search",
                "wanted": "^1.3",
                "weight": 0.5,
                "where": {"mlp": [0.2, 0.4]},
                "parameters": {},
                "remote": None,
            }
        ],
        "dryRun": False,
    }
    assert "acme/young =0.1.0-rc.1" in stocked.ok("add", "acme/young").out
    assert stocked.run("add", "acme/none").codes == ["DR0002"]
    done = stocked.run("add", "acme/search@^7")
    assert done.codes == ["DR0002"] and "1.3.2" in done.err
    assert stocked.ok("add", "acme/search", "--weight", "0.25").out.startswith("changed acme/search ^1.3 (weight 0.25)")
    assert stocked.ok("add", "acme/search:1.0.0").out.startswith("changed acme/search 1.0.0 (weight 0.25)")
    assert stocked.ok("add", "acme/search").out.startswith("kept acme/search 1.0.0")
    before = recipe_of(stocked).read_bytes()
    stocked.ok("add", "acme/search", "--version", ">=1, <2", "--dry-run")
    assert recipe_of(stocked).read_bytes() == before
    assert stocked.ok("remove", "acme/search").out.startswith("removed acme/search")
    assert [one.ref for one in read_recipe(recipe_of(stocked)).delta] == ["acme/other", "acme/young"]


def test_add_gives_a_delta_parameters_of_its_own(stocked: Workplace) -> None:
    stocked.ok("new", "--base", "b", "--method", "della", "--delta", "acme/other")
    given = ["--param", "density=0.3", "--param", "density[mlp]=0.2..0.4"]
    stocked.ok("add", "acme/search", *given)
    assert read_recipe(recipe_of(stocked)).delta[-1].parameters == {"density": {"*": 0.3, "mlp": [0.2, 0.4]}}
    row = stocked.ok("add", "acme/search", "-p", "epsilon=0.1", "--json").document("recipe-change")["deltas"][0]
    assert row["parameters"] == {"density": {"*": 0.3, "mlp": [0.2, 0.4]}, "epsilon": 0.1}
    before = recipe_of(stocked).read_bytes()
    assert b"parameters = {density = {" in before
    for given, density in (
        ("density[attention]=0.1", {"*": 0.3, "mlp": [0.2, 0.4], "attention": 0.1}),
        ("density=0.7", 0.7),
        ("density[mlp]=0.5", {"*": 0.7, "mlp": 0.5}),
    ):
        row = stocked.ok("add", "acme/search", "-p", given, "--json").document("recipe-change")["deltas"][0]
        assert row["parameters"] == {"density": density, "epsilon": 0.1}
    before = recipe_of(stocked).read_bytes()
    for wrong in ("density=2", "ramp=ends", "width=1", "density"):
        done = stocked.run("add", "acme/search", "--param", wrong)
        assert done.status == 2 and "hint: " in done.err
    assert recipe_of(stocked).read_bytes() == before


def test_add_looks_up_at_the_remote_where_a_name_is_bound(stocked: Workplace, pair: Pair) -> None:
    (stocked.root / "team").mkdir()
    stocked.ok("remote", "add", "team", stocked.root / "team", "--namespace", "acme")
    for version in ("1.1.0", "1.4.0"):
        stocked.ok("diff", pair.base, pair.post, "--tag", f"acme/search:{version}")
    for version in ("1.0.0", "1.1.0"):
        stocked.ok("push", f"acme/search:{version}", "--remote", "team")
    stocked.ok("channel", "set", "acme/search:prod", "1.0.0", "--remote", "team")
    stocked.ok("new", "--base", "b", "-o", "r.toml")
    told = [
        stocked.ok("add", "acme/search", "--recipe", "r.toml", *more).out
        for more in (
            (),
            ("--from", "local", "--version", "^1.4"),
            ("--from", "team", "--channel", "prod"),
        )
    ]
    assert [line.split(" (")[0] for line in told] == [
        "added acme/search ^1.1",
        "changed acme/search ^1.4",
        "changed acme/search channel prod",
    ]
    digest = stocked.ok("show", "acme/search:1.1.0", "--json").document("show")["digest"]
    stocked.ok("add", "acme/search", "--recipe", "r.toml", "--digest", digest)
    delta = read_recipe(stocked.directory / "r.toml").delta[-1]
    assert (delta.ref, delta.digest, delta.channel, delta.version, delta.remote) == (
        "acme/search", digest, None, None, "team",
    )  # fmt: skip
    stocked.ok("yank", "acme/search:1.1.0", "--reason", "bad", "--remote", "team")
    stocked.ok("remove", "acme/search", "--recipe", "r.toml")
    assert stocked.ok("add", "acme/search", "--recipe", "r.toml").out.startswith("added acme/search ^1.0 ")
    done = stocked.run("add", "acme/other", "--recipe", "r.toml")
    assert done.codes == ["DR0002"] and "--version" in done.err


def test_add_without_a_look_takes_what_is_said(workplace: Workplace) -> None:
    workplace.ok("new", "--scenario", "1")
    workplace.ok("remote", "add", "gone", workplace.root / "gone", "--namespace", "far")
    assert workplace.run("add", "far/delta").codes == ["DR0500"]
    done = workplace.ok("add", "far/delta", "--no-check")
    assert "far/delta *" in done.out and "--version" in done.err
    workplace.ok("add", "far/delta@~1.2", "--no-check", "--remote", "gone")
    delta = read_recipe(recipe_of(workplace)).delta[-1]
    assert (delta.ref, delta.version, delta.remote) == ("far/delta", "~1.2", "gone")


@pytest.mark.parametrize(
    "arguments",
    [
        ("acme",), ("acme/x@",), ("acme/x@^",), ("acme/x:1.0.0", "--version", "^1"),
        ("acme/x", "--channel", "prod", "--version", "^1"), ("acme/x", "--channel", "NO"),
        ("acme/x@^1", "--digest", "sha256:" + "0" * 64), ("acme/x", "--digest", "sha256:12"),
        ("acme/x", "--weight", "nan"),
        ("acme/x", "--weight", "1_0"), ("acme/x", "--weight", "1.."), ("acme/x", "--where", "0.5"),
        ("acme/x@sha256:12",), ("acme/x:NO",), ("acme/x", "--version", "1.2.3.4"), ("acme/x", "--weight", "1e300"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_add_refuses_what_a_recipe_cannot_say(workplace: Workplace, arguments: tuple[str, ...]) -> None:
    workplace.ok("new", "--scenario", "1")
    before = recipe_of(workplace).read_bytes()
    done = workplace.run("add", *arguments, "--no-check")
    assert done.status == 2 and len(done.codes) == 1, done.err
    assert recipe_of(workplace).read_bytes() == before


def test_without_a_recipe_the_way_to_one_is_told(workplace: Workplace) -> None:
    for command in ("add", "remove"):
        done = workplace.run(command, "acme/x")
        assert done.codes == ["DR0106"] and "deltareg new" in done.err


def test_a_recipe_is_named_by_its_directory_too(workplace: Workplace) -> None:
    place = workplace.root / "elsewhere"
    place.mkdir()
    workplace.ok("new", "--scenario", "1", "-o", str(place / "deltareg.toml"))
    workplace.ok("add", "acme/x", "--no-check", "--recipe", str(place))
    assert 'ref = "acme/x"' in (place / "deltareg.toml").read_text()
    workplace.ok("remove", "acme/x", "--recipe", str(place))
    assert 'ref = "acme/x"' not in (place / "deltareg.toml").read_text()


def test_a_dry_run_of_new_says_what_it_would_have_written_and_writes_nothing(workplace: Workplace) -> None:
    told = workplace.ok("new", "--scenario", "1", "--dry-run")
    assert told.out.startswith("would have written ")
    assert not recipe_of(workplace).exists()


def test_a_time_is_given_in_any_zone(stocked: Workplace, pair: Pair) -> None:
    stocked.ok("new", "--base", str(pair.base), "--delta", "acme/search=1")
    for time in ("2001-01-31T12:00:00+02:00", "2001-01-31T10:00:00Z", "2001-01-31T10:00:00"):
        done = stocked.run("lock", "--exclude-newer", time)
        assert done.codes == ["DR0204"] and "after 2001-01-31T10:00:00Z" in done.err
    stocked.ok("lock", "--exclude-newer", "9000-01-31")
    assert stocked.run("update", "--exclude-newer", "yesterday").codes == ["DR0100"]


def test_bindings_are_written_and_shown_and_lead_the_way(workplace: Workplace) -> None:
    workplace.ok("new", "--scenario", "1")
    workplace.ok("remote", "add", "team", "/mnt/team", "--namespace", "acme", "--namespace", "ann/search")
    workplace.ok("remote", "add", "team", "/mnt/team", "--namespace", "bob")
    (row,) = workplace.ok("remote", "list", "--json").document("remote-list")["remotes"]
    assert row["namespaces"] == ["acme", "ann/search", "bob"]
    assert "acme, ann/search, bob" in workplace.ok("remote", "list").out
    assert workplace.run("remote", "add", "local", "/x").codes == ["DR0101"]
    assert workplace.run("remote", "add", "x", "/x", "--namespace", "acme:1").codes == ["DR0102"]
    settings = load_settings(workplace.directory, {"DELTAREG_REMOTE": "./elsewhere", "DELTAREG_HOME": "h"})
    from deltareg.catalog import Registry

    found = sources(settings, Registry(workplace.root / "h"))
    assert [found.remote_of(name) for name in ("acme/x", "ann/search", "ann/x")] == ["team", "team", "./elsewhere"]
    assert found.remote_of("acme/x", "local") == "local"
    assert found.urls == {"team": "/mnt/team", "./elsewhere": "./elsewhere"}
