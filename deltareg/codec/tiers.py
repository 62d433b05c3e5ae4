"""The tiers of a delta: how exact it is, by the names that people ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deltareg.errors import InvalidArgument

__all__ = ["EXACT", "TIERS", "Tier", "parse_tier"]

TIERS: Mapping[str, str] = MappingProxyType(
    {
        "exact": "base + delta is post, bit for bit",
        "bf16": "each number rounded to bfloat16",
        "fp16": "each number rounded to float16",
        "int8": "255 levels for each million elements; what is beyond them in bfloat16",
        "int4": "15 levels for each million elements; what is beyond them in bfloat16",
        "bit1": "a sign for each number, one size for each million, and factors of small rank for what repeats",
        "rank:R": "two factors of rank R (a truncated singular value decomposition), as an adapter has them",
        "topk:P": "the share P of the elements that change most, such as topk:5%, one at least; the others stay",
    }
)
"""What `diff` takes as its codec, and what each of them keeps of a matrix. Vectors and integers are always exact."""

_SHARE = re.compile(r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(%?)", re.ASCII)


@dataclass(frozen=True)
class Tier:
    """A tier, with the number that some of them take: the share of topk, the rank of rank."""

    kind: str
    share: float = 1.0
    rank: int = 0

    def __str__(self) -> str:
        amount = {"topk": f":{self.share:g}", "rank": f":{self.rank}"}.get(self.kind, "")
        return self.kind + amount

    @property
    def lossy(self) -> bool:
        """Whether what is stored is an approximation."""
        return self.kind != "exact"


EXACT = Tier("exact")


def parse_tier(text: str) -> Tier:
    """The tier of a name such as `int4` or `topk:5%`. Raises InvalidArgument."""
    kind, colon, amount = text.partition(":")
    if kind == "topk" and colon:
        return Tier(kind, share=_share(amount))
    if kind == "rank" and colon:
        return Tier(kind, rank=_rank(amount))
    if kind not in TIERS or colon:
        raise InvalidArgument(f"unknown codec {text!r}", hint=f"codecs are: {', '.join(TIERS)}", codec=text)
    return Tier(kind)


def _rank(text: str) -> int:
    if re.fullmatch("0*[1-9][0-9]{0,6}", text, re.ASCII) is None:
        raise InvalidArgument(f"{text!r} is no rank", hint="write rank:16; a whole number, at least 1")
    return int(text)


def _share(text: str) -> float:
    found = _SHARE.fullmatch(text)
    share = 0.0 if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 < share <= 1:
        raise InvalidArgument(
            f"{text!r} is no share of the elements",
            hint="write topk:0.05 or topk:5%, without spaces; more than 0, at most 1",
        )
    # As many digits as its name has: the name alone tells what was done.
    return float(f"{share:g}")
