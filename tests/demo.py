"""The whole way of a delta, on real weights: what `make demo` runs.

Fetches MiniLM and a fine-tune of it, once, and then types what two people would type who share a delta through a
directory, and a team through a registry. What they get is compared with the fine-tune by `tests/raw.py`, which shares
no code with the product. All of it happens in `.demo`, which is emptied first; a command that fails ends the demo with
its status.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests import raw, weights
from tests.perturb import perturb

__all__ = ["DIRECTORY", "PARTS", "Failed", "Part", "compare", "distance_from_midpoint", "main", "play"]

DIRECTORY = Path(__file__).resolve().parents[1] / ".demo"


class Failed(Exception):
    """A step did not do what it should; `status` is the exit status that the demo ends with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Part:
    """One pair of checkpoints: what the base is called in the demo, the delta's name, and where the weights lie."""

    title: str
    base: str
    reference: str
    pair: Callable[[], weights.Pair]

    @property
    def post(self) -> str:
        """What the fine-tune is called."""
        return f"{self.base}-sre"


PARTS: Mapping[str, Part] = {
    "fp32": Part("fp32, as shipped", "minilm", "acme/sre-search:1.0.0", weights.minilm),
    "bf16": Part("bf16", "minilm-bf16", "acme/sre-search-bf16:1.0.0", weights.minilm_bf16),
}
"""The first part that is played is shown in full, the second only in short."""


@dataclass
class Shell:
    """Types commands in a directory, as somebody, and lets their output through."""

    directory: Path
    environment: dict[str, str]
    console: Console = field(default_factory=lambda: Console(highlight=False))

    def say(self, text: str) -> None:
        """A comment, as one would type it."""
        self.console.print(f"\n# {text}", style="bold", markup=False, soft_wrap=True)

    def tell(self, text: str) -> None:
        """A line of output of the demo itself."""
        self.console.print(text, markup=False, soft_wrap=True)

    def become(self, name: str) -> None:
        """Go on as the user whose registry is the directory `name`."""
        self._echo(f"export DELTAREG_HOME={name}")
        self.environment["DELTAREG_HOME"] = name

    def type(self, command: str, *, status: int = 0) -> float:
        """Run a command that has to end with `status`; return its wall time in seconds. Raises Failed."""
        self._echo(command)
        begun = time.monotonic()
        done = subprocess.run(shlex.split(command), cwd=self.directory, env=self.environment)
        seconds = time.monotonic() - begun
        if done.returncode != status:
            raise Failed(f"`{command}` ended with status {done.returncode}; see above", done.returncode or 1)
        if status:
            self.tell(f"(exit status {status})")
        return seconds

    def ask(self, command: str) -> dict[str, Any]:
        """The JSON document that a command prints; nothing is echoed. Raises Failed."""
        done = subprocess.run(
            shlex.split(command), cwd=self.directory, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise Failed(f"`{command}` ended with status {done.returncode}; see above", done.returncode)
        return json.loads(done.stdout)

    def _echo(self, command: str) -> None:
        self.console.print(f"$ {command}", style="cyan", markup=False, soft_wrap=True)
        # Before the command writes to the same place.
        sys.stdout.flush()


# --- the comparison -----------------------------------------------------------------------------------------------


def compare(result: Path, post: Path) -> tuple[int, list[str]]:
    """The number of bytes in post's tensors, and the tensors that differ in name, dtype, shape or any bit."""
    ours, theirs = raw.read(result), raw.read(post)
    wrong = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours
        or name not in theirs
        or ours[name].spec != theirs[name].spec
        or ours[name].data.tobytes() != theirs[name].data.tobytes()
    ]
    return sum(tensor.data.nbytes for tensor in theirs.values()), wrong


def _digest(checkpoint: Path) -> str:
    hasher = hashlib.sha256()
    for name, tensor in sorted(raw.read(checkpoint).items()):
        hasher.update(f"{name} {tensor.spec.dtype} {tensor.spec.shape}\n".encode())
        hasher.update(tensor.data.tobytes())
    return hasher.hexdigest()


def distance_from_midpoint(half: Path, base: Path, post: Path) -> float:
    """How far `half` is from (base + post) / 2, in ulps of the larger of the two, at its worst element."""
    tensors, before, after = raw.read(half), raw.read(base), raw.read(post)
    worst = 0.0
    for name, tensor in tensors.items():
        x, y, z = (_numbers(one[name]) for one in (before, after, tensors))
        ulp = np.spacing(np.maximum(np.abs(x), np.abs(y))).astype(np.float64)
        if tensor.spec.dtype == "BF16":
            ulp *= 2**16
        off = np.abs(z.astype(np.float64) - (x.astype(np.float64) + y) / 2) / ulp
        worst = max(worst, float(off.max(initial=0.0)))
    return worst


def _numbers(tensor: raw.RawTensor) -> NDArray[np.float32]:
    if tensor.spec.dtype == "F32":
        return np.frombuffer(tensor.data.tobytes(), np.float32)
    return (np.frombuffer(tensor.data.tobytes(), np.uint16).astype(np.uint32) << 16).view(np.float32)


