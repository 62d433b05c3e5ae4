"""The check of everything that deltareg depends on."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from deltareg.cli.examine import PACKAGES
from tests.cli.program import ROOT, Workplace

DELTA = "acme/search:1.0.0"


def checks(workplace: Workplace, *, status: int) -> dict[str, Any]:
    done = workplace.run("doctor", "--json")
    assert done.status == status, done.err
    document = done.document("doctor")
    assert document["ok"] is (status == 0)
    return {check["name"]: check for check in document["checks"]}


def test_a_sound_place_has_no_fault(stocked: Workplace) -> None:
    found = checks(stocked, status=0)
    assert {check["status"] for check in found.values()} <= {"ok", "warning"}
    for name in ("deltareg", "python", "settings", "home", "file system", "disk space", "registry", "catalog"):
        assert name in found
    done = stocked.ok("doctor")
    assert "registry" in done.out


def test_a_place_where_nothing_is_yet_has_no_fault(workplace: Workplace) -> None:
    found = checks(workplace, status=0)
    assert "will be made" in found["home"]["detail"]
    assert not workplace.home.exists()


def test_a_remote_that_does_not_answer_is_a_fault(workplace: Workplace) -> None:
    workplace.run("remote", "add", "team", "/nowhere/at/all")
    found = checks(workplace, status=1)
    assert found["remote team"]["status"] == "fault"
    done = workplace.run("doctor")
    assert "hint: remote team: " in done.err


def test_a_remote_that_answers_is_ok(stocked: Workplace) -> None:
    (stocked.root / "share").mkdir()
    stocked.ok("remote", "add", "team", stocked.root / "share")
    assert checks(stocked, status=0)["remote team"]["status"] == "ok"


def test_a_default_remote_that_nobody_named_is_a_fault(workplace: Workplace) -> None:
    (workplace.directory / "deltareg.toml").write_text('remote = "team"\n')
    assert checks(workplace, status=1)["default remote"]["status"] == "fault"


def test_bad_settings_are_a_fault_and_hide_nothing_else(workplace: Workplace) -> None:
    (workplace.directory / "deltareg.toml").write_text("hoem = 1\n")
    found = checks(workplace, status=1)
    assert "did you mean home?" in found["settings"]["detail"]
    assert found["disk space"]["status"] in ("ok", "warning")


def test_a_variable_that_means_nothing_is_a_warning(workplace: Workplace) -> None:
    workplace.environment["DELTAREG_HOEM"] = "elsewhere"
    check = checks(workplace, status=0)["DELTAREG_HOEM"]
    assert (check["status"], check["hint"]) == ("warning", "did you mean DELTAREG_HOME?")


def test_missing_and_cut_blobs_are_a_fault(stocked: Workplace) -> None:
    layers = stocked.ok("show", DELTA, "--json").document("show")["manifest"]["layers"]
    blobs = stocked.home / "registry" / "blobs" / "sha256"
    blobs.joinpath(layers[0]["digest"].removeprefix("sha256:")).write_bytes(b"")
    check = checks(stocked, status=1)["registry"]
    assert (check["status"], check["hint"]) == ("fault", "deltareg cache fsck")


def test_a_registry_of_another_layout_is_a_fault(stocked: Workplace) -> None:
    (stocked.home / "registry" / "oci-layout").write_text('{"imageLayoutVersion":"9.0.0"}')
    assert checks(stocked, status=1)["registry"]["status"] == "fault"


def test_every_requirement_is_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=!~\[; ]", line)[0] for line in project["dependencies"]}
    assert wanted == set(PACKAGES)
