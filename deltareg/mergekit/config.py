"""A merge configuration of mergekit as objects, each with its line in the file.

What has no meaning here is refused with its line and the reason; every fault is told at once. What changes nothing is
noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltareg.errors import BadMergeConfig
from deltareg.mergekit.document import Node, read_document
from deltareg.mergekit.methods import METHODS, PARAMETERS, REFUSED, Known
from deltareg.mergekit.values import Rule, Theirs
from deltareg.spelling import did_you_mean

__all__ = ["InputModel", "MergeConfig", "Said", "lines_of", "read_config"]

_KEYS = (
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
_IDLE = (
    "allow_crimes", "transformers_cache", "lora_merge_cache", "lora_merge_dtype", "cuda", "device", "low_cpu_memory",
    "out_shard_size", "copy_tokenizer", "clone_tensors", "trust_remote_code", "random_seed", "lazy_unpickle",
    "write_model_card", "safe_serialization", "verbosity", "quiet", "read_to_gpu", "multi_gpu", "num_threads",
    "gpu_rich", "async_write", "write_threads", "name", "license", "tags", "library_name",
)  # fmt: skip
_REFUSED_KEYS: Mapping[str, tuple[str, str]] = {
    "slices": (
        "slices put layers together, which deltas of one base cannot",
        "where one slice has all layers of its models, list them under models: instead; else do it with mergekit",
    ),
    "modules": ("modules are merged apart, and a recipe has one method for all", "make a configuration of each module"),
    "experts": ("a mixture of experts is another parameter space than its parts'", "make it with mergekit-moe"),
    "gate_mode": ("a mixture of experts is another parameter space than its parts'", "make it with mergekit-moe"),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Said:
    """A text and its line."""

    text: str
    line: int


@dataclass(frozen=True)
class InputModel:
    """A model of the list."""

    name: Said
    parameters: Mapping[str, list[Rule]]


@dataclass(frozen=True)
class MergeConfig:
    """A merge configuration. Parameters are those that the method knows, of the model's or for all."""

    path: Path
    text: str
    method: Said
    base: Said | None
    models: list[InputModel]
    parameters: Mapping[str, list[Rule]]
    dtype: Said | None
    out_dtype: Said | None
    tokenizer: Said | None
    notes: list[str] = field(default_factory=list[str])

    @property
    def known(self) -> Known:
        """What its method is here."""
        return METHODS[self.method.text]


def read_config(path: Path) -> MergeConfig:
    """Read a configuration. Raises BadMergeConfig, which names every fault with its line."""
    text, root = read_document(path)
    return _Reader(path, text, root).config()


