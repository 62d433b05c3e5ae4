"""Base and adapter as one checkpoint, whose tensors are computed when they are read."""

from __future__ import annotations

import math
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.checkpoint.layout import is_tokenizer_file
from deltareg.codec import FACTOR_DTYPES, Factors, LowRank, LowRankTensor, lane_of
from deltareg.codec.lanes import DELTA_DTYPES
from deltareg.codec.lowrank import fits, matrix_of
from deltareg.errors import BadAdapter
from deltareg.lora.adapter import Adapter, Module, faulty
from deltareg.lora.modules import Kind, has_turned, kind_of
from deltareg.lora.places import Places
from deltareg.lora.renamed import is_renamed
from deltareg.lora.sources import Converted, Rescaled, Summed, bits_of, computed, info_of, named

if TYPE_CHECKING:
    pass

__all__ = ["Merged", "merge"]

_HEADS = ("lm_head.weight", "embed_out.weight", "decoder.weight")
_WITH_HEAD = re.compile(r"ForCausalLM|LMHead|ForMaskedLM|ForConditionalGeneration|ForPreTraining")
_LAYER = re.compile(r".+?\.[0-9]+\.")
# The factors of so many tensors are held at a time.
_HELD = 3


class Merged(Checkpoint):
    """What an adapter makes of its base: a post that lies nowhere. Closing it closes nothing."""

    def __init__(self, base: Checkpoint, adapter: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        # Not by way of Checkpoint, which would read headers: a tokenizer that came with the adapter is post's.
        own = any(is_tokenizer_file(path.as_posix()) for path in adapter.side_files)
        beside = adapter if own else base
        # A template that came without one speaks the base's tokens, and takes the place of the base's.
        self._templates = {} if own else {path: adapter for path in adapter.side_files if _is_template(path)}
        self.id = adapter.id
        self.revision = adapter.revision
        self.shards = base.shards
        self.tensors = MappingProxyType(dict(tensors))
        self.config = base.config
        self.dequantised = base.dequantised
        self.licence = adapter.licence
        kept = [path for path in beside.side_files if not (self._templates and _is_template(path))]
        self.side_files = tuple(sorted([*kept, *self._templates], key=Path.as_posix))
        self._located = beside._located
        self._sources = ()
        self.changed = {name for name, tensor in self.tensors.items() if base.tensors.get(name) is not tensor}
        """The names of tensors that are not base's own."""

    def read_file(self, relative: str | os.PathLike[str]) -> bytes:
        """A small file beside the weights, the adapter's or the base's."""
        owner = self._templates.get(Path(relative))
        return super().read_file(relative) if owner is None else owner.read_file(relative)

    @property
    def ranks(self) -> Counter[int]:
        """How many tensors are base's and factors, by their rank."""
        return Counter(one.low_rank.rank for one in self.tensors.values() if isinstance(one, LowRankTensor))


def _is_template(path: Path) -> bool:
    return path.match("chat_template.*")


def merge(base: Checkpoint, adapter: Adapter) -> tuple[Merged, list[str]]:
    """`base` with `adapter` merged into it, and what is to be said of that.

    Raises BadAdapter, naming everything in which the two do not fit.
    """
    merging = _Merging(base, adapter)
    return Merged(base, adapter.files, merging.tensors()), merging.notes


@dataclass(frozen=True)
class _Fitted:
    """A module's factors beside the tensor that they change: `transposed` where that has inputs before outputs."""

    module: Module
    base: Tensor
    rank: int
    scale: float
    transposed: bool


def _unclear(base: Checkpoint, adapter: Adapter, name: str, places: Sequence[str]) -> BadAdapter:
    """The error of an adapter that could belong to several parts of the base."""
    shown = " or ".join(repr(place)[:120] for place in places)
    return BadAdapter(
        f"{adapter.files.id} does not tell which part of {base.id} it belongs to: {name!r:.120} could be in the part "
        f"of {shown}",
        cause=f"{len(places)} parts of the base have as many of its modules",
        hint="save it with the whole model, so that its names begin as that part's do, or give that part as the base",
        places=list(places),
    )


class _Merging:
    """Places what the adapter has in the base, and gathers what does not fit."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.notes: list[str] = []
        self._base = base
        self._adapter = adapter
        self._faults: list[str] = []
        self._factors = _Held()
        self._layers = {layer[0] for name in base.tensors if (layer := _LAYER.match(name)) is not None}
        modules, replaced = [f"{name}.weight" for name in adapter.modules], [*adapter.replaced]
        self._places = Places(base.tensors.keys(), modules or replaced, replaced if modules else ())
        if self._places.unclear:
            raise _unclear(base, adapter, (modules or replaced)[0], self._places.unclear)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of post, by name."""
        found = dict(self._base.tensors)
        placed: dict[str, str] = {}
        for name, tensor in self._adapter.replaced.items():
            place = self._places.of(name)
            if place in placed:
                self._faults.append(f"{placed[place]!r:.120} and {tensor.name!r:.120} are both for {place!r:.120}")
                continue
            placed[place] = tensor.name
            self._replace(found, place, tensor)
        if placed and not self._adapter.modules and not placed.keys() & self._base.tensors.keys():
            self._faults.append("the base has nothing of what it changes")
        seen: Counter[str] = Counter()
        shapes = self._orientations()
        for module in self._adapter.modules.values():
            name = self._places.of(f"{module.name}.weight")
            seen[name] += 1
            before = found.get(name)
            if before is None:
                self._faults.append(self._lack(module, name))
            elif seen[name] > 1:
                self._faults.append(f"two modules of it change {name!r:.120}")
            else:
                fitted = self._fit(module, before, shapes)
                if fitted is not None:
                    found[name] = self._changed(fitted)
                self._note_tied(name)
        if self._faults:
            raise faulty(f"{self._adapter.files.id} for {self._base.id}", self._faults)
        return found

    # --- tensors in the place of base's -------------------------------------------------------------------------------

    def _replace(self, found: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        before = self._base.tensors.get(name)
        if before is None:
            self._doubt_added(name)
            found[name] = named(tensor, name)
            return
        if before.shape != tensor.shape:
            self._faults.append(
                f"{name!r:.120} is {list(tensor.shape)}, the base has {list(before.shape)}: "
                "resize the base as it was for the training"
            )
            return
        if before.dtype == tensor.dtype:
            found[name] = named(tensor, name)
        elif lane_of(tensor.dtype).additive and lane_of(before.dtype).adds_to(lane_of(tensor.dtype)):
            found[name] = computed(before, Converted(tensor, before.dtype))
        else:
            self._faults.append(f"{name!r:.120} is {tensor.dtype}, the base has {before.dtype}")

    def _doubt_added(self, name: str) -> None:
        """A head may be new; what the base has under another name, or not alone, may not."""
        model_type = (self._base.config or {}).get("model_type")
        if (layer := _LAYER.match(name)) is not None and layer[0] in self._layers:
            self._faults.append(f"the base has no tensor {name!r:.120}, but others in {layer[0]!r:.120}")
        elif isinstance(model_type, str) and is_renamed(name, model_type):
            self._faults.append(
                f"the base has no tensor {name!r:.120}, or has it under another name: in files modules of {model_type} "
                "are not called as in transformers; merge it with peft, then deltareg diff"
            )

    # --- factors ------------------------------------------------------------------------------------------------------

    def _lack(self, module: Module, name: str) -> str:
        tied = ", which is tied to the embeddings: untie them and save the base anew" if name.endswith(_HEADS) else ""
        return f"the base has no tensor {name!r:.120} for {module.name!r:.120}{tied}"

    def _note_tied(self, name: str) -> None:
        config = self._base.config or {}
        models = str(config.get("architectures"))
        heads = any(one.endswith(_HEADS) for one in self._base.tensors)
        if "embed" in name.lower() and config.get("tie_word_embeddings") and _WITH_HEAD.search(models) and not heads:
            self.notes.append(f"{name} is the output's matrix too: merged, the adapter changes both, as with peft")

    def _orientations(self) -> set[bool]:
        """Whether tensors that are not square have inputs before outputs, as those of Conv1D."""
        found: set[bool] = set()
        for module in self._adapter.modules.values():
            base = self._base.tensors.get(self._places.of(f"{module.name}.weight"))
            if base is None or module.a is None or module.b is None or module.embedding or len(base.shape) != 2:
                continue
            sides = module.b.shape[0] if module.b.shape else 0, math.prod(module.a.shape[1:])
            if sides[0] != sides[1]:
                found.add(base.shape == sides[::-1])
        return found

    def _is_turned(self, name: str, orientations: set[bool]) -> bool | None:
        """Whether a square matrix has inputs before outputs; None where nothing tells.

        PEFT corrects `fan_in_fan_out` for each module and saves what was right for the last: the model's type decides
        where it is known. Else the matrices that are not square and the flag have to agree.
        """
        model_type = (self._base.config or {}).get("model_type")
        if isinstance(model_type, str) and (has_turned(model_type) or True not in orientations):
            return kind_of(name, model_type) is Kind.TURNED
        told = {*orientations, self._adapter.config.transposed}
        return told.pop() if len(told) == 1 else None

    def _fit(self, module: Module, base: Tensor, orientations: set[bool]) -> _Fitted | None:
        """Factors whose product has the shape of the base's tensor; None where they do not fit."""
        a, b = module.a, module.b
        assert a is not None and b is not None
        config = self._adapter.config
        rank = config.rank_of(module.name)
        faults: list[str] = []
        for tensor in (a, b, module.magnitude):
            allowed = (*FACTOR_DTYPES, "F64") if tensor is module.magnitude else FACTOR_DTYPES
            if tensor is not None and tensor.dtype not in allowed:
                faults.append(f"{tensor.name!r:.120} is {tensor.dtype}, not {' or '.join(FACTOR_DTYPES)}")
        if base.dtype not in DELTA_DTYPES:
            faults.append(f"the base's {base.name!r:.120} is {base.dtype}, to which nothing is added")
        if len(a.shape) < 2 or len(b.shape) < 2 or math.prod(b.shape[1:]) != rank or a.shape[0] != rank:
            faults.append(f"{module.name!r:.120} has factors {list(a.shape)} and {list(b.shape)}, not of rank {rank}")
            self._faults += faults
            return None
        sides = b.shape[0], math.prod(a.shape[1:])
        straight, turned = sides == matrix_of(base.shape), sides[::-1] == base.shape
        transposed = module.embedding or (turned and not straight)
        if turned and straight and not module.embedding:
            told = self._is_turned(base.name, orientations)
            if told is None:
                faults.append(f"{base.name!r:.120} is square, and nothing tells whether it has inputs before outputs")
            transposed = told is True
        conv = len(base.shape) > 2 and a.shape[1:] != base.shape[1:]
        if not (turned if transposed else straight) or conv:
            faults.append(
                f"the factors of {module.name!r:.120} make {list(sides)}, the base's tensor is {list(base.shape)}"
            )
        size = sides[0]
        if module.magnitude is not None and math.prod(module.magnitude.shape) != size:
            faults.append(f"{module.magnitude.name!r:.120} is {list(module.magnitude.shape)}, not of {size} numbers")
        self._faults += faults
        return None if faults else _Fitted(module, base, rank, config.scale_of(module.name), transposed)

    def _changed(self, fitted: _Fitted) -> Tensor:
        a, b = fitted.module.a, fitted.module.b
        assert a is not None and b is not None
        left, right = (a, b) if fitted.transposed else (b, a)
        low_rank = LowRank(fitted.rank, lane_of(left.dtype), lane_of(right.dtype), fitted.scale)
        load = partial(self._factors.get, fitted.base.name, partial(_read_factors, fitted, low_rank))
        if (magnitude := fitted.module.magnitude) is not None:
            return computed(fitted.base, Rescaled(fitted.base, magnitude, load, transposed=fitted.transposed))
        summed = Summed(fitted.base, load)
        stored = self._base.tensors[fitted.base.name]
        if fitted.base is not stored or not fits(fitted.base.shape, fitted.rank):
            # Onto another tensor than base's own, or no smaller than what it stands for.
            return computed(fitted.base, summed)
        return LowRankTensor(info_of(fitted.base), summed, fitted.base.shard, low_rank, load)


class _Held:
    """The factors of the last few tensors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Factors] = {}

    def get(self, name: str, read: Callable[[], Factors]) -> Factors:
        """Those of one tensor, read if they are not there."""
        with self._lock:
            found = self._found.pop(name, None) or read()
            self._found[name] = found
            if len(self._found) > _HELD:
                del self._found[next(iter(self._found))]
            return found


def _read_factors(fitted: _Fitted, low_rank: LowRank) -> Factors:
    a, b = fitted.module.a, fitted.module.b
    assert a is not None and b is not None
    across, down = bits_of(a).reshape(fitted.rank, -1), bits_of(b).reshape(-1, fitted.rank)
    if fitted.transposed:
        down, across = across.T, down.T
    return Factors(low_rank, np.ascontiguousarray(down).reshape(-1), np.ascontiguousarray(across).reshape(-1))
