"""What a tensor is for, as its name tells: its module class and its layer."""

from __future__ import annotations

import re

__all__ = ["MODULE_CLASSES", "layer_order", "module_class"]

# The first pattern that is found decides: a norm within an attention block is a norm.
_PATTERNS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("lm_head", r"(^|\.)(lm_head|embed_out|output_projection)(\.|$)"),
        ("norm", r"norm|(^|[._])ln(_?\w*)?(\.|$)"),
        ("embedding", r"embed|(^|\.)(wte|wpe|shared)(\.|$)"),
        ("attention", r"attn|attention|(^|[._])([qkv]|qkv|[qkvo]_proj|query|key|value)(\.|_|$)"),
        (
            "mlp",
            r"mlp|ffn|feed_forward|feedforward|experts?|intermediate|positionwise|(^|[._])(fc\d?|gate|up|down|dense|wi|wo)(_|\.|$)",
        ),
    )
)
MODULE_CLASSES = (*(name for name, _ in _PATTERNS), "other")
"""What `module_class` can give."""

_NUMBERS = re.compile(r"([0-9]{1,18})")


def module_class(name: str) -> str:
    """The class of the tensor of that name: attention, mlp, embedding, norm, lm_head or other."""
    lowered = name.lower()
    return next((found for found, pattern in _PATTERNS if pattern.search(lowered)), "other")


def layer_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key that puts layer 2 before layer 10."""
    parts = enumerate(_NUMBERS.split(name))
    return tuple((0, int(part)) if place % 2 else (1, part) for place, part in parts if part)
