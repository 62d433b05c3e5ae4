"""Commands and functions that evaluate, and all the ways in which they fail."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deltareg.analysis.scoring import Command, checked_metrics, load_score, score_function
from deltareg.errors import EvaluationFailed, InvalidArgument


def command(tmp_path: Path, program: str, **options: object) -> Command:
    """A command that runs a program on a model."""
    (tmp_path / "evaluate.py").write_text(program)
    return Command(f"'{sys.executable}' '{tmp_path}/evaluate.py' {{model}}", **options)  # type: ignore[arg-type]


def test_the_last_line_that_is_an_object_counts(tmp_path: Path) -> None:
    program = (
        'import sys; print("{\\"x\\": 1}"); print("{\\"model\\": %d, \\"b\\": 0.5}" % len(sys.argv[1])); print("[1]")'
    )
    assert command(tmp_path, program).run(Path("/a b")) == {"model": 4, "b": 0.5}


def test_an_object_on_several_lines_counts(tmp_path: Path) -> None:
    assert command(tmp_path, 'print("{\\n \\"a\\": 1\\n}")').run(tmp_path) == {"a": 1}


def test_only_the_metrics_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    program = 'print(\'{"a": 1, "name": "x", "b": NaN}\')'
    assert command(tmp_path, program, metrics=["b", "a"]).run(tmp_path) == {"b": None, "a": 1}
    with pytest.raises(EvaluationFailed, match=r"'name' of .* is no number: 'x'"):
        command(tmp_path, program).run(tmp_path)
    with pytest.raises(EvaluationFailed, match="no metric 'c'") as error:
        command(tmp_path, program, metrics=["c"]).run(tmp_path)
    assert error.value.cause == "it gave a, b, name"


@pytest.mark.parametrize(
    ("program", "told", "cause"),
    [
        ("import sys; print('why', file=sys.stderr); sys.exit(3)", "ended with the status 3", "why"),
        ("import os; os.kill(os.getpid(), 9)", "ended with the signal SIGKILL", "it said nothing on stderr"),
        ("print('accuracy 0.5')", "printed no JSON object", "the end of stdout: accuracy 0.5"),
        ("", "printed no JSON object", "the end of stdout: nothing"),
        ("print('{}')", "gave no metrics", None),
        ("print('{\"a\": true}')", "'a' of .* is no number: True", None),
        ("print('{\"a\": null}')", "'a' of .* is no number: None", None),
        ("print('{\"a\": [1]}')", "'a' of .* is no number", None),
        ("print('{' * 100000)", "printed no JSON object", None),
    ],
)
def test_a_command_that_fails_tells_why(tmp_path: Path, program: str, told: str, cause: str | None) -> None:
    with pytest.raises(EvaluationFailed, match=told) as error:
        command(tmp_path, program).run(tmp_path)
    assert error.value.hint
    assert cause is None or error.value.cause == cause


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    program = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pids")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    started = time.monotonic()
    with pytest.raises(EvaluationFailed, match="did not end within 3 s") as error:
        command(tmp_path, program, seconds=3.0).run(tmp_path)
    assert error.value.hint == "--timeout gives it longer"
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "pids").read_text())
    for _ in range(100):
        if not _lives(pid):
            break
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # nobody may be there to wait for it


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("evaluate.py", r"no \{model\} in it"),
        ("evaluate.py '{model}", "cannot be read"),
        ("no-such-program {model}", "'no-such-program' cannot be run: No such file"),
        ("/ {model}", "'/' cannot be run: "),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        Command(text).run(tmp_path)
    with pytest.raises(InvalidArgument, match="leaves no time"):
        Command("a {model}", seconds=0)


# --- functions ----------------------------------------------------------------------------------------------------


def test_a_function_of_a_file_finds_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_score.py").write_text("VALUE = 7")
    file = tmp_path / "one_score.py"
    file.write_text("import beside_the_score\ndef f(model, tokenizer): return {'a': beside_the_score.VALUE}")
    found = load_score(f"{file}:f")
    assert found.run(None, None) == {"a": 7}
    assert found.evaluation.digest is not None
    before = found.evaluation
    file.write_text(file.read_text() + "\n# changed")
    assert load_score(f"{file}:f").evaluation != before


def test_a_function_of_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_scores.py").write_text("def f(model, tokenizer): return {'a': 1}")
    monkeypatch.chdir(tmp_path)
    assert load_score("module_of_scores:f").run(None, None) == {"a": 1}


def test_what_a_function_prints_stays_off_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.py").write_text("print('hello')\ndef f(model, tokenizer):\n print('there')\n return {'a': 1}")
    load_score(f"{tmp_path}/loud.py:f").run(None, None)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\nthere\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("score.py", "names no function"),
        (":f", "names no function"),
        ("score.py:", "names no function"),
        ("score.py:f()", "names no function"),
        ("absent.py:f", "there is no file"),
        ("no_such_package.part:f", "there is no module no_such_package.part"),
    ],
)
def test_what_names_no_function_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told) as error:
        load_score(text)
    assert error.value.hint


def test_code_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "failing.py"
    file.write_text("\ndef f(model, tokenizer):\n    return 1 / 0\ndef g(model, tokenizer): return [1]\nx = 3")
    with pytest.raises(EvaluationFailed, match=r"failing.py:f raised ZeroDivisionError") as error:
        load_score(f"{file}:f").run(None, None)
    assert error.value.cause == f"{file}, line 3, in f"
    with pytest.raises(EvaluationFailed, match="gave list, not metrics"):
        load_score(f"{file}:g").run(None, None)
    for name in ("x", "h"):
        with pytest.raises(InvalidArgument, match=f"no function {name}") as refused:
            load_score(f"{file}:{name}")
        assert refused.value.cause == "it has f, g"
    for text, told in (
        ("import no_such_thing", "ModuleNotFoundError"),
        ("def", "SyntaxError"),
        ("exit(3)", "SystemExit"),
    ):
        file.write_text(text)
        with pytest.raises(EvaluationFailed, match=f"cannot be imported: {told}"):
            load_score(f"{file}:f")


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    values = {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": 3, "d": torch.tensor([1.0]), "e": float("inf")}
    assert checked_metrics(values, (), "f") == {"a": 0.5, "b": 2, "c": 3, "d": 1, "e": None}
    for value in (torch.ones(2), "0.5", True, None, 1j, 10**400):
        with pytest.raises(EvaluationFailed, match="is no number"):
            checked_metrics({"a": value}, (), "f")


def test_a_function_of_the_program_is_named_by_its_module() -> None:
    def accuracy(model: object, tokenizer: object) -> dict[str, float]:
        return {"a": 1}

    assert score_function(accuracy).evaluation.what.endswith("test_scoring:" + accuracy.__qualname__)
    with pytest.raises(InvalidArgument, match="no function"):
        score_function(3)  # type: ignore[arg-type]
