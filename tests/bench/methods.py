"""Merge methods beside mergekit's: whole processes, two deltas, one checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.bench.measured import Case, Goal, Row
from tests.bench.process import Ran, product, run

__all__ = ["has_mergekit", "measure_methods", "mergekit", "write_other"]

_REPEATS = 3
_DENSITY = ("--param", "density=0.5")
# Ours and mergekit's, with what makes them the same; every other method of ours is measured alone.
_OURS: Mapping[str, tuple[str, ...]] = {
    "linear": ("--param", "normalize=true"),
    "ties": (*_DENSITY, "--param", "trim=tensor"),
    "dare_linear": _DENSITY,
    "dare_ties": _DENSITY,
    "della_linear": (*_DENSITY, "--param", "ramp=ends"),
    "della": (*_DENSITY, "--param", "ramp=ends"),
    "breadcrumbs": _DENSITY,
    "breadcrumbs_ties": _DENSITY,
    "sce": ("--param", "select_topk=0.5"),
    "ram": (),
    "ramplus_tl": (),
    "model_stock": (),
    "slerp": (),
    "multislerp": (),
    "karcher": (),
}
_THEIRS: Mapping[str, tuple[str, float]] = {
    "linear": ("task_arithmetic", 1 / 3),
    "ties": ("ties", 1 / 20),
    "dare_ties": ("dare_ties", 1 / 20),
    "della": ("della", 1 / 20),
    "sce": ("sce", 1 / 20),
}
_GROUP = {"density": 0.5}
_SETTINGS: Mapping[str, Mapping[str, float]] = {
    "ties": _GROUP,
    "dare_ties": _GROUP,
    "della": {**_GROUP, "epsilon": 0.1},
}


def measure_methods(case: Case, scratch: Path) -> Iterator[Row | Goal]:
    """Every method of two deltas, the median of three turns; mergekit once, where it is installed."""
    environment = {**os.environ, "DELTAREG_HOME": str(scratch / "home"), "NO_COLOR": "1"}
    other = scratch / "other"
    write_other(case, other)
    for name, post in (("one", case.post), ("two", other)):
        run([*_deltareg("diff"), str(case.base), str(post), "--tag", f"bench/{name}:1.0.0"], environment)
    where = f"{case.name}, two deltas"
    for method, options in _OURS.items():
        seconds, peak = _ours(case, method, options, scratch, environment)
        yield Row(where, f"deltareg {method}", seconds=seconds, memory=peak)
        if method in _THEIRS and has_mergekit():
            name, limit = _THEIRS[method]
            ran = mergekit(case, [case.post, other], name, scratch)
            yield Row(where, f"mergekit {name}", seconds=ran.seconds, memory=ran.peak)
            goal = f"{method} ≤ 1/{round(1 / limit)} of mergekit's time"
            yield Goal(where, goal, f"1/{ran.seconds / seconds:.1f}", seconds <= limit * ran.seconds)


def _deltareg(command: str) -> list[str]:
    return [product(), command, "--threads", "2"]


def _ours(
    case: Case, method: str, options: tuple[str, ...], scratch: Path, environment: Mapping[str, str]
) -> tuple[float, int]:
    runs: list[Ran] = []
    for number in range(_REPEATS + 1):
        out = scratch / "out"
        deltas = ("bench/one:1.0.0=0.5", "bench/two:1.0.0=0.5")
        ran = run(
            [*_deltareg("apply"), str(case.base), *deltas, "--method", method, *options, "-o", str(out)], environment
        )
        shutil.rmtree(out)
        if number:  # the first warms the page cache, and has loops compiled on a machine's first use
            runs.append(ran)
    return statistics.median(one.seconds for one in runs), max(one.peak for one in runs)


def mergekit(case: Case, posts: Sequence[Path], method: str, scratch: Path) -> Ran:
    """mergekit's merge of `posts` on the base, each at weight 0.5, as a whole process."""
    settings = dict(_SETTINGS.get(method, {}))
    models = [{"model": str(post), "parameters": {"weight": 0.5, **settings}} for post in posts]
    shared = {"select_topk": 0.5} if method == "sce" else {"normalize": True}
    config = {
        "merge_method": method,
        "base_model": str(case.base),
        "dtype": "bfloat16",
        "models": models,
        "parameters": shared,
    }
    file, out = scratch / f"{method}.yaml", scratch / "out-mergekit"
    file.write_text(json.dumps(config))  # JSON is YAML
    ran = run([str(Path(sys.executable).with_name("mergekit-yaml")), str(file), str(out)])
    shutil.rmtree(out)
    return ran


def has_mergekit() -> bool:
    """Whether mergekit is there; where it is not, a line says that its rows are left out."""
    try:
        version("mergekit")
    except PackageNotFoundError:
        print("mergekit is not installed: its rows are left out", file=sys.stderr)
        return False
    return True


def write_other(case: Case, out: Path) -> None:
    """A second post: the first one's changes, at other places and with other signs."""
    generator = torch.Generator().manual_seed(3)
    shutil.copytree(case.base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in sorted(case.base.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, "pt") as base, safe_open(case.post / file.name, "pt") as post:
            for name in base.keys():  # noqa: SIM118 (safe_open is no mapping)
                before = base.get_tensor(name)
                change = (post.get_tensor(name).float() - before.float()).flatten().roll(12345)
                signs = torch.where(torch.rand(change.numel(), generator=generator) < 0.5, 1.0, -1.0)
                tensors[name] = (before.float() + (change * signs).view_as(before)).to(before.dtype)
        save_file(tensors, out / file.name, metadata={"format": "pt"})
