"""`deltareg sweep` and `deltareg eval`, as people type them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time

import pytest

from tests.analysis.scene import Scene, make_scene
from tests.cli.program import Workplace

COMMAND = """
import json, os, pathlib, sys, time
pathlib.Path("pid").write_text(str(os.getpid()))
runs = pathlib.Path("runs")
done = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (done + 1))
if done == 2:
    time.sleep(60)
print(json.dumps({"accuracy": done, "model": sys.argv[1]}))
"""


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small language model with two deltas. Read only."""
    place = tmp_path_factory.mktemp("language")
    return make_scene(place, place / "home")


@pytest.fixture
def ready(workplace: Workplace, language: Scene) -> Workplace:
    """A user with the deltas, the base, the recipe and the function."""
    shutil.copytree(language.place / "home", workplace.home)
    for name in ("base", "deltareg.toml", "score.py"):
        source = language.place / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, workplace.directory / name)
    (workplace.directory / "evaluate.py").write_text(COMMAND)
    return workplace


def test_a_sweep_is_told_drawn_and_kept(ready: Workplace) -> None:
    pytest.importorskip("matplotlib")
    options = ["--alpha", "0:2:0.5", "--score", "score.py:score", "--metric", "loss", "--lower-is-better", "loss"]
    done = ready.ok("sweep", ".", *options, "--plot", "sweep.svg", "--out", "sweep.json")
    for told in (
        "alpha       acme/one:1.0.0",
        "points      5, 0 of them done before",
        "curvature",
        "plateau",
        " 1.5  ",
    ):
        assert told in done.out
    assert "drew sweep.svg" in done.err
    assert (ready.directory / "sweep.svg").read_bytes().startswith(b"<?xml")
    assert (ready.directory / "deltareg.lock").is_file()
    done = ready.ok("sweep", "deltareg.toml", *options, "--out", "sweep.json", "--json")
    report = done.document("sweep")
    assert (report["reusedPoints"], report["complete"]) == (5, True)
    assert list(report["metrics"]) == ["loss"]
    kept = json.loads((ready.directory / "sweep.json").read_text())
    assert kept["points"] == report["points"]


def test_two_deltas_and_the_line_between_them(ready: Workplace) -> None:
    options = ["--score", "score.py:weights", "--json"]
    report = ready.ok("sweep", ".", "--alpha", "0,1", "--beta", "0:1:0.5", *options).document("sweep")
    assert [(point["alpha"], point["beta"]) for point in report["points"]] == [
        (alpha, beta) for beta in (0, 0.5, 1) for alpha in (0, 1)
    ]
    told = ready.ok("sweep", ".", "--alpha", "0,1", "--beta", "0,1", "--score", "score.py:weights")
    assert "beta        acme/two:1.0.0" in told.out
    told = ready.ok("sweep", ".", "--alpha", "0,1", "--fused", "--delta", "acme/two", "--score", "score.py:weights")
    assert "alpha       acme/two:1.0.0" in told.out
    assert "1 - alpha   acme/one:1.0.0" in told.out
    assert "too few points for the curvature: 2, it takes 4" in told.err


