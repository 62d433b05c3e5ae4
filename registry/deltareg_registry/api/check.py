"""Whether deltas fit a target that whoever asks describes; its weights stay where they are."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.artifact import Artifact
from deltareg.check import CheckedDelta, fit_description, fitter
from deltareg.checkpoint import Checkpoint, described_checkpoint
from deltareg.checkpoint.layout import side_files_of
from deltareg.errors import DeltaregError, InvalidArgument
from deltareg.fingerprint import fingerprint_of, tokenizer_fingerprint
from deltareg.fingerprint.structure import Structure, structure_of
from deltareg.fingerprint.tokenizer import tokenizer_of
from deltareg.manifest import Document, Fingerprint
from deltareg.names import Reference
from deltareg.sketch import Samples, TensorSpec, read_samples
from deltareg_registry.access.principal import Principal
from deltareg_registry.api.artifacts import open_delta
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.turns import turn
from deltareg_registry.records.searching import Search, search
from deltareg_registry.state import State, state_of

__all__ = ["CheckAnswer", "CheckRequest", "check_router"]

_MOST_TENSORS = 500_000
_MOST = 20
_CONFIG = "config.json"

CHECK_LIMIT = 48 << 20
"""Bytes of a description: a tokenizer or samples of a large model may have 20 MB."""

check_router = APIRouter(
    prefix="/api/v1/check", tags=["compatibility"], responses=PROBLEMS | problems(413), route_class=bounded(CHECK_LIMIT)
)


class TargetTensor(Document):
    """A tensor of the target."""

    name: str = Field(min_length=1, max_length=4096)
    dtype: str = Field(description="as safetensors calls it", max_length=16)
    shape: list[Annotated[int, Field(ge=0, lt=2**53)]] = Field(max_length=64)


class CheckRequest(Document):
    """What is known of a target, the more the better, and which deltas are meant.

    With `tensors` deltas are judged as `deltareg check` does it; with `fingerprint` it is known whether tensors differ,
    and not which; with files alone not even that.
    """

    fingerprint: Fingerprint | None = Field(default=None, description="as `deltareg fingerprint` tells it")
    # Every fault of half a million bad entries would take all memory. The first is enough.
    tensors: list[TargetTensor] | None = Field(
        default=None, max_length=_MOST_TENSORS, fail_fast=True, description="every tensor of the target"
    )
    files: dict[str, str] = Field(
        default={}, max_length=32, description="texts by name: config.json, tokenizer.json and other tokenizer files"
    )
    samples: str | None = Field(
        default=None,
        description="with tensors: sampled values of the target, as docs/format.md has them of a base, in base64",
    )
    deltas: list[str] = Field(default=[], max_length=_MOST, description="names of deltas; none: those that fit best")
    limit: int = Field(default=10, ge=1, le=_MOST, description="deltas that are judged where none is named")


class CheckAnswer(Document):
    """Whether deltas fit the target, each by itself."""

    deltas: list[CheckedDelta] = Field(description="those that were named, or those that fit best by their digests")
    fingerprint: Fingerprint | None = Field(description="of the target; null where its tensors are not known")
    warnings: list[str] = Field(description="deltas that could not be judged")
    seconds: float


_Judge = Callable[[Reference, Artifact], CheckedDelta]


@check_router.post("")
def check(request: Request, asking: Asking, body: CheckRequest) -> CheckAnswer:
    """Judge deltas for a target; nothing of what is sent is kept."""
    started = time.monotonic()
    state = state_of(request)
    with turn(), _target(body) as target:
        fingerprint = fingerprint_of(target) if body.tensors is not None else body.fingerprint
        judge = _judge(body, target)
        found: list[CheckedDelta] = []
        warnings: list[str] = []
        for name in body.deltas:
            found.append(judge(*open_delta(state, asking, name)))
        for name in [] if body.deltas else _candidates(state, asking, body, target, fingerprint):
            try:
                found.append(judge(*open_delta(state, asking, name)))
            except DeltaregError as error:
                # One that is damaged must not hide the others.
                warnings.append(f"{name}: {error.message}")
    return CheckAnswer(deltas=found, fingerprint=fingerprint, warnings=warnings, seconds=time.monotonic() - started)


@contextmanager
def _target(body: CheckRequest) -> Generator[Checkpoint]:
    """The target as far as it is described. Raises BadCheckpoint, UnsupportedFormat, InvalidArgument."""
    if body.fingerprint is None and body.tensors is None and _CONFIG not in body.files:
        raise InvalidArgument("nothing is said of the target", hint="send fingerprint, tensors or config.json")
    if body.samples is not None and body.tensors is None:
        raise InvalidArgument("samples say nothing without tensors", hint="send names, dtypes and shapes too")
    others = [name for name in body.files if name != _CONFIG]
    strange = sorted(set(others) - set(side_files_of(others)))
    if strange:
        raise InvalidArgument(f"{strange[0]!r:.100} is neither config.json nor a file of a tokenizer")
    tensors = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in body.tensors or ()}
    if len(tensors) != len(body.tensors or ()):
        raise InvalidArgument("a tensor is named twice")
    files = {name: text.encode("utf-8", "surrogatepass") for name, text in body.files.items()}
    with described_checkpoint("the target", tensors, files) as opened:
        yield opened


def _judge(body: CheckRequest, target: Checkpoint) -> _Judge:
    if body.tensors is not None:
        judged = fitter(target, threads=1, weights=_samples(body) or False)
        return lambda reference, artifact: judged(reference, artifact).checked
    given = body.fingerprint
    if given is not None:
        structure = Structure(given.model_type, given.structure, given.behaviour)
        tokenizer, digests = given.tokenizer, (given.digest, given.space)
    else:
        structure, digests = structure_of(target.config, {}), None
        tokenizer = tokenizer_fingerprint(tokenizer_of(target))
    return lambda reference, artifact: fit_description(
        reference, artifact.digest, artifact.config, structure, tokenizer, digests
    )


def _samples(body: CheckRequest) -> Samples | None:
    if body.samples is None:
        return None
    try:
        data = base64.b64decode(body.samples, validate=True)
    except binascii.Error as error:
        raise InvalidArgument(f"the samples are no base64: {error}") from error
    specs = [TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in body.tensors or ()]
    return read_samples(data, specs)


def _candidates(
    state: State, asking: Principal, body: CheckRequest, target: Checkpoint, fingerprint: Fingerprint | None
) -> list[str]:
    """The names of the deltas that fit best by their digests; by the kind of model, where no digest is known."""
    if fingerprint is None:
        wanted = Search(model_type=structure_of(target.config, {}).model_type or "", limit=body.limit)
    else:
        tokenizer = fingerprint.tokenizer
        wanted = Search(
            fingerprint=fingerprint.digest,
            space=fingerprint.space,
            tokenizer_core=None if tokenizer is None else tokenizer.core,
            tokenizer_added=None if tokenizer is None else tokenizer.added,
            limit=body.limit,
        )
    with state.database.reading() as connection:
        rows = search(connection, asking, wanted).rows
    return [f"{row['namespace']}/{row['name']}:{row['version']}" for row in rows]
