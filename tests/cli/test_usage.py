"""Every wrong usage ends with status 2, in the form of an error, as JSON on request."""

from __future__ import annotations

import pytest

from tests.cli.program import Pair, Workplace
from tests.docs import commands

OPTIONS = {
    path: {option for parameter in context.command.params for option in parameter.opts}
    for path, context in commands()
    if not hasattr(context.command, "commands")
}

WRONG = {
    "unknown command": (["pusch"], "DR0100", "no such command 'pusch'"),
    "unknown group command": (["cache", "clean"], "DR0100", "no such command 'clean'"),
    "unknown global option": (["--jsn"], "DR0100", "no such option: --jsn"),
    "diff without anything": (["diff"], "DR0100", "missing argument 'BASE'"),
    "diff without a post": (["diff", "a"], "DR0100", "missing argument 'POST'"),
    "diff without a tag": (["diff", "a", "b"], "DR0100", "missing option '--tag'"),
    "diff with three checkpoints": (["diff", "a", "b", "c", "--tag", "x/y:1.0.0"], "DR0100", "unexpected extra"),
    "diff with an unknown preset": (["diff", "a", "b", "--tag", "x/y:1.0.0", "--preset", "best"], "DR0100", "'best'"),
    "diff on no thread": (["diff", "a", "b", "--tag", "x/y:1.0.0", "--threads", "0"], "DR0100", "'--threads'"),
    "diff on some threads": (["diff", "a", "b", "--tag", "x/y:1.0.0", "--threads", "some"], "DR0100", "'--threads'"),
    "diff with an option cut off": (["diff", "a", "b", "--tag"], "DR0100", "--tag"),
    "diff of nobody's home": (["diff", "~nosuch-user/x", "b", "--tag", "x/y:1.0.0"], "DR0101", "nobody's home"),
    "diff of a bad hub name": (["diff", "hf://tiny", "b", "--tag", "x/y:1.0.0"], "DR0102", "hf://tiny"),
    "diff under no licence": (["diff", "a", "b", "--tag", "x/y:1.0.0", "--licence", "do what"], "DR0101", "licence"),
    "push to nobody's home": (["push", "acme/search", "--remote", "~nosuch-user/x"], "DR0101", "nobody's home"),
    "remote add in nobody's home": (["remote", "add", "team", "~nosuch-user/x"], "DR0101", "nobody's home"),
    "diff into a channel": (["diff", "a", "b", "--tag", "acme/search:prod"], "DR0102", "does not name a version"),
    "diff into a bad name": (["diff", "a", "b", "--tag", "Acme/Search:1.0.0"], "DR0102", "namespace 'Acme'"),
    "diff into build metadata": (["diff", "a", "b", "--tag", "acme/search:1.0.0+7"], "DR0102", "'1.0.0+7'"),
    "list of a bad name": (["list", "search"], "DR0102", "no namespace"),
    "show without a reference": (["show"], "DR0100", "missing argument 'REFERENCE'"),
    "show of a bad digest": (["show", "acme/search@sha256:12"], "DR0102", "not a digest"),
    "push without a reference": (["push"], "DR0100", "missing argument 'REFERENCE'"),
    "push to nowhere": (["push", "acme/search:1.0.0"], "DR0101", "no default remote"),
    "push to a stranger": (["push", "acme/search:1.0.0", "--remote", "team"], "DR0101", "no remote is called 'team'"),
    "push to an unknown kind": (["push", "acme/search", "--remote", "gopher://x/y"], "DR0100", "gopher://"),
    "pull from nowhere": (["pull", "acme/search:1.0.0"], "DR0101", "no default remote"),
    "pull of a bad name": (["pull", "acme", "--remote", "./somewhere"], "DR0102", "no namespace"),
    "verify with half a pair": (["verify", "acme/search", "--base", "a"], "DR0101", "belong together"),
    "apply without an output": (["apply", "a", "acme/search"], "DR0100", "missing option '--out'"),
    "apply without a delta": (["apply", "a", "-o", "out"], "DR0100", "name a target and a delta at least"),
    "apply of a bad name": (["apply", "a", "acme", "-o", "out"], "DR0102", "no namespace"),
    "apply with strange side files": (["apply", "a", "x/y", "-o", "o", "--side-files", "base"], "DR0100", "'base'"),
    "gc with a strange time": (["cache", "gc", "--grace", "soon"], "DR0101", "'soon' is no span of time"),
    "init of two directories": (["init", "a", "b"], "DR0100", "unexpected extra argument"),
    "remote add without a URL": (["remote", "add", "team"], "DR0100", "missing argument 'URL'"),
    "remote add of a bad name": (["remote", "add", "my/team", "/srv"], "DR0101", "cannot be called 'my/team'"),
    "remote add of an unknown kind": (["remote", "add", "team", "gopher://x"], "DR0100", "gopher://"),
    "remote add of nothing": (["remote", "add", "team", ""], "DR0101", "cannot be empty"),
    "yank without a reason": (["yank", "acme/search:1.0.0"], "DR0100", "missing option '--reason'"),
    "yank for an empty reason": (["yank", "acme/search:1.0.0", "--reason", " "], "DR0101", "the reason is empty"),
    "yank for two lines": (["yank", "acme/search:1.0.0", "--reason", "a\nb"], "DR0101", "is no reason"),
    "yank of a name": (["yank", "acme/search", "--reason", "x"], "DR0102", "does not name a version"),
    "unyank of a channel": (["unyank", "acme/search:prod"], "DR0102", "does not name a version"),
    "channel set without a version": (["channel", "set", "acme/search:prod"], "DR0100", "missing argument 'VERSION'"),
    "channel set of a version": (["channel", "set", "acme/search:1.0.0", "1.0.0"], "DR0102", "is no channel"),
    "channel set of latest": (["channel", "set", "acme/search:latest", "1.0.0"], "DR0102", "is no channel"),
    "channel set of a name": (["channel", "set", "acme/search", "1.0.0"], "DR0102", "is no channel"),
    "channel set to nonsense": (["channel", "set", "acme/search:prod", "1.0"], "DR0102", "'1.0'"),
    "channel remove of latest": (["channel", "remove", "acme/search:latest"], "DR0102", "is no channel"),
    "channel list of a bad name": (["channel", "list", "search"], "DR0102", "no namespace"),
    "remote remove of a stranger": (["remote", "remove", "team"], "DR0101", "no remote is called 'team'"),
}