def test_a_sweep_that_was_killed_goes_on(ready: Workplace) -> None:
    command = f"'{sys.executable}' evaluate.py {{model}}"
    arguments = ["sweep", ".", "--alpha", "0,0.5,1,2", "--eval", command, "--metric", "accuracy", "--out", "sweep.json"]
    runs = ready.directory / "runs"
    for number in (signal.SIGTERM, signal.SIGKILL):
        runs.unlink(missing_ok=True)
        (ready.directory / "sweep.json").unlink(missing_ok=True)
        scratch = ready.root / f"scratch-{number}"
        scratch.mkdir()
        ready.environment["TMPDIR"] = str(scratch)
        with ready.start(*arguments) as process:
            deadline = time.monotonic() + 60
            while not (runs.exists() and len(runs.read_text()) == 3) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            status = process.wait(60)
        if number == signal.SIGTERM:
            assert status == 143
            assert not list(scratch.iterdir())  # the checkpoint went with it
        pid = int((ready.directory / "pid").read_text())
        if number == signal.SIGTERM:
            with pytest.raises(ProcessLookupError):  # and so did the command
                os.kill(pid, 0)
        else:
            os.kill(pid, signal.SIGKILL)  # nobody was left to end it
        before = json.loads((ready.directory / "sweep.json").read_text())
        assert ([point["alpha"] for point in before["points"]], before["complete"]) == ([0, 0.5], False)
    runs.write_text("xxx")
    report = ready.ok(*arguments, "--json").document("sweep")
    assert report["reusedPoints"] == 2
    assert [point["metrics"]["accuracy"] for point in report["points"]] == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--alpha", "0:1:0.5"], "DR0100", "no evaluation given"),
        (["--alpha", "0,1", "--eval", "a {model}", "--score", "score.py:score"], "DR0100", "--eval and --score given"),
        (["--alpha", "2:0:1", "--score", "score.py:score"], "DR0101", "ends before it begins"),
        (["--alpha", "0:1:nan", "--score", "score.py:score"], "DR0101", "'nan' in --alpha is no number"),
        (["--alpha", "0:1:0.00001", "--score", "score.py:score"], "DR0101", "10,000 points"),
        (["--alpha", "1", "--score", "absent.py:score"], "DR0101", "there is no file"),
        (["--alpha", "1", "--score", "score.py:not_a_function"], "DR0101", "has no function not_a_function"),
        (["--alpha", "1", "--score", "score.py:broken"], "DR0011", "at alpha 1: score.py:broken raised ZeroDivision"),
        (["--alpha", "1", "--score", "score.py:score", "--plot", "a.pdf"], "DR0101", "does not tell what to draw"),
        (["--alpha", "1", "--score", "score.py:score", "--timeout", "3s"], "DR0101", "cannot be ended"),
        (["--alpha", "1", "--eval", "python score.py"], "DR0101", "no {model} in it"),
        (["--alpha", "1", "--eval", "sleep 60 {model}", "--timeout", "soon"], "DR0101", "no span of time"),
        (["--alpha", "1", "--eval", "sh -c 'sleep 60' {model}", "--timeout", "1s"], "DR0011", "did not end within 1 s"),
        (["--alpha", "1", "--eval", "false {model}"], "DR0011", "at alpha 1: false ended with the status 1"),
    ],
)
def test_what_goes_wrong_is_told_with_a_hint(ready: Workplace, arguments: list[str], code: str, told: str) -> None:
    done = ready.run("sweep", ".", *arguments)
    assert done.codes == [code], done.err
    assert told in done.err
    assert "hint: " in done.err
    assert done.out == ""


def test_a_recipe_that_is_not_there(ready: Workplace) -> None:
    for target in ("absent.toml", "base"):
        done = ready.run("sweep", target, "--alpha", "1", "--score", "score.py:score")
        assert done.codes == ["DR0106"], done.err


def test_one_model_is_evaluated(ready: Workplace) -> None:
    done = ready.ok("eval", ".", "--score", "score.py:score", "--out", "results.json")
    assert "acme/one:1.0.0  0.5" in done.out
    assert "loss" in done.out
    report = ready.ok("eval", "base", "--score", "score.py:score", "--json").document("eval")
    assert report["kind"] == "checkpoint"
    kept = json.loads((ready.directory / "results.json").read_text())
    assert set(kept["results"]["evaluation"]) == {"loss,none", "words,none"}
    assert kept["deltareg"]["metrics"]["words"] == report["metrics"]["words"] == 28


def test_an_evaluation_that_cannot_be(ready: Workplace) -> None:
    for arguments, code, told in (
        (["base"], "DR0100", "no evaluation given: one of --eval, --score, --tasks"),
        (["base", "--score", "score.py:score", "--limit", "3"], "DR0100", "are for --tasks"),
        (["base", "--score", "score.py:words"], "DR0011", "is no number: 'high'"),
        (["absent", "--score", "score.py:score"], "DR0003", "there is no checkpoint"),
        (
            ["base", "--score", "score.py:score", "--device", "nonsense"],
            "DR0101",
            "the device 'nonsense' cannot be used",
        ),
    ):
        done = ready.run("eval", *arguments)
        assert done.codes == [code], done.err
        assert told in done.err


def test_without_the_harness_it_is_told_how_to_get_it(ready: Workplace) -> None:
    # As on a machine without it: -S -I would lose the rest, so this one name is hidden.
    program = """
import sys
from importlib.machinery import PathFinder
class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "lm_eval" else PathFinder.find_spec(name, path, target)
sys.meta_path = [one for one in sys.meta_path if one is not PathFinder and "Editable" not in repr(one)] + [Hidden]
from deltareg.cli import main
sys.exit(main(["eval", "base", "--tasks", "arc_easy"]))
"""
    done = ready.python(program)
    assert done.status == 2, done.err
    assert "tasks need lm-evaluation-harness, which is not installed" in done.err
    assert "hint: pip install 'deltareg[eval]'" in done.err


def test_help_says_whose_rights_the_code_has(ready: Workplace) -> None:
    for command in ("sweep", "eval"):
        assert "with your rights" in " ".join(ready.ok(command, "--help").out.split())
