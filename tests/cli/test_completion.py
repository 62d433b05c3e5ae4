"""What the shell offers when the user asks it to complete a word."""

from __future__ import annotations

import pytest

from tests.cli.program import Workplace


def complete(workplace: Workplace, line: str) -> list[str]:
    workplace.environment |= {
        "_DELTAREG_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = workplace.execute()
    assert done.err == ""
    return [offer.split("\t")[0] for offer in done.out.splitlines() if offer]


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("deltareg d", ["diff", "deprecate", "doctor"]),
        ("deltareg cache ", ["gc", "fsck", "reindex"]),
        ("deltareg show acme/s", ["acme/search:1.0.0"]),
        ("deltareg show other/", []),
        ("deltareg apply target acme/search:1.0.0=0.5 ac", ["acme/search:1.0.0"]),
        ("deltareg push acme/search:1.0.0 --remote te", ["team"]),
        ("deltareg remote remove t", ["team"]),
        ("deltareg diff a b --preset s", ["small"]),
    ],
)
def test_words_are_completed(stocked: Workplace, line: str, offers: list[str]) -> None:
    stocked.ok("remote", "add", "team", stocked.root)
    assert complete(stocked, line) == offers


def test_completion_keeps_quiet_where_nothing_can_be_read(workplace: Workplace) -> None:
    assert complete(workplace, "deltareg show ac") == []
    (workplace.directory / "deltareg.toml").write_text("nonsense = 1\n")
    assert complete(workplace, "deltareg show ac") == []
    assert complete(workplace, "deltareg push x --remote t") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_the_shell_is_shown(workplace: Workplace, shell: str) -> None:
    done = workplace.execute("--show-completion", shell)
    assert done.status == 0
    assert "_DELTAREG_COMPLETE" in done.out
