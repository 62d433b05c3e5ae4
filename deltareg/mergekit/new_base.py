"""ParamΔ as task arithmetic spells it: a newer base that is added whole to the old one."""

from __future__ import annotations

from dataclasses import replace

from deltareg.errors import InvalidArgument
from deltareg.mergekit.config import MergeConfig
from deltareg.mergekit.models import find_model
from deltareg.mergekit.plan import Choices, Plan

__all__ = ["onto_new_base"]


def onto_new_base(config: MergeConfig, choices: Choices, found: Plan) -> Plan:
    """The ParamΔ idiom: old + (new − old) + Σ wᵢ(postᵢ − old) is new + Σ wᵢΔᵢ, if it is certain which is new.

    Raises InvalidArgument where the new base that the user names is not added whole.
    """
    whole = [one.model for one in found.deltas if dict(one.weight) == {"*": 1.0}]
    plain = found.parameters["lambda"] == {"*": 1.0} and found.parameters["normalize"] == {"*": False}
    asked = choices.new_base
    if asked is not None:
        new = next((model for model in whole if model.key == asked.key), None)
        if new is None or not plain or len(found.deltas) < 2:
            raise InvalidArgument(
                f"{asked.said.text} is not added whole: it cannot be the new base",
                cause="a new base is one of several models, with weight 1, without normalize, and with lambda 1",
                hint="leave --new-base out",
            )
    elif choices.keep_base or not plain or not whole or len(found.deltas) < 2:
        return found
    elif len(found.deltas) == 2 and len(whole) == 1:
        (new,) = whole
    else:
        names = ", ".join(model.said.text for model in whole)
        hint = f"if one of {names} is a newer base, --new-base MODEL applies the other deltas to it directly"
        return replace(found, hints=[*found.hints, hint])
    if new.lora is not None:
        return found
    rest = [one for one in found.deltas if one.model.key != new.key]
    note = f"line {new.said.line}: {new.said.text} is taken for the new base, as it is added whole: "
    note += "base + (new − base) + Σ wᵢΔᵢ = new + Σ wᵢΔᵢ"
    hint = "--keep-base leaves the base as it is"
    tokens = config.tokenizer
    if tokens is not None and tokens.text != "base" and find_model(tokens, config.path).key == new.key:
        found = replace(found, side_files="target")
    elif found.side_files == "target":
        note += "; the side files are the new base's"
    return replace(found, base=new, deltas=rest, notes=[*found.notes, note], hints=[*found.hints, hint], rewritten=True)
