"""`deltareg mirror`, as a user types it."""

from __future__ import annotations

import shutil

from tests.cli.program import Pair, Workplace

DELTA = "acme/search:1.0.0"


def test_a_remote_is_mirrored_and_the_mirror_pulled_from(stocked: Workplace) -> None:
    for name in ("share", "mirror"):
        (stocked.root / name).mkdir()
    stocked.ok("remote", "add", "team", stocked.root / "share")
    stocked.ok("push", DELTA)
    told = stocked.ok("mirror", "team", stocked.root / "mirror", "--dry-run", "--json").document("mirror")
    assert (told["dryRun"], [row["change"] for row in told["rows"]]) == (True, ["copied"])
    done = stocked.ok("mirror", "team", stocked.root / "mirror", "--namespace", "acme")
    assert DELTA in done.out
    report = stocked.ok("mirror", "team", stocked.root / "mirror", "--json").document("mirror")
    assert (report["rows"], report["unchanged"]) == ([], 1)
    shutil.rmtree(stocked.home)
    stocked.ok("pull", DELTA, "--remote", stocked.root / "mirror")
    stocked.ok("verify", DELTA)


def test_other_bytes_end_with_status_4(stocked: Workplace, pair: Pair) -> None:
    for name in ("share", "mirror"):
        (stocked.root / name).mkdir()
    stocked.ok("push", DELTA, "--remote", stocked.root / "share")
    shutil.rmtree(stocked.home)
    stocked.ok("diff", pair.post, pair.base, "--tag", DELTA)
    stocked.ok("push", DELTA, "--remote", stocked.root / "mirror")
    done = stocked.run("mirror", stocked.root / "share", stocked.root / "mirror", "--json")
    assert done.status == 4
    assert [row["change"] for row in done.document("mirror")["rows"]] == ["refused"]
    assert f"{DELTA} refused: there it has other bytes" in " ".join(done.err.split())


def test_mirror_refuses_what_is_wrong(stocked: Workplace) -> None:
    (stocked.root / "share").mkdir()
    share = stocked.root / "share"
    assert stocked.run("mirror", share, share, "--since", "yesterday").status == 2
    assert stocked.run("mirror", share, share, "--namespace", "acme/search").codes == ["DR0102"]
    assert stocked.run("mirror", share, share, "--repository", "acme").codes == ["DR0102"]
    assert stocked.run("mirror", "nobody", share).codes == ["DR0101"]
    assert stocked.run("mirror", share, stocked.root / "absent").status == 6