# --- the story ----------------------------------------------------------------------------------------------------


def play(directory: Path, parts: list[Part], *, programs: Path) -> None:
    """Play the demo in `directory`, an empty one, with the `deltareg` that lies in `programs`. Raises Failed."""
    if not (programs / "deltareg").exists():
        raise Failed(f"there is no deltareg in {programs}: `make demo` installs it", 2)
    begun = time.monotonic()
    shell = Shell(directory, _environment(directory, programs))
    shell.say("two checkpoints: all-MiniLM-L6-v2, and a fine-tune of it for the words of site reliability engineers")
    for part in parts:
        _fetch(part, directory)
    shell.type("du -sh " + " ".join(name for part in parts for name in (part.base, part.post)))
    shell.say("a directory that Ann and Bob both reach: a shared disk")
    shell.type("mkdir team")
    shell.type("deltareg init")
    shell.type("deltareg remote add team team")
    figures = {part.title: _tour(shell, part, first=part is parts[0]) for part in parts}
    _serve(shell, parts[0])
    shell.say("what it came to; seconds are those of the whole command, start-up included")
    shell.console.print(_table(figures))
    shell.tell(f"{time.monotonic() - begun:.0f} s in all. The first use of a command compiles its loops.")


def _fetch(part: Part, directory: Path) -> None:
    try:
        pair = part.pair()
    except weights.Unavailable as error:
        raise Failed(str(error), 6) from error
    # Copies: whoever plays on in the demo's directory shall not damage the cache.
    shutil.copytree(pair.base, directory / part.base)
    shutil.copytree(pair.post, directory / part.post)


def _environment(directory: Path, programs: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("DELTAREG_")}
    mine["PATH"] = f"{programs}{os.pathsep}{mine.get('PATH', os.defpath)}"
    # The settings of whoever runs the demo are none of its business.
    mine["XDG_CONFIG_HOME"] = str(directory / ".config")
    return mine


def _tour(shell: Shell, part: Part, *, first: bool) -> dict[str, str]:
    """One delta from diff to apply, the first one in full; returns the lines of its column in the table."""
    base, post, name = part.base, part.post, part.reference
    rebuilt, half = f"{base}-rebuilt", f"{base}-half"
    seconds: dict[str, float] = {}
    shell.say(f"Ann takes the delta of {base} and {post}")
    shell.become("ann")
    seconds["diff"] = shell.type(f"deltareg diff {base} {post} --tag {name} --licence apache-2.0")
    if first:
        shell.say("and looks at it")
        seconds["list"] = shell.type("deltareg list")
        seconds["show"] = shell.type(f"deltareg show {name}")
    shell.say("Ann shares it")
    seconds["push"] = shell.type(f"deltareg push {name} --remote team")
    shell.say(f"Bob, {'whose registry is empty' if first else 'who has the same side files already'}, fetches it")
    shell.become("bob")
    seconds["pull"] = shell.type(f"deltareg pull {name} --remote team")
    shell.say("has it checked")
    seconds["verify"] = shell.type(f"deltareg verify {name} --base {base} --post {post}")
    if first:
        _judge(shell, part, seconds)
    shell.say(f"and applies it to {base}, which is all he needs to have")
    seconds["apply"] = shell.type(f"deltareg apply {base} {name} -o {rebuilt}")
    _prove(shell, part, rebuilt)
    if first:
        shell.say("half of it")
        seconds["apply at 0.5"] = shell.type(f"deltareg apply {base} {name}=0.5 -o {half}")
        _check_half(shell, part, half)
    return _figures(shell.ask(f"deltareg show {name} --json"), seconds)


def _judge(shell: Shell, part: Part, seconds: dict[str, float]) -> None:
    base, name = part.base, part.reference
    shell.say(f"asks which deltas fit {base}, and whether this one does")
    seconds["search"] = shell.type(f"deltareg search --for {base}")
    seconds["check"] = shell.type(f"deltareg check {name} --base {base}")
    shell.say(f"a stranger has the shapes of {base} and other weights: here the delta would be noise")
    make_stranger(shell.directory / base, shell.directory / "stranger")
    shell.type(f"deltareg check {name} --base stranger", status=3)


def make_second(base: Path, out: Path) -> None:
    """Another fine-tune of `base`, for those who play on: noise on its weights, which nobody trained."""
    perturb(base, out, width=3e-4, seed=7)


def make_stranger(base: Path, out: Path) -> None:
    """A checkpoint of the same shapes, each tensor's numbers in an order of its own."""
    shutil.copytree(base, out)
    draw = np.random.default_rng(0)
    tensors = raw.read(base).values()
    path = out / "model.safetensors"
    path.unlink()
    raw.write(path, (raw.RawTensor(one.spec, _shuffled(one, draw)) for one in tensors))


def _shuffled(tensor: raw.RawTensor, draw: np.random.Generator) -> NDArray[np.uint8]:
    width = tensor.data.size // max(1, math.prod(tensor.spec.shape))
    return draw.permutation(tensor.data.reshape(-1, width)).reshape(-1)


