"""What each of mergekit's methods is here: our method, and which of its parameters give mergekit's variant.

This is what mergekit 0.1.5 computes. To add a method, add a line to `METHODS`, and a merge of both tools to
`tests/mergekit/test_merges.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from deltareg.mergekit.values import Scalar

__all__ = ["METHODS", "PARAMETERS", "REFUSED", "Flag", "Known", "Number"]


@dataclass(frozen=True)
class Number:
    """A number: ours is called `name`. Without a default mergekit wants it given. `by_model` may differ by model."""

    name: str
    default: float | None
    by_model: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Flag:
    """A yes or no: what each means for our parameter `name`."""

    name: str
    default: bool
    yes: Scalar
    no: Scalar


@dataclass(frozen=True)
class Known:
    """One of mergekit's methods.

    `base`: "required"; "optional" where it takes deltas of a base, or else whole models; "none" where it takes whole
    models always, a base among them. `weight` tells whether it has weights. `fixed` are our parameters that it has no
    name for, `idle` its own that change nothing. `least` and `most` count models beside the base.
    """

    ours: str
    base: Literal["required", "optional", "none"] = "required"
    weight: bool = True
    parameters: Mapping[str, Number | Flag] = field(default_factory=dict[str, Number | Flag])
    fixed: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    idle: tuple[str, ...] = ("int8_mask",)
    only: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """Flags that are taken with this value alone."""
    least: int = 1
    most: int | None = None
    note: str | None = None


_LAMBDA = Number("lambda", 1.0)
_DENSITY = Number("density", 1.0, by_model=True)
_GAMMA = Number("gamma", 0.01, by_model=True)
_REACH = Number("epsilon", 0.15, by_model=True)


def _divide(default: bool) -> Flag:
    return Flag("normalize", default, True, False)


def _divide_agreeing(default: bool) -> Flag:
    return Flag("normalize", default, "weights", "none")


def _rescale(default: bool) -> Flag:
    return Flag("rescale", default, "l1", "none")


_SCE = (
    "mergekit weighs the deltas of a tensor alike where their mean squares add up to less than 1e-6; deltareg weighs "
    "them by their energies always"
)
_STOCK = "where the product of two deltas' norms in a tensor is less than 1e-6, mergekit takes 1e-6 for it"
_NUSLERP = "deltas that are less than 1.8° apart are interpolated linearly: a difference of at most 0.013 % of M"

METHODS: Mapping[str, Known] = MappingProxyType(
    {
        "linear": Known("linear", "none", parameters={"normalize": _divide(True)}),
        "task_arithmetic": Known(
            "linear",
            parameters={"normalize": _divide(False), "lambda": _LAMBDA},
            idle=("int8_mask", "density", "rescale"),
        ),
        "ties": Known(
            "ties",
            parameters={
                "density": _DENSITY,
                "normalize": _divide_agreeing(True),
                "rescale": _rescale(False),
                "lambda": _LAMBDA,
            },
            fixed={"elect": "weighted", "trim": "tensor"},
        ),
        "dare_linear": Known(
            "dare_linear",
            parameters={
                "density": _DENSITY,
                "normalize": _divide(False),
                "rescale": _rescale(True),
                "lambda": _LAMBDA,
            },
        ),
        "dare_ties": Known(
            "dare_ties",
            parameters={
                "density": _DENSITY,
                "normalize": _divide_agreeing(False),
                "rescale": _rescale(True),
                "lambda": _LAMBDA,
            },
            fixed={"elect": "weighted"},
        ),
        "della": Known(
            "della",
            parameters={
                "density": _DENSITY,
                "epsilon": _REACH,
                "normalize": _divide_agreeing(True),
                "rescale": _rescale(True),
                "lambda": _LAMBDA,
            },
            fixed={"ramp": "ends", "elect": "weighted"},
        ),
        "della_linear": Known(
            "della_linear",
            parameters={
                "density": _DENSITY,
                "epsilon": _REACH,
                "normalize": _divide(False),
                "rescale": _rescale(True),
                "lambda": _LAMBDA,
            },
            fixed={"ramp": "ends"},
        ),
        "breadcrumbs": Known(
            "breadcrumbs",
            parameters={
                "density": _DENSITY,
                "gamma": _GAMMA,
                "normalize": _divide(False),
                "rescale": _rescale(False),
                "lambda": _LAMBDA,
            },
        ),
        "breadcrumbs_ties": Known(
            "breadcrumbs_ties",
            parameters={
                "density": _DENSITY,
                "gamma": _GAMMA,
                "normalize": _divide_agreeing(False),
                "rescale": _rescale(False),
                "lambda": _LAMBDA,
            },
            fixed={"elect": "weighted"},
        ),
        "sce": Known("sce", weight=False, parameters={"select_topk": Number("select_topk", 1.0)}, note=_SCE),
        "ram": Known("ram", weight=False, parameters={"epsilon": Number("epsilon", 1e-5)}, idle=()),
        "ramplus_tl": Known(
            "ramplus_tl",
            weight=False,
            parameters={"r": Number("r", 0.1), "alpha": Number("alpha", 0.2), "epsilon": Number("epsilon", 1e-5)},
            idle=(),
        ),
        "model_stock": Known("model_stock", weight=False, only={"filter_wise": False}, idle=(), least=2, note=_STOCK),
        "nearswap": Known("nearswap", weight=False, parameters={"t": Number("t", None)}, idle=(), most=1),
        "slerp": Known("slerp", "none", weight=False, parameters={"t": Number("t", None)}, idle=(), least=1, most=1),
        "nuslerp": Known(
            "slerp",
            "optional",
            only={"nuslerp_flatten": True, "nuslerp_row_wise": False},
            idle=(),
            least=2,
            most=2,
            note=_NUSLERP,
        ),
        "multislerp": Known(
            "multislerp",
            "optional",
            parameters={"normalize_weights": Flag("normalize", True, True, False), "eps": Number("eps", 1e-8)},
            idle=(),
        ),
        "karcher": Known(
            "karcher",
            "none",
            weight=False,
            parameters={"max_iter": Number("iterations", 10, whole=True), "tol": Number("tolerance", 1e-5)},
            idle=(),
        ),
    }
)
"""By mergekit's names."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "passthrough": "it stacks layers of whole models: the result is in no base's parameter space",
        "arcee_fusion": "its mask depends on the softmax of whole weights, which deltas do not tell",
    }
)
"""Methods of mergekit that have no equal here, and why."""

PARAMETERS = frozenset(
    {name for known in METHODS.values() for name in (*known.parameters, *known.idle, *known.only)} | {"weight", "scale"}
)
"""Every parameter that one of mergekit's methods has: a method ignores those of the others."""