class _Reader:
    """Takes values out of the document, and gathers what is wrong with it."""

    def __init__(self, path: Path, text: str, root: Node) -> None:
        self._path = path
        self._text = text
        self._root: Mapping[str, Node] = root.table or {}
        self._faults: list[tuple[int, str, str | None]] = []
        self._notes: list[str] = []

    def config(self) -> MergeConfig:
        self._refuse_keys()
        method = self._method()
        base = self._name(self._root.get("base_model"), "base_model")
        models = self._models(method)
        parameters = self._parameters(self._root.get("parameters"), method)
        dtype, out_dtype = self._dtype("dtype"), self._dtype("out_dtype")
        tokenizer = self._tokenizer()
        self._chat_template()
        self._finish()
        assert method is not None
        return MergeConfig(
            self._path, self._text, method, base, models, parameters, dtype, out_dtype, tokenizer, self._notes
        )

    def _fault(self, line: int, reason: str, hint: str | None = None) -> None:
        self._faults.append((line, reason, hint))

    def _finish(self) -> None:
        if not self._faults:
            return
        self._faults.sort(key=lambda fault: fault[0])
        told = "; ".join(f"line {line}: {reason}" for line, reason, _ in self._faults)
        raise BadMergeConfig(
            f"{self._path}, {told}",
            hint=next((hint for _, _, hint in self._faults if hint), None),
            path=self._path,
            line=self._faults[0][0],
            faults=[f"line {line}: {reason}" for line, reason, _ in self._faults],
        )

    def _refuse_keys(self) -> None:
        for key, node in self._root.items():
            if key in _REFUSED_KEYS:
                self._fault(node.line, f"{key}: {_REFUSED_KEYS[key][0]}", _REFUSED_KEYS[key][1])
            elif key in _IDLE:
                self._notes.append(f"line {node.line}: {key} has no meaning here")
            elif key not in _KEYS:
                self._fault(node.line, f"unknown key {key}" + did_you_mean(key, _KEYS))

    def _method(self) -> Said | None:
        node = self._root.get("merge_method")
        if node is None:
            if not self._root.keys() & _REFUSED_KEYS.keys():
                self._fault(1, "merge_method is missing")
            return None
        name = self._text_of(node, "merge_method")
        if name is None or name in METHODS:
            return None if name is None else Said(name, node.line)
        if name in REFUSED:
            self._fault(node.line, f"{name}: {REFUSED[name]}", "do that part with mergekit")
        else:
            known = f"methods are: {', '.join(METHODS)}"
            self._fault(node.line, f"unknown method {name!r}" + did_you_mean(name, METHODS), known)
        return None

    def _models(self, method: Said | None) -> list[InputModel]:
        node = self._root.get("models")
        if node is None:
            if not self._root.keys() & _REFUSED_KEYS.keys():
                self._fault(1, "models is missing", "list the models that are merged under models:")
            return []
        if not node.items:
            self._fault(node.line, f"models is {node.kind if node.items is None else 'empty'}: it takes a list")
            return []
        found: list[InputModel] = []
        for item in node.items:
            table = item.table
            if table is None or "model" not in table:
                self._fault(item.line, f"a model is a mapping with the key model, not {item.kind}")
                continue
            for key, value in table.items():
                if key not in ("model", "parameters"):
                    self._fault(value.line, f"unknown key {key}" + did_you_mean(key, ["model", "parameters"]))
            name = self._name(table["model"], "model")
            if name is not None:
                found.append(InputModel(name, self._parameters(table.get("parameters"), method)))
        return found

    def _name(self, node: Node | None, key: str) -> Said | None:
        if node is None or node.value is None:
            return None
        if node.table is not None:
            self._fault(node.line, f"{key} is a mapping", "write it as one text: path, org/name@revision, model+lora")
            return None
        text = self._text_of(node, key)
        return None if text is None else Said(text, node.line)

    def _parameters(self, node: Node | None, method: Said | None) -> dict[str, list[Rule]]:
        if node is None or node.value is None:
            return {}
        if node.table is None:
            self._fault(node.line, f"parameters is {node.kind}, not a mapping")
            return {}
        found: dict[str, list[Rule]] = {}
        for name, value in node.table.items():
            rules = self._rules(name, value)
            if name not in PARAMETERS:
                self._fault(value.line, f"unknown parameter {name}" + did_you_mean(name, PARAMETERS))
            elif method is None:
                continue
            elif self._counts(name, METHODS[method.text], value.line, method.text):
                found[name] = rules
        return found

    def _counts(self, name: str, known: Known, line: int, method: str) -> bool:
        """Whether a parameter changes what a method does; where it does not, that is noted."""
        if name in known.parameters or name in known.only or (name == "weight" and known.weight):
            return True
        self._notes.append(
            f"line {line}: {name} changes nothing here"
            if name in known.idle
            else f"line {line}: mergekit's {method} has no {name}, and ignores it"
        )
        return False

    def _rules(self, name: str, node: Node) -> list[Rule]:
        """A setting: a value, a list of them, a condition, or a list of conditions."""
        conditions = [node] if node.table is not None else (node.items or [])
        if not any(item.table is not None for item in conditions):
            value = self._value(name, node)
            return [] if value is None else [Rule(None, value, node.line)]
        found: list[Rule] = []
        for item in conditions:
            table = item.table
            if table is None or "value" not in table:
                self._fault(item.line, f"{name}: a condition is a mapping with value and filter, not {item.kind}")
                continue
            for key, value in table.items():
                if key not in ("value", "filter"):
                    self._fault(value.line, f"unknown key {key}" + did_you_mean(key, ["value", "filter"]))
            given = table.get("filter")
            text = None if given is None or given.value is None else self._text_of(given, "filter")
            value = self._value(name, table["value"])
            if value is not None:
                found.append(Rule(None if text in ("*", "", None) else text, value, item.line))
        return found

    def _value(self, name: str, node: Node) -> Theirs | None:
        if node.items is not None:
            points = [self._scalar(name, item) for item in node.items]
            if any(isinstance(point, bool) for point in points):
                self._fault(node.line, f"{name}: a list of yes and no along the layers has no equal here")
                return None
            numbers = [point for point in points if point is not None]
            if not points:
                self._fault(node.line, f"{name}: the list is empty")
            if not numbers or len(numbers) < len(points):
                return None
            return numbers[0] if len(numbers) == 1 else tuple(map(float, numbers))
        return self._scalar(name, node)

    def _scalar(self, name: str, node: Node) -> float | bool | None:
        value: Any = node.value
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            # YAML 1.1 takes 1e-5 for text.
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, int | float) and _finite(value):
            return float(value)
        self._fault(node.line, f"{name} is {node.kind}, not a number, yes or no")
        return None

    def _dtype(self, key: str) -> Said | None:
        node = self._root.get(key)
        if node is None or node.value is None:
            return None
        text = self._text_of(node, key)
        if text is None:
            return None
        name = text.removeprefix("torch.")
        if name not in _DTYPES:
            self._fault(
                node.line, f"{key} is {text!r}: it is one of {', '.join(_DTYPES)}" + did_you_mean(name, _DTYPES)
            )
        return Said(name, node.line)

    def _tokenizer(self) -> Said | None:
        source, table = self._root.get("tokenizer_source"), self._root.get("tokenizer")
        line = 0
        if table is not None and table.value is not None:
            line = table.line
            if source is not None:
                self._fault(line, "tokenizer and tokenizer_source are both given")
            if table.table is None:
                self._fault(line, f"tokenizer is {table.kind}, not a mapping")
                return None
            for key, value in table.table.items():
                if key in ("tokens", "pad_to_multiple_of") and value.value is not None:
                    self._fault(
                        value.line,
                        f"tokenizer: {key} builds a vocabulary of its own, and a recipe keeps that of its base",
                        "do that with mergekit, and take the delta of the result",
                    )
                elif key not in ("source", "tokens", "pad_to_multiple_of"):
                    known = ["source", "tokens", "pad_to_multiple_of"]
                    self._fault(value.line, f"unknown key {key}" + did_you_mean(key, known))
            source = table.table.get("source", Node("union", line))
        if source is None or source.value is None:
            return None
        text = self._text_of(source, "tokenizer_source")
        if text == "union":
            self._fault(
                source.line,
                "a union of vocabularies is another parameter space than that of any model",
                "where all models have one tokenizer, write tokenizer_source: base",
            )
            return None
        return None if text is None else Said(text, source.line)

    def _chat_template(self) -> None:
        node = self._root.get("chat_template")
        if node is None or node.value in (None, ""):
            return
        if node.value == "auto":
            self._notes.append(
                f"line {node.line}: chat_template: auto takes what most models have; here it comes with the side files"
            )
        else:
            self._fault(
                node.line,
                "chat_template: a recipe takes the template of its base or of its first delta, and no other",
                "take the line out; side-files in the recipe says whose template it is",
            )

    def _text_of(self, node: Node, what: str) -> str | None:
        if isinstance(node.value, str) and node.value.strip():
            return node.value.strip()
        self._fault(node.line, f"{what} is {node.kind}, not a text")
        return None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def lines_of(rules: Iterable[Rule]) -> str:
    """Where rules stand, for people."""
    lines = sorted({rule.line for rule in rules})
    return f"line {lines[0]}" if len(lines) == 1 else f"lines {', '.join(map(str, lines))}"
