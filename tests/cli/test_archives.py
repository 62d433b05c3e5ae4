"""`deltareg export` and `deltareg import`, as a user types them."""

from __future__ import annotations

import shutil
import subprocess

from tests.cli.program import Workplace

DELTA = "acme/search:1.0.0"


def test_a_delta_goes_by_file(stocked: Workplace) -> None:
    told = stocked.ok("export", DELTA, "-o", "deltas.tar", "--json").document("archive")
    assert [(one["reference"], one["change"]) for one in told["names"]] == [(DELTA, "written")]
    assert stocked.run("export", DELTA, "-o", "deltas.tar").codes == ["DR0104"]
    assert DELTA in stocked.ok("export", DELTA, "-o", "deltas.tar", "--overwrite").out
    shutil.rmtree(stocked.home)
    stocked.ok("import", "deltas.tar", "--dry-run")
    assert not stocked.home.exists()
    assert DELTA in stocked.ok("import", "deltas.tar").out
    report = stocked.ok("import", "deltas.tar", "--json").document("archive")
    assert [one["change"] for one in report["names"]] == ["present"]
    stocked.ok("verify", DELTA)


def test_a_delta_goes_through_a_pipe(stocked: Workplace) -> None:
    with stocked.start("export", DELTA, "-o", "-", text=False) as process:
        data, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    shutil.rmtree(stocked.home)
    with stocked.start("import", "-", stdin=subprocess.PIPE, text=False) as process:
        out, told = process.communicate(data, timeout=60)
    assert process.returncode == 0, told
    assert DELTA in str(out)
    stocked.ok("verify", DELTA)


def test_what_is_wrong_is_refused(stocked: Workplace) -> None:
    assert stocked.run("export", DELTA, "-o", "-", "--json").codes == ["DR0100"]
    assert stocked.run("export", "acme/none", "-o", "x.tar").codes == ["DR0002"]
    assert stocked.run("import", "absent.tar").codes == ["DR0002"]
    (stocked.directory / "x.tar").write_text("no tar" * 1000)
    done = stocked.run("import", "x.tar")
    assert (done.status, done.codes) == (5, ["DR0412"])
    assert "hint: copy the file again; what can be imported is what deltareg export wrote" in done.err
    (stocked.directory / "x.tar").write_text("no tar")
    done = stocked.run("import", "x.tar")
    assert (done.status, done.codes) == (5, ["DR0412"])
    assert "was cut short after 6 bytes, or is no archive" in done.err
    assert "hint: copy the file again; what can be imported is what deltareg export wrote" in done.err
