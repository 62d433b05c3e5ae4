"""Builds on disks that fill up, builds that are killed, and several at once: nothing half done is left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from deltareg.build import Project, build, lock
from deltareg.build.building import Options
from deltareg.catalog import Registry
from deltareg.errors import DiskFull
from deltareg.lock import LockedOutput, read_lock, write_lock
from deltareg.progress import Progress
from tests.apply.killed import killed_at
from tests.apply.test_ranks import ended, started
from tests.build.scene import Meanwhile, Scene, files_of
from tests.cli.program import Workplace, write_pair
from tests.disks import fill, small_disk

RECIPE = """\
[build]
name = "acme/mix"
base = "{base}"

[[delta]]
ref = "acme/search"
weight = {weight}
"""

OTHER = LockedOutput(digest=f"blake3:{0:064}", files={"model.safetensors": f"blake3:{1:064}"})


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a remote with a delta of it, and as `whole` what a build comes to that nothing happens to."""
    place = tmp_path_factory.mktemp("team")
    pair = write_pair(place, elements=300_000)
    (place / "shared").mkdir()
    scene = Scene(place)
    scene.publish("acme/search:1.0.0", pair.base, pair.post)
    build(recipe_in(place), scene.sources("builder"), place / "whole")
    return place


@pytest.fixture
def scene(team: Path, tmp_path: Path) -> Scene:
    """Somebody who has built nothing yet."""
    for name in ("base", "shared"):
        shutil.copytree(team / name, tmp_path / name)
    return Scene(tmp_path)


def recipe_in(directory: Path, base: Path | str = "./base", weight: float = 0.6) -> Project:
    """The recipe, in a file of its own."""
    path = directory / "deltareg.toml"
    path.write_text(RECIPE.format(base=base, weight=weight))
    return Project(path)


def unfinished(directory: Path) -> list[str]:
    """What lies there of outputs and locks that were begun."""
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


# --- full disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 100 * 1024])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_registry_that_is_full_stays_sound_and_nothing_is_built(scene: Scene, team: Path, when: str, room: int) -> None:
    project = recipe_in(scene.place)
    lock(project, scene.sources("other"))
    before = project.lock_path.read_bytes()
    with small_disk(scene.place / "mine", 4096) as disk:
        registry = Registry(disk)
        ballast = disk / "ballast"

        def spill() -> None:
            fill(disk)
            os.truncate(ballast, ballast.stat().st_size - room)

        if when == "before":
            spill()
        progress = Progress() if when == "before" else Meanwhile("pull", spill)
        with pytest.raises(DiskFull, match=r"are free$|No space left") as caught:
            build(project, scene.sources(), scene.place / "out", options=Options(progress=progress))
        assert caught.value.exit_code == 1 and "free some space" in str(caught.value.hint)
        assert not (scene.place / "out").exists() and unfinished(scene.place) == []
        assert project.lock_path.read_bytes() == before
        assert registry.fsck().ok and registry.list() == []
        ballast.unlink()
        build(project, scene.sources(), scene.place / "out")
        assert files_of(scene.place / "out") == files_of(team / "whole")
        assert registry.fsck().ok


@pytest.mark.parametrize("step", ["apply", "hash"])
def test_output_for_which_the_disk_is_too_full_is_not_there(scene: Scene, team: Path, step: str) -> None:
    project = recipe_in(scene.place)
    with small_disk(scene.place / "disk", 4096) as disk:
        spill = Meanwhile(step, lambda: fill(disk))
        with pytest.raises(DiskFull, match="No space left") as caught:
            build(project, scene.sources(), disk / "out", options=Options(progress=spill))
        assert caught.value.exit_code == 1
        assert [path.name for path in disk.iterdir()] == ["ballast"]
        assert project.lock().output is None
        (disk / "ballast").unlink()
        build(project, scene.sources(), disk / "out")
        assert files_of(disk / "out") == files_of(team / "whole")
    assert project.lock() == read_lock(team / "deltareg.lock")