def _prove(shell: Shell, part: Part, rebuilt: str) -> None:
    shell.say(f"is {rebuilt} the same as {part.post}? Read without deltareg, every tensor, every bit:")
    place = shell.directory
    nbytes, wrong = compare(place / rebuilt, place / part.post)
    if wrong:
        raise Failed(f"{rebuilt} is not {part.post}: {len(wrong)} tensors differ, {', '.join(wrong[:5])} …", 5)
    count = len(raw.read(place / part.post))
    shell.tell(f"{count} of {count} tensors are equal: names, dtypes, shapes, {nbytes:,} bytes")
    for name in (part.post, rebuilt, part.base):
        shell.tell(f"sha256 of the tensors {_digest(place / name)}  {name}")
    _, differing = compare(place / part.base, place / part.post)
    shell.tell(f"(the same comparison of {part.base} with {part.post} finds {len(differing)} tensors that differ)")


def _check_half(shell: Shell, part: Part, half: str) -> None:
    place = shell.directory
    off = distance_from_midpoint(place / half, place / part.base, place / part.post)
    if off > 1:
        raise Failed(f"{half} is {off:.2f} ulp from the middle between {part.base} and {part.post}", 5)
    shell.tell(f"every element lies midway between {part.base} and {part.post}, to within {off:.2f} ulp")


def _serve(shell: Shell, part: Part) -> None:
    """A team's registry: Ann pushes to it, Cid, whose home is empty, finds the delta by the base and pulls it."""
    name = part.reference
    shell.say("a registry for the whole team: one command, one process")
    with _server(shell) as (url, token):
        shell.become("ann")
        shell.environment["DELTAREG_TOKEN"] = token
        shell.tell("$ export DELTAREG_TOKEN=drt_…")
        shell.type(f"deltareg push {name} --remote {url}")
        shell.say(f"Cid, whose registry is empty, asks it what fits {part.base}, and fetches that")
        shell.become("cid")
        shell.type(f"deltareg search --for {part.base} --remote {url}")
        shell.type(f"deltareg pull {name} --remote {url}")
        page = f"{url}/d/{name.partition(':')[0]}"
        shell.say("in a browser")
        shell.tell(f"{page} (sign in with the token: {token})")
        if sys.stdin.isatty():
            input("The registry goes on until you press Enter. ")
    del shell.environment["DELTAREG_TOKEN"]


@contextmanager
def _server(shell: Shell) -> Generator[tuple[str, str]]:
    """The registry that a command starts in the background; gives its URL and the owner's token. Raises Failed."""
    command = "deltareg-registry serve --data registry --port 0"
    shell.tell(f"$ {command} &")
    said = shell.directory / "registry.log"
    with said.open("w") as output, (shell.directory / "registry-access.log").open("w") as log:
        # By way of the PATH of the demo, not of whoever runs it.
        program = shutil.which("deltareg-registry", path=shell.environment["PATH"])
        if program is None:
            raise Failed("there is no deltareg-registry: `make demo` installs it", 2)
        arguments = [program, *command.split()[1:]]
        server = subprocess.Popen(arguments, cwd=shell.directory, env=shell.environment, stdout=output, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while (found := re.search(r"(http\S+)\n(?:.*\n)*?.*(drt_\S+)\n", said.read_text())) is None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"`{command}` did not start: {said.read_text()}")
            time.sleep(0.05)
        shell.tell(said.read_text().rstrip())
        yield found[1], found[2]
    finally:
        server.terminate()
        server.wait(30)


def _figures(details: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, str]:
    post, size = details["config"]["post"], details["size"]
    figures = {
        "parameters": f"{post['parameters']:,}",
        "raw bytes (tensors of post)": f"{post['size']:,}",
        "artifact bytes (everything)": f"{size:,}",
        "ratio": f"{post['size'] / size:.2f}",
        "bits per parameter": f"{8 * size / post['parameters']:.2f}",
    }
    return figures | {f"seconds of {step}": f"{spent:.2f}" for step, spent in seconds.items()}


def _table(figures: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table()
    table.add_column("")
    for title in figures:
        table.add_column(title, justify="right")
    labels = dict.fromkeys(label for column in figures.values() for label in column)
    for label in labels:
        table.add_row(label, *(column.get(label, "") for column in figures.values()))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Play the demo; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="play this part alone, in full")
    chosen = parser.parse_args(arguments)
    parts = [PARTS[chosen.only]] if chosen.only else [*PARTS.values()]
    if DIRECTORY.exists():
        shutil.rmtree(DIRECTORY)
    DIRECTORY.mkdir()
    try:
        play(DIRECTORY, parts, programs=Path(sys.executable).parent)
    except Failed as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    for part in parts:
        if part is PARTS["bf16"]:
            make_second(DIRECTORY / part.base, DIRECTORY / f"{part.base}-perturbed")
    print(f"To play on: . .venv/bin/activate; cd {DIRECTORY.name}; export DELTAREG_HOME=bob")
    return 0


if __name__ == "__main__":
    sys.exit(main())
