"""`adapter_config.json`: what of PEFT's settings decides what an adapter adds, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from deltareg.errors import AdapterRefused, BadAdapter
from deltareg.lora.patterns import MOST_PATTERNS, BadPattern, Patterns

__all__ = ["CONFIG_FILE", "MERGE_INSTEAD", "AdapterConfig", "parse_config"]

CONFIG_FILE = "adapter_config.json"

MERGE_INSTEAD = "merge it with peft, then take the delta of base and result: deltareg diff"

# What PEFT's own merge cannot do either, or what would need more than the adapter and the base.
_REFUSED: Mapping[str, tuple[str, str]] = {
    "target_parameters": (
        "it adapts parameters without a module of their own, such as fused experts",
        MERGE_INSTEAD,
    ),
    "layer_replication": ("it repeats layers of the base", "build the larger model first and adapt that"),
    "alora_invocation_tokens": ("it acts from its invocation tokens on only", "serve it as an adapter"),
    "trainable_token_indices": (
        "it trains single rows of the embeddings",
        MERGE_INSTEAD,
    ),
    "megatron_config": ("its layers are cut as Megatron cuts them", "convert it to an adapter of the whole layers"),
    "lora_bias": (
        "its factors have biases of their own",
        MERGE_INSTEAD,
    ),
    "use_qalora": ("it belongs to weights that are quantised in groups", "use an adapter for the plain weights"),
    "use_bdlora": (
        "its factors are block-diagonal",
        MERGE_INSTEAD,
    ),
    "arrow_config": ("it routes between several adapters token by token", "import each of them"),
    "kasa_config": (
        "it changes the base as it starts",
        MERGE_INSTEAD,
    ),
    "monteclora_config": (
        "its factors are drawn at random",
        MERGE_INSTEAD,
    ),
}
# Initialisations that take something away from the base, so that the adapter adds to another model than the base.
_RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class AdapterConfig:
    """What decides what an adapter adds; ranks and alphas of some modules by patterns of their names."""

    rank: int
    alpha: float
    root_scaled: bool = False
    transposed: bool = False
    magnitudes: bool = False
    rank_patterns: Patterns[int] = field(default_factory=Patterns[int])
    alpha_patterns: Patterns[float] = field(default_factory=Patterns[float])

    def rank_of(self, module: str) -> int:
        """The rank that a module's factors must have."""
        return self.rank_patterns.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied with: α/r (LoRA, arXiv 2106.09685), α/√r (rsLoRA, arXiv 2312.03732, equation 4)."""
        alpha = self.alpha_patterns.get(module, self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.root_scaled else rank)


def parse_config(raw: bytes, where: str) -> AdapterConfig:
    """Read `adapter_config.json`.

    Raises BadAdapter with every fault, AdapterRefused with everything that is not supported.
    """
    try:
        value: Any = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{CONFIG_FILE} of {where} is not valid JSON: {error}", cause=str(error)) from error
    if not isinstance(value, dict):
        raise BadAdapter(f"{CONFIG_FILE} of {where} is no JSON object")
    document = cast("dict[str, Any]", value)
    _refuse(document, where)
    reader = _Reader(document)
    config = AdapterConfig(
        rank=reader.rank("r", 8),
        alpha=reader.number("lora_alpha", 8.0),
        root_scaled=reader.flag("use_rslora"),
        transposed=reader.flag("fan_in_fan_out"),
        magnitudes=reader.flag("use_dora"),
        rank_patterns=reader.patterns("rank_pattern", reader.checked_rank),
        alpha_patterns=reader.patterns("alpha_pattern", reader.checked_number),
    )
    if reader.faults:
        raise BadAdapter(
            f"{CONFIG_FILE} of {where} is not valid: {'; '.join(reader.faults)}",
            cause="; ".join(reader.faults),
            hint="save the adapter again with peft's save_pretrained",
            faults=reader.faults,
        )
    return config


def _refuse(document: Mapping[str, Any], where: str) -> None:
    """Raise AdapterRefused, naming every setting that is not supported."""
    kind = document.get("peft_type")
    if kind != "LORA":
        shown = "no peft_type" if kind is None else f"peft_type {kind!r:.40}"
        raise AdapterRefused(
            f"{where} has {shown}; only LORA is imported",
            hint=MERGE_INSTEAD,
            key="peft_type",
        )
    found = [(key, *told) for key, told in _REFUSED.items() if document.get(key)]
    start = document.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESIDUAL):
        found.append(
            (
                "init_lora_weights",
                f"{start:.40} takes the first factors away from the base",
                "save it with peft's path_initial_model_for_weight_conversion",
            )
        )
    if found:
        raise AdapterRefused(
            f"{where} is not supported: " + "; ".join(f"{key}: {reason}" for key, reason, _ in found),
            hint="; ".join(dict.fromkeys(remedy for _, _, remedy in found)),
            keys=[key for key, _, _ in found],
        )


class _Reader:
    """Takes fields out of the document and gathers what is wrong with them."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.faults: list[str] = []

    def rank(self, key: str, default: int) -> int:
        return self.checked_rank(key, self._document.get(key, default)) or 1

    def number(self, key: str, default: float) -> float:
        return self.checked_number(key, self._document.get(key, default)) or 0.0

    def flag(self, key: str) -> bool:
        value = self._document.get(key)
        if value is not None and not isinstance(value, bool):
            self._fault(key, value, "true or false")
        return value is True

    def checked_rank(self, key: str, value: Any) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            self._fault(key, value, "a whole number above 0")
            return None
        return value

    def checked_number(self, key: str, value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2.0**127:
            self._fault(key, value, "a finite number")
            return None
        return float(value)

    def patterns(self, key: str, check: Callable[[str, Any], _Number | None]) -> Patterns[_Number]:
        value: Any = self._document.get(key) or {}
        found = Patterns[_Number]()
        if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) > MOST_PATTERNS:
            self._fault(key, value, f"an object of at most {MOST_PATTERNS} patterns")
            return found
        for pattern, each in cast("dict[str, Any]", value).items():
            checked = check(f"{key}.{pattern:.80}", each)
            if checked is None:
                continue
            try:
                found.add(pattern, checked)
            except BadPattern as error:
                self._fault(key, pattern, f"a pattern {error}")
        return found

    def _fault(self, key: str, value: Any, due: str) -> None:
        self.faults.append(f"{key} is {value!r:.60}, not {due}")