def test_old_lock_stays_where_the_disk_is_too_full_for_the_new_one(scene: Scene) -> None:
    with small_disk(scene.place / "disk", 256) as disk:
        project = recipe_in(disk, "../base")
        lock(project, scene.sources())
        before = project.lock_path.read_bytes()
        project = recipe_in(disk, "../base", weight=0.5)
        fill(disk)
        with pytest.raises(DiskFull):
            lock(project, scene.sources())
        with pytest.raises(DiskFull):
            build(project, scene.sources(), scene.place / "out")
        assert project.lock_path.read_bytes() == before
        assert unfinished(disk) == [] and not (scene.place / "out").exists()
        (disk / "ballast").unlink()
        build(project, scene.sources(), scene.place / "out")
        assert project.lock().deltas[0].weight == 0.5


def test_build_is_done_where_the_lock_has_no_room_for_its_digest(scene: Scene) -> None:
    with small_disk(scene.place / "disk", 256) as disk:
        project = recipe_in(disk, "../base")
        spill = Meanwhile("hash", lambda: fill(disk))
        report = build(project, scene.sources(), scene.place / "out", options=Options(progress=spill))
        (told,) = [one for one in report.warnings if "is not told what came out" in one]
        assert "No space left" in told
        assert project.lock().output is None and unfinished(disk) == []
        (disk / "ballast").unlink()
        build(project, scene.sources(), scene.place / "again")
        output = project.lock().output
        assert output is not None and output.digest == report.output


def test_what_is_here_is_built_although_the_registry_has_no_room(scene: Scene, team: Path) -> None:
    project = recipe_in(scene.place)
    with small_disk(scene.place / "mine", 4096) as disk:
        build(project, scene.sources(), scene.place / "first")
        fill(disk)
        build(project, scene.sources(offline=True), scene.place / "out")
    assert files_of(scene.place / "out") == files_of(team / "whole")


# --- kills --------------------------------------------------------------------------------------------------------


def test_killed_build_is_done_by_the_next(scene: Scene, team: Path) -> None:
    project = recipe_in(scene.place)

    def work(progress: Progress) -> object:
        return build(project, scene.sources(), scene.place / "out", options=Options(progress=progress))

    fetched: set[bool] = set()
    kills = 0
    # Each goes on from what the ones before it have left.
    while killed_at(work, kills):
        registry = Registry(scene.place / "mine")
        fetched.add(bool(registry.list()))
        assert registry.fsck().ok
        assert not (scene.place / "out").exists()
        kills += 1
    assert kills > 5 and fetched == {False, True}
    assert files_of(scene.place / "out") == files_of(team / "whole")
    assert project.lock() == read_lock(team / "deltareg.lock")
    assert unfinished(scene.place) == []
    registry = Registry(scene.place / "mine")
    registry.gc(0)
    assert registry.fsck().ok and list((registry.store.root / "tmp").iterdir()) == []


# --- several at once ----------------------------------------------------------------------------------------------


def test_slower_build_that_ends_early_leaves_the_digest_that_the_faster_has_told_the_lock(scene: Scene) -> None:
    project = recipe_in(scene.place)

    class Slower(Progress):
        def begin(self, name: str, total: int) -> None:
            if name == "base":
                build(project, scene.sources("theirs"), scene.place / "faster")
            if name == "pull":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(project, scene.sources(), scene.place / "slower", options=Options(progress=Slower()))
    assert not (scene.place / "slower").exists()
    assert project.lock() == read_lock(scene.place / "faster" / "deltareg.lock")


def test_slower_lock_leaves_the_digest_that_a_build_has_told_it(scene: Scene) -> None:
    project = recipe_in(scene.place)
    faster = Meanwhile("base", lambda: build(project, scene.sources(), scene.place / "out"))
    lock(project, scene.sources(), progress=faster)
    assert project.lock() == read_lock(scene.place / "out" / "deltareg.lock")


