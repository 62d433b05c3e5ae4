"""The check of everything that deltareg depends on."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

import pytest

from deltareg.cli.examine import PACKAGES
from deltareg.store import Store
from tests.cli.program import ROOT, Workplace
from tests.deltas import publish_unread

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


def test_a_home_of_nobody_is_a_fault_and_hides_nothing_else(workplace: Workplace) -> None:
    workplace.environment["DELTAREG_HOME"] = "~nosuch-user/x"
    found = checks(workplace, status=1)
    assert found["home"]["status"] == found["settings"]["status"] == "fault"
    assert "nobody's home" in found["home"]["detail"]


def test_a_home_that_cannot_even_be_looked_at_is_a_fault(workplace: Workplace) -> None:
    # The system refuses the name itself, as it refuses root nothing else.
    workplace.environment["DELTAREG_HOME"] = str(workplace.root / ("x" * 300))
    found = checks(workplace, status=1)
    assert found["registry"]["status"] == "fault"
    assert found["disk space"]["status"] in ("ok", "warning")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_home_in_a_closed_directory_is_a_fault(workplace: Workplace) -> None:
    closed = workplace.root / "closed"
    closed.mkdir(mode=0)
    workplace.environment["DELTAREG_HOME"] = str(closed / "home")
    assert checks(workplace, status=1)["home"]["status"] == "fault"


def test_a_delta_of_a_newer_format_is_no_fault(stocked: Workplace) -> None:
    store = Store(stocked.home / "registry")
    publish_unread(store, "acme/newer:1.0.0", b'{"formatVersion":2}')
    check = checks(stocked, status=0)["catalog"]
    assert (check["status"], "acme/newer:1.0.0" in check["detail"]) == ("warning", True)
    assert "newer deltareg" in check["hint"] or "upgrade" in check["hint"]
    publish_unread(store, "acme/broken:1.0.0", b"no JSON")
    check = checks(stocked, status=1)["catalog"]
    assert (check["status"], check["hint"]) == ("fault", "deltareg cache fsck")
    assert "2 of 3 versions cannot be read: acme/broken:1.0.0" in check["detail"]
