"""Experts, which the files have one by one, and transformers from version 5 on as one parameter of three dimensions.

PEFT joins the factors of single experts as transformers joins the experts. It does so for some types of models, only
where all experts of a layer have factors of one rank, and it takes whatever is called like a part of an expert for one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from deltareg.lora.modules import module_of

__all__ = ["Experts"]

_MEMBER = re.compile(r"(?P<layer>.+\.)experts\.(?P<number>[0-9]{1,9})\.(?P<part>.+)")
_REMEDY = "; deltareg apply has it all"
_JOINED = "transformers has all experts as one parameter, and peft "
_MEMBERS = f"{_JOINED}does not join the factors of this type of model{_REMEDY}"
_INCOMPLETE = f"{_JOINED}joins factors only where all experts of a layer have them{_REMEDY}"
_TAKEN = "peft takes it for a part of an expert, as it is called like one; with --base it goes along whole"
_RENAMED = f"what lies beside experts has other names in transformers than in the files{_REMEDY}"


@dataclass(frozen=True)
class _Family:
    """How PEFT takes models of a type: what an expert's parts are called, and what else it takes for such."""

    parts: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    renamed: bool = False


_MIXTRAL = _Family(frozenset({"w1", "w2", "w3"}), frozenset({"gate", "w1", "w2", "w3"}), renamed=True)
_PROJECTIONS = frozenset({"gate_proj", "up_proj", "down_proj"})
_QWEN = _Family(_PROJECTIONS, _PROJECTIONS | {"gate"})
_UNKNOWN = _Family(taken=_MIXTRAL.taken | _QWEN.taken, renamed=True)
# Those of which tests compare what PEFT computes.
_FAMILIES: Mapping[str, _Family] = {
    "mixtral": _MIXTRAL,
    "qwen2_moe": _Family(),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "dots1", "glm4_moe", "olmoe", "qwen3_moe"), _QWEN),
}
# More types that PEFT converts; some of their other modules have other names in the files.
_CONVERTED = frozenset(
    {
        "Dots3NoteTextModel",
        "UnlimitedOcrTextModel",
        "afmoe",
        "beam",
        "cohere2_moe",
        "deepseek_v32",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe_lite",
        "glm4v_moe",
        "glm_moe_dsa",
        "hunyuan_v1_moe",
        "longcat_flash",
        "mellum",
        "minimax",
        "minimax_m2",
        "qwen3_next",
        "qwen3_omni_moe",
        "qwen3_omni_moe_text",
        "qwen3_omni_moe_thinker",
        "solar_open",
    }
)


class Experts:
    """Tells of a model's tensors which ones PEFT takes for experts; of a model without experts, none."""

    def __init__(self, model_type: str | None, names: Iterable[str]) -> None:
        self._members = {name: found for name in names if (found := _MEMBER.fullmatch(name)) is not None}
        converted = bool(self._members) or model_type in _CONVERTED
        self._family = _FAMILIES.get(model_type or "", _UNKNOWN if converted else _Family())
        self._layers: dict[str, set[str]] = {}
        for name, found in self._members.items():
            self._layers.setdefault(found["layer"], set()).add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def doubt(self, name: str) -> str | None:
        """Why PEFT would not find the factors of a weight."""
        if name in self._members:
            return None if self._is_part(name) else _MEMBERS
        if module_of(name).rpartition(".")[2] in self._family.taken:
            return _TAKEN
        return self._renaming(name)

    def doubt_whole(self, name: str) -> str | None:
        """Why PEFT would not find a parameter that goes along whole."""
        return _MEMBERS if name in self._members else self._renaming(name)

    def incomplete(self, weights: Collection[str]) -> dict[str, str]:
        """Experts among these weights whose layer lacks others, and why they cannot have factors."""
        lacking = (members for members in self._layers.values() if not self._is_whole(members, weights))
        return {name: _INCOMPLETE for members in lacking for name in members if name in weights}

    def _is_part(self, name: str) -> bool:
        part, _, parameter = self._members[name]["part"].rpartition(".")
        return parameter == "weight" and part in self._family.parts

    def _is_whole(self, members: Collection[str], weights: Collection[str]) -> bool:
        numbers = {int(self._members[name]["number"]) for name in members}
        due = len(numbers) * len(self._family.parts)
        return 1 < len(numbers) == max(numbers) + 1 and due == len(members) and all(name in weights for name in members)

    def _renaming(self, name: str) -> str | None:
        if self._family.renamed and any(name[: dot.end()] in self._layers for dot in re.finditer(r"\.", name)):
            return _RENAMED
        return None