def test_build_is_told_where_the_lock_has_heard_of_another_output_meanwhile(scene: Scene) -> None:
    project = recipe_in(scene.place)
    lock(project, scene.sources())
    before = project.lock()

    def another() -> None:
        write_lock(before.model_copy(update={"output": OTHER}), project.lock_path)

    report = build(project, scene.sources(), scene.place / "out", options=Options(progress=Meanwhile("hash", another)))
    (told,) = [one for one in report.warnings if "another output" in one]
    assert OTHER.digest in told
    assert project.lock().output == OTHER


@pytest.fixture
def user(scene: Scene) -> Workplace:
    """Somebody at a terminal, whose remote is the team's."""
    (scene.place / "user").mkdir()
    user = Workplace(scene.place / "user")
    recipe_in(user.directory, scene.place / "base")
    user.ok("remote", "add", "team", scene.place / "shared", "--default")
    return user


def test_builds_at_once_are_as_good_as_one(user: Workplace) -> None:
    jobs = [user.start("build", "-o", out) for out in ("one", "one", "two")]
    one, another, apart = [(job.communicate()[1], job.returncode) for job in jobs]
    assert apart[1] == 0, apart[0]
    assert sorted(status for _, status in (one, another)) == [0, 2], one[0] + another[0]
    assert "error[DR0104]: the output exists already" in max(one, another, key=lambda told: told[1])[0]
    assert sorted(path.name for path in user.directory.iterdir()) == ["deltareg.lock", "deltareg.toml", "one", "two"]
    output = read_lock(user.directory / "deltareg.lock").output
    assert output is not None
    for out in ("one", "two"):
        assert user.ok("inspect", out, "--json").document("inspect")["digest"] == output.digest
    user.ok("cache", "fsck")


# --- torchrun -----------------------------------------------------------------------------------------------------


def test_one_process_builds_from_a_recipe(user: Workplace) -> None:
    done = user.run("build", "-o", "out", TORCHELASTIC_RUN_ID="job", WORLD_SIZE="2")
    assert done.status == 2 and done.codes == ["DR0100"]
    assert "apply --locked" in done.err
    assert not (user.directory / "deltareg.lock").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_first_of_several_processes_tells_programs_what_went_wrong(user: Workplace, rank: int) -> None:
    done = user.run("build", "-o", "out", "--json", TORCHELASTIC_RUN_ID="job", WORLD_SIZE="2", RANK=str(rank))
    assert done.codes == ["DR0100"]
    if rank:
        assert done.out == ""
    else:
        assert json.loads(done.out)["error"]["code"] == "DR0100"


def rebuilt_by_two(scene: Scene, team: Path, output: LockedOutput | None) -> tuple[int, str, str]:
    """What two processes made of a lock that knows of that output."""
    project = recipe_in(scene.place)
    write_lock(read_lock(team / "deltareg.lock").model_copy(update={"output": output}), project.lock_path)
    options = ["--locked", "--offline", "--recipe", project.recipe_path, "-o", scene.place / "out", "--json"]
    return ended(started(team / "builder", 2, "-m", "deltareg", "apply", *options))


@pytest.mark.slow
def test_several_processes_build_a_lock_to_the_same_bytes(scene: Scene, team: Path) -> None:
    status, out, err = rebuilt_by_two(scene, team, None)
    assert status == 0, err
    assert files_of(scene.place / "out") == files_of(team / "whole")
    assert read_lock(scene.place / "deltareg.lock") == read_lock(team / "deltareg.lock")
    assert read_lock(team / "deltareg.lock").output == read_lock(scene.place / "out" / "deltareg.lock").output
    assert json.loads(out)["deltas"][0]["fetchedBytes"] == 0  # one of them tells, and one only


@pytest.mark.slow
def test_several_processes_build_nothing_that_is_not_what_the_lock_says(scene: Scene, team: Path) -> None:
    status, _, err = rebuilt_by_two(scene, team, OTHER)
    assert status != 0  # torchrun's own
    assert "error[DR0408]: the output is not what the lock says" in err
    assert not (scene.place / "out").exists() and unfinished(scene.place) == []
    assert read_lock(scene.place / "deltareg.lock").output == OTHER
