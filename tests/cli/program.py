"""The program as a user runs it: in a process of its own, or in this one, which is quicker."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from deltareg.cli import main
from tests import raw

__all__ = ["ROOT", "Done", "Pair", "Workplace", "told_beside_licences", "write_pair"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Pair:
    """Two checkpoints."""

    base: Path
    post: Path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    def document(self, schema: str) -> Any:
        """Stdout as a JSON document that its schema allows."""
        value = json.loads(self.out)
        jsonschema.validate(value, json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text()))
        return value

    @property
    def codes(self) -> list[str]:
        """The codes of the errors on stderr."""
        return [line[6:12] for line in self.err.splitlines() if line.startswith("error[")]


@dataclass
class Workplace:
    """A user with a home of their own and a working directory. Nothing of this machine's settings is seen."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DELTAREG_", "XDG_"))}
        self.environment = {
            **kept,
            "HOME": str(self.root / "user"),
            "XDG_CONFIG_HOME": str(self.root / "user" / "config"),
            "DELTAREG_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }
        for name in ("NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING"):
            self.environment.pop(name, None)

    @property
    def directory(self) -> Path:
        """Where commands run."""
        return self.root / "project"

    @property
    def home(self) -> Path:
        """The home of the local registry."""
        return self.root / "home"

    @property
    def user_file(self) -> Path:
        """The user's settings."""
        return self.root / "user" / "config" / "deltareg" / "deltareg.toml"

    def run(self, *arguments: str | Path, **more: str) -> Done:
        """Run a command in this process."""
        out, err = io.StringIO(), io.StringIO()
        with self._inside(more), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
        return Done(status, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str | Path, **more: str) -> Done:
        """Run a command in this process that has to succeed."""
        done = self.run(*arguments, **more)
        assert done.status == 0, done.err
        return done

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start the real program."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [sys.executable, "-m", "deltareg", *map(str, arguments)]
        return subprocess.Popen(command, cwd=self.directory, env=self.environment, **options)

    def execute(self, *arguments: str | Path, **options: Any) -> Done:
        """Run the real program to its end."""
        with self.start(*arguments, **options) as process:
            out, err = process.communicate(timeout=60)
        return Done(process.returncode, out or "", err or "")

    def python(self, program: str) -> Done:
        """Run a Python program that may import deltareg."""
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def _inside(self, more: dict[str, str]) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update({**self.environment, **more})
        try:
            with contextlib.chdir(self.directory):
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def write_pair(directory: Path, *, elements: int = 4096, seed: int = 7) -> Pair:
    """A bf16 checkpoint of two matrices and its fine-tune, with a config and a chat template."""
    generator = np.random.default_rng(seed)
    pair = Pair(directory / "base", directory / "post")
    block = generator.normal(0, 0.02, min(elements, 1 << 20)).astype(np.float32)
    values = np.resize(block, elements)
    step = np.resize(generator.normal(0, 2e-4, len(block)).astype(np.float32), elements)
    for place, first in ((pair.base, values), (pair.post, values + step)):
        place.mkdir(parents=True)
        (place / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
        tensors = {"model.layers.0.mlp.up_proj.weight": first, "model.norm.weight": values[:64]}
        raw.write(
            place / "model.safetensors",
            [
                raw.RawTensor(raw.TensorSpec(name, "BF16", (len(data),)), raw.to_bf16(data).view(np.uint8))
                for name, data in tensors.items()
            ],
        )
    (pair.post / "chat_template.jinja").write_text("{{ messages }}")
    (pair.post / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return pair


def told_beside_licences(err: str) -> list[str]:
    """The lines of stderr, but for what is said of licences that the scene does not name."""
    return [line for line in err.splitlines() if not line.startswith("warning: the licence of ")]
