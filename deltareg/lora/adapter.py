"""A PEFT adapter opened for reading: its config, and what its tensors are for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.errors import AdapterRefused, BadAdapter, BadCheckpoint, CheckpointNotFound
from deltareg.lora.config import CONFIG_FILE, MERGE_INSTEAD, AdapterConfig, parse_config
from deltareg.lora.modules import PREFIX

__all__ = ["Adapter", "Module", "faulty", "open_adapter"]

_SHOWN = 8
# Adapters may have a name between the parameter and its end: `lora_A.default.weight`.
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?P<name>[^.]+))??(?:\.weight)?"
)
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?P<name>[^.]+))??(?:\.weight)?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<name>[^.]+)\.(?P<rest>.+)")
_FACTOR_BIAS = re.compile(r".+\.lora_(?:embedding_)?[AB](?:\.[^.]+)?\.bias")
# The copy of what `modules_to_save` replaces; nothing of it is used.
_ORIGINAL = re.compile(r".+\.original_module\..+")
_OTHER = re.compile(r"(?:^|\.)(?:lora_|trainable_tokens_|hada_|lokr_|oft_|vera_|ia3_|boft_|vblora_|randlora_|prompt_)")


@dataclass
class Module:
    """The factors of one module, as PEFT has them: `a` of (rank, in …), `b` of (out, rank …)."""

    name: str
    embedding: bool = False
    a: Tensor | None = None
    b: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter's config, its modules by name, and the tensors that take the place of base's, by name."""

    files: Checkpoint
    config: AdapterConfig
    modules: Mapping[str, Module] = field(default_factory=dict[str, Module])
    replaced: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def open_adapter(files: Checkpoint) -> Adapter:
    """What an opened directory holds as an adapter.

    Raises CheckpointNotFound without a config, BadAdapter with every fault, AdapterRefused for what is not supported.
    """
    try:
        raw = files.read_file(CONFIG_FILE)
    except CheckpointNotFound as error:
        raise CheckpointNotFound(
            f"{files.id} has no {CONFIG_FILE}: it is no adapter",
            hint="give the directory that peft's save_pretrained made; for a whole checkpoint use deltareg diff",
            path=os.fspath(files.path),
        ) from error
    except BadCheckpoint as error:
        raise BadAdapter(error.message, cause=error.cause) from error
    sorting = _Sorting(files, parse_config(raw, files.id))
    for name, tensor in files.tensors.items():
        sorting.add(name.removeprefix(PREFIX), tensor)
    return sorting.adapter()


class _Sorting:
    """Tells tensors by their names, and gathers what is wrong with these."""

    def __init__(self, files: Checkpoint, config: AdapterConfig) -> None:
        self._files = files
        self._config = config
        self._modules: dict[str, Module] = {}
        self._replaced: dict[str, Tensor] = {}
        self._names: set[str] = set()
        self._biased: list[str] = []
        self._faults: list[str] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Find the place of one tensor."""
        if _ORIGINAL.fullmatch(name):
            return
        if _FACTOR_BIAS.fullmatch(name):
            self._biased.append(tensor.name)
        elif found := _FACTOR.fullmatch(name):
            self._add_factor(found, tensor)
        elif found := _MAGNITUDE.fullmatch(name):
            module = self._module(found)
            self._refuse_twice(module.magnitude, tensor)
            module.magnitude = tensor
        elif found := _SAVED.fullmatch(name):
            self._names.add(found["name"])
            self._replace(f"{found['module']}.{found['rest']}", tensor)
        elif _OTHER.search(name):
            self._faults.append(f"{tensor.name!r:.120} is no part of a LoRA")
        else:
            self._replace(name.replace(".base_layer.", "."), tensor)

    def adapter(self) -> Adapter:
        """All of it. Raises BadAdapter, AdapterRefused."""
        if self._biased:
            raise AdapterRefused(
                f"the factors of {self._files.id} have biases of their own: {', '.join(self._biased[:_SHOWN])}",
                hint=MERGE_INSTEAD,
                key="lora_bias",
            )
        if len(self._names) > 1:
            self._faults.append(f"it holds several adapters: {', '.join(sorted(self._names))}")
        for module in self._modules.values():
            for side, tensor in (("A", module.a), ("B", module.b)):
                if tensor is None:
                    self._faults.append(f"{module.name!r:.120} has no factor {side}")
            if self._config.magnitudes != (module.magnitude is not None):
                self._faults.append(
                    f"{module.name!r:.120} has {'no' if self._config.magnitudes else 'a'} magnitude vector, "
                    f"use_dora is {str(self._config.magnitudes).lower()}"
                )
        if not self._modules and not self._replaced:
            self._faults.append("it has no tensors")
        if self._faults:
            raise faulty(self._files.id, self._faults)
        return Adapter(self._files, self._config, self._modules, self._replaced)

    def _add_factor(self, found: re.Match[str], tensor: Tensor) -> None:
        module = self._module(found)
        module.embedding = found["embedding"] is not None
        if found["side"] == "A":
            self._refuse_twice(module.a, tensor)
            module.a = tensor
        else:
            self._refuse_twice(module.b, tensor)
            module.b = tensor

    def _module(self, found: re.Match[str]) -> Module:
        if found["name"] is not None:
            self._names.add(found["name"])
        return self._modules.setdefault(found["module"], Module(found["module"]))

    def _replace(self, name: str, tensor: Tensor) -> None:
        self._refuse_twice(self._replaced.get(name), tensor)
        self._replaced[name] = tensor

    def _refuse_twice(self, before: Tensor | None, tensor: Tensor) -> None:
        if before is not None:
            self._faults.append(f"{before.name!r:.120} and {tensor.name!r:.120} are for the same parameter")


def faulty(adapter: str, faults: list[str]) -> BadAdapter:
    """The error of an adapter with these faults."""
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return BadAdapter(
        f"{adapter} is not a valid adapter: {'; '.join(faults[:_SHOWN])}{more}", cause=faults[0], faults=faults
    )
