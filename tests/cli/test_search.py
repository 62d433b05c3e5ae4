"""`deltareg search`, as a user types it, with real deltas."""

from __future__ import annotations

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
