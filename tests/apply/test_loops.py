"""Every compiled loop that a run uses is loaded before it, whatever the dtypes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deltareg import Registry, diff
from tests.codec.oracle import FORMATS
from tests.codec.samples import SAMPLES
from tests.codec.tensors import Raw, of, write_checkpoint

# Signatures that each loop has once an apply has loaded, and once it has run.
_PROGRAM = """
import json, sys
import deltareg, deltareg.apply
from deltareg.codec import kernels, tokens
applying = sys.modules["deltareg.apply.apply"]
def counts():
    loops = {**vars(kernels), **vars(tokens)}
    return {name: len(loop.signatures) for name, loop in loops.items() if hasattr(loop, "signatures")}
load, found = applying.load_loops, []
def watched(*arguments):
    load(*arguments)
    found.append(counts())
applying.load_loops = watched
deltareg.apply(sys.argv[1], {name: 1.0 for name in sys.argv[4:]}, deltareg.Registry(sys.argv[2]), sys.argv[3])
print(json.dumps([found[0], counts()]))
"""


def late(target: Path, home: Path, out: Path, *names: str) -> list[str]:
    """The loops that were loaded in the run itself."""
    command = [sys.executable, "-c", _PROGRAM, str(target), str(home), str(out), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert sum(after.values()) > 0
    return [name for name, count in after.items() if count != before[name]]


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "zero"])
def test_loops_of_a_delta_are_loaded_first(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    base, post = sample.make(sample.size)
    kept = of("BF16", np.arange(9, dtype=np.uint16))
    before: dict[str, Raw] = {"kept": kept}
    if base is not None and sample.base_dtype is not None:
        before["weight"] = of(sample.base_dtype, base)
    target = write_checkpoint(tmp_path / "base", before)
    home = tmp_path / "home"
    diff(
        target,
        write_checkpoint(tmp_path / "post", {"kept": kept, "weight": of(sample.dtype, post)}),
        Registry(home),
        "a/b:1.0.0",
    )
    assert late(target, home, tmp_path / "out", "a/b:1.0.0") == []


def test_loops_of_two_deltas_are_loaded_first(tmp_path: Path) -> None:
    draw, format_ = np.random.default_rng(1), FORMATS["BF16"]
    values = draw.normal(0, 0.02, 3000)
    target = write_checkpoint(tmp_path / "base", {"weight": of("BF16", format_.narrow(values))})
    for number in (1, 2):
        moved = values + draw.normal(0, 2e-4, 3000)
        post = write_checkpoint(tmp_path / f"post-{number}", {"weight": of("BF16", format_.narrow(moved))})
        diff(target, post, Registry(tmp_path / "home"), f"a/b:{number}.0.0")
    assert late(target, tmp_path / "home", tmp_path / "out", "a/b:1.0.0", "a/b:2.0.0") == []


def test_loops_of_a_conversion_are_loaded_first(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(0, 1, 40)
    narrow = FORMATS["BF16"].narrow(values)
    base = {"weight": of("BF16", narrow), "other": of("BF16", narrow)}
    wider = of("F32", narrow.astype(np.uint32) << 16)
    target = write_checkpoint(tmp_path / "base", base)
    post = write_checkpoint(tmp_path / "post", {"weight": wider, "other": of("BF16", narrow[::-1].copy())})
    diff(target, post, Registry(tmp_path / "home"), "a/b:1.0.0")
    assert late(target, tmp_path / "home", tmp_path / "out", "a/b:1.0.0") == []
