"""A team's registry at a path, and what it holds: real weights, and fine-tunes that this makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import deltareg
from deltareg.build import Project
from deltareg.catalog import Registry
from deltareg.progress import Progress
from deltareg.resolve import Sources

__all__ = ["Meanwhile", "Scene", "files_of", "perturbed"]

RECIPE = """\
[build]
name = "acme/mix"
base = "./base"

[[delta]]
ref = "acme/search"
version = "^1"
weight = 0.6

[[delta]]
ref = "acme/chat"
weight = 0.4
where = {{ mlp = 0.5 }}
{more}"""


@dataclass
class Scene:
    """A place to work in: a remote called `team`, and as many homes as are wanted."""

    place: Path

    def sources(self, home: str = "mine", *, offline: bool = False, threads: int = 2) -> Sources:
        """What a machine with that home looks names up in."""
        return Sources(Registry(self.place / home), {"team": str(self.place / "shared")}, {}, "team", offline)

    def publish(self, name: str, base: Path, post: Path, licence: str = "apache-2.0", **more: object) -> None:
        """Take a delta, and send it to the team."""
        registry = Registry(self.place / "publisher")
        deltareg.diff(base, post, registry, name, licence=licence, **more)  # type: ignore[arg-type]
        deltareg.push(registry, name, str(self.place / "shared"))

    def project(self, text: str | None = None, name: str = "deltareg.toml", more: str = "") -> Project:
        """A recipe's file."""
        path = self.place / name
        path.write_text(RECIPE.format(more=more) if text is None else text)
        return Project(path)


def perturbed(base: Path, out: Path, seed: int) -> Path:
    """A fine-tune of `base` that nobody trained: one in a hundred of each matrix's spread, at random."""
    shutil.copytree(base, out)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim == 2:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.01
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


class Meanwhile(Progress):
    """Does something once, as somebody else would, when a step begins."""

    def __init__(self, step: str, does: Callable[[], object]) -> None:
        self._step = step
        self._does: list[Callable[[], object]] = [does]

    def begin(self, name: str, total: int) -> None:
        if name == self._step and self._does:
            self._does.pop()()


def files_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
