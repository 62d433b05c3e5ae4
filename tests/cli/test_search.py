"""`deltareg search`, as a user types it, with real deltas."""

from __future__ import annotations

import shutil

from tests.cli.program import Pair, Workplace

DELTA = "acme/search:1.0.0"


def test_search_finds_the_delta_for_its_base(stocked: Workplace, pair: Pair) -> None:
    report = stocked.ok("search", "things", "--for", pair.base, "--json").document("search")
    assert report["total"] == 1
    (row,) = report["results"]
    assert (row["reference"], row["licence"], row["description"]) == (DELTA, "apache-2.0", "finds things")
    assert row["fit"] == "homologous", "neither has a tokenizer"
    assert row["size"] > 0
    shown = stocked.ok("search", "--for", pair.post, "--licence", "Apache-2.0", "--namespace", "acme")
    assert DELTA in shown.out
    assert "homologous" in shown.out


def test_search_that_finds_nothing_says_so(stocked: Workplace, workplace: Workplace) -> None:
    done = stocked.ok("search", "nothing-like-it")
    assert done.out == ""
    assert "deltareg list" in done.err
    assert stocked.ok("search", "--model-type", "bert", "--json").document("search")["results"] == []


def test_search_of_no_registry_is_empty(workplace: Workplace) -> None:
    assert workplace.ok("search", "x", "--json").document("search")["total"] == 0
    assert not workplace.home.exists()


def test_search_refuses_what_is_wrong(stocked: Workplace) -> None:
    assert stocked.run("search", "--limit", "0").status == 2
    assert stocked.run("search", "--for", "nowhere").codes == ["DR0003"]
    assert stocked.run("search", " ".join(map(str, range(40)))).codes == ["DR0101"]


def test_remotes_are_searched_by_name_and_all_together(stocked: Workplace, pair: Pair) -> None:
    for name in ("share", "other"):
        (stocked.root / name).mkdir()
        stocked.ok("push", DELTA, "--remote", stocked.root / name)
    stocked.ok("remote", "add", "team", stocked.root / "share")
    stocked.ok("remote", "add", "public", stocked.root / "other")
    report = stocked.ok("search", "things", "--for", pair.base, "--remote", "team", "--json").document("search")
    assert [(row["remote"], row["reference"], row["fit"]) for row in report["results"]] == [
        ("team", DELTA, "homologous")
    ]
    for arguments in (["--remote", "team", "--remote", "public"], ["--all-remotes"]):
        report = stocked.ok("search", *arguments, "--json").document("search")
        assert sorted(row["remote"] for row in report["results"]) == ["public", "team"]
    shown = stocked.ok("search", "--all-remotes").out
    assert "public" in shown and "team" in shown
    (stocked.root / "other").rename(stocked.root / "moved")
    done = stocked.ok("search", "--all-remotes")
    assert "warning: public did not answer" in done.err
    assert "team" in done.out
    done = stocked.run("search", "--remote", "public")
    assert (done.status, done.codes) == (6, ["DR0500"])
    assert stocked.run("search", "--remote", "nobody").codes == ["DR0101"]


def test_remotes_are_searched_without_a_local_registry_and_make_none(stocked: Workplace) -> None:
    share = stocked.root / "share"
    share.mkdir()
    stocked.ok("push", DELTA, "--remote", share)
    shutil.rmtree(stocked.home)
    assert stocked.ok("search", "--remote", share, "--json").document("search")["total"] == 1
    assert not stocked.home.exists()
    done = stocked.run("search", "--all-remotes")
    assert (done.status, done.codes) == (2, ["DR0101"])


def test_a_list_of_a_remote_tells_what_the_deltas_are(stocked: Workplace) -> None:
    share = stocked.root / "share"
    share.mkdir()
    stocked.ok("push", DELTA, "--remote", share)
    (row,) = stocked.ok("list", "--remote", share, "--json").document("list")["deltas"]
    (here,) = stocked.ok("list", "--json").document("list")["deltas"]
    assert {**row, "created": None} == {**here, "created": None}