@pytest.mark.parametrize(("arguments", "code", "told"), WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_is_an_error(stocked: Workplace, pair: Pair, arguments: list[str], code: str, told: str) -> None:
    words = [{"a": str(pair.base), "b": str(pair.post)}.get(word, word) for word in arguments]
    done = stocked.run(*words)
    assert (done.status, done.codes, done.out) == (2, [code], ""), done.err
    first = done.err.splitlines()[0]
    assert first.startswith(f"error[{code}]: ")
    assert told in first
    assert list(stocked.directory.iterdir()) == []


@pytest.mark.parametrize(("arguments", "code", "told"), WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_is_a_document_on_request(
    stocked: Workplace, pair: Pair, arguments: list[str], code: str, told: str
) -> None:
    words = [{"a": str(pair.base), "b": str(pair.post)}.get(word, word) for word in arguments]
    # Before the other words: an option that was cut off would take it for its value.
    command = 2 if words[0] in ("cache", "channel", "remote") else 1
    done = stocked.run(*words[:command], "--json", *words[command:])
    error = done.document("error")["error"]
    assert done.status == 2
    assert error["code"] == code
    # --json itself may be what is not known first.
    assert told in error["message"] or "--json" in error["message"]
    assert done.codes == [code]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_refuses_unknown_options(workplace: Workplace, name: str) -> None:
    done = workplace.run(*name.split()[1:], "--no-such-option")
    assert (done.status, done.codes, done.out) == (2, ["DR0100"], "")
    assert done.err.splitlines()[-1] == f"hint: {name} --help"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_has_json(name: str) -> None:
    assert "--json" in OPTIONS[name]


WRITERS = ["init", "diff", "push", "pull", "apply", "remote add", "remote remove"]
WRITERS += ["yank", "unyank", "channel set", "channel remove"]
WRITERS += ["cache gc", "cache reindex", "cache fsck"]


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_has_a_dry_run(name: str) -> None:
    assert "--dry-run" in OPTIONS[f"deltareg {name}"]


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999", "half", "", "1_0", "0x1", "1,5", " 1", "٣"])
def test_a_weight_is_a_finite_number(stocked: Workplace, pair: Pair, weight: str) -> None:
    done = stocked.run("apply", pair.base, f"acme/search:1.0.0={weight}", "-o", "out")
    assert (done.status, done.codes) == (2, ["DR0101"])
    assert list(stocked.directory.iterdir()) == []


@pytest.mark.parametrize("weight", ["1", "-0.5", "+.5", "1.", "2e-3", "1E+1", "0"])
def test_a_weight_may_be_any_finite_number(stocked: Workplace, pair: Pair, weight: str) -> None:
    done = stocked.ok("apply", pair.base, f"acme/search:1.0.0={weight}", "-o", "out", "--dry-run", "--json")
    assert done.document("apply")["deltas"][0]["weight"] == float(weight)


def test_help_says_whose_memory_is_bounded(workplace: Workplace) -> None:
    told = " ".join(workplace.ok("apply", "--help").out.replace("│", " ").split())
    assert "Memory of this machine to use at most" in told
    assert "A GPU's own is not counted" in told
