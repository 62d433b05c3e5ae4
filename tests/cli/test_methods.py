"""`deltareg methods`, and how `apply` is told of methods, parameters and weights."""

from __future__ import annotations

import json

import pytest

from deltareg.merge import METHODS
from tests.cli.conftest import DELTA
from tests.cli.program import Pair, Workplace


def test_every_method_is_listed(workplace: Workplace) -> None:
    listed = [line.split()[0] for line in workplace.ok("methods").out.splitlines()[1:]]
    assert listed == list(METHODS)


def test_a_method_tells_its_equation_and_parameters(workplace: Workplace) -> None:
    told = workplace.ok("methods", "ties").out
    assert "2306.01708" in told
    assert all(name in told for name in METHODS["ties"].parameters)
    (method,) = json.loads(workplace.ok("methods", "dare_ties", "--json").out)["methods"]
    assert method["random"] is True
    assert [one["name"] for one in method["parameters"] if one["default"] is None] == ["density"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "fisher"], "unknown method 'fisher'"),
        (["--method", "dare_linear"], "dare_linear needs density"),
        (["--method", "ties", "--param", "density"], "--param 'density' has no value"),
        (["--method", "ties", "--param", "density=half"], "density is 'half'"),
        (["--method", "ties", "--param", "density=nan"], "density is nan"),
        (["--method", "ties", "--param", "density=2"], "density is 2.0"),
        (["--method", "ties", "--param", "density=0.1.."], "'0.1..' is no density"),
        (["--method", "ties", "--param", "density=0.1..x"], "'0.1..x' is no density"),
        (["--method", "ties", "--param", "width=1"], "ties has no parameter 'width'"),
        (["--method", "ties", "--param", "elect=most"], "elect is 'most'"),
        (["--method", "linear", "--param", "normalize=yes"], "normalize is 'yes'"),
        (["--method", "karcher", "--param", "iterations=2.5"], "iterations is '2.5'"),
        (["--method", "ties", "--param", "density[nowhere.*]=0.5"], "no tensor of the target matches 'nowhere.*'"),
        (["--method", "ties", "--param", f"density@{DELTA}=2"], "density is 2.0"),
        (["--method", "ties", "--param", f"normalize@{DELTA}=none"], "ties has one normalize for all deltas"),
        (
            ["--method", "ties", "--param", "density@acme/other:1.0.0=0.5"],
            "--param density is for acme/other:1.0.0, which is not applied",
        ),
        (["--method", "ties", "--param", "density@=0.5"], "--param density is for , which is not applied"),
        (["--method", "slerp"], "slerp takes 2 deltas, not 1"),
        (["--weight", "acme/other:1.0.0[mlp]=1"], "--weight is for acme/other:1.0.0, which is not applied"),
        (["--weight", f"{DELTA}[mlp]"], "has no value"),
        (["--weight", f"{DELTA}[mlp]=much"], "'much' is no weight"),
        (["--weight", f"{DELTA}[mlp]=0.1..inf"], "'0.1..inf' is no weight"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_wrong_arguments_are_told_with_a_remedy(
    stocked: Workplace, pair: Pair, arguments: list[str], told: str
) -> None:
    failed = stocked.run("apply", pair.base, DELTA, "-o", "out", *arguments)
    assert failed.status == 2
    assert told in failed.err
    assert "hint: " in failed.err
    assert not (stocked.directory / "out").exists()


def test_settings_are_printed_as_they_were_given(stocked: Workplace, pair: Pair) -> None:
    arguments = ["--method", "ties", "--param", "density=0.5", "--param", "density[[EW]*]=1", "--param", "elect=count"]
    printed = stocked.run("apply", pair.base, DELTA, "-o", "out", *arguments)
    assert "no tensor of the target matches '[EW]*'" in printed.err
    printed = stocked.ok("apply", pair.base, DELTA, "-o", "out", *arguments[:4], "--param", "density[*[.W]*]=1")
    assert "0.5, *[.W]*: 1.0" in " ".join(printed.out.split())


def test_a_delta_is_given_parameters_of_its_own(stocked: Workplace, pair: Pair) -> None:
    own = ["--param", f"density@{DELTA}=0.3", "--param", f"density@{DELTA}[*weight]=0.2..0.4"]
    printed = stocked.ok("apply", pair.base, DELTA, "-o", "out", "--method", "ties", "--param", "density=0.5", *own)
    told = " ".join(printed.out.split())
    assert f"1 × {DELTA}, density 0.3, *weight: 0.2..0.4" in told
    (delta,) = json.loads((stocked.ok("apply", pair.base, DELTA, "-o", "again", "-m", "ties", *own, "--json")).out)[
        "deltas"
    ]
    assert delta["settings"] == {"density": "0.3, *weight: 0.2..0.4"}


def test_a_delta_that_is_named_by_its_digest_is_given_parameters(stocked: Workplace, pair: Pair) -> None:
    digest = stocked.ok("show", DELTA, "--json").document("show")["digest"]
    name = f"{DELTA.partition(':')[0]}@{digest}"
    done = stocked.ok("apply", pair.base, name, "-o", "out", "-m", "ties", "-p", f"density@{name}=0.3", "--json")
    assert json.loads(done.out)["deltas"][0]["settings"] == {"density": 0.3}
