"""The merge methods: for each a function from its parameters to its stages, and the table that names them.

To add one, write such a function with its paper's equation, declare its parameters by annotations, and decorate it.
What the stages in `sparsify.py`, `combine.py` and `geometry.py` do not do is a new stage there. Below, Δᵢ are the
deltas, wᵢ their weights, and M what is added to the target.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from deltareg.errors import InvalidArgument
from deltareg.merge.combine import Elect, EnergyShares, Near, Reinforce, SelectVariance, Sum, Vote, Weigh
from deltareg.merge.geometry import Karcher, ModelStock, MultiSlerp, Slerp
from deltareg.merge.parameter import Between, Parameter, PerDelta, Value, declared
from deltareg.merge.sparsify import Band, Drop, MagPrune, MatchNorm, Ramp, Trim
from deltareg.merge.stage import Scope, Stage

__all__ = ["METHODS", "Method", "Stages", "method_of"]

Stages = tuple[Stage, ...]

_Lambda = Annotated[float, Between(-math.inf, math.inf, "what M is multiplied with")]
_Density = Annotated[PerDelta, Between(0, 1, "the share of each delta that is kept")]
_Divide = Annotated[bool, "whether to divide by Σ wᵢ"]
_Normalize = Annotated[
    Literal["weights", "count", "none"], "what is divided by: Σ wᵢ of the deltas that agree, their number, nothing"
]
_Elect = Annotated[Vote, "deltas vote for the sign with weight · Δ, with Δ, or with their signs alone"]
_Reach = Annotated[PerDelta, Between(0, 1, "how far the chance of being kept varies with the rank")]
_Ramp = Annotated[Ramp, "ε is the whole variation (the paper), or half of it (mergekit)"]
_Largest = Annotated[PerDelta, Between(0, 1, "the share of the largest elements that is left out")]
_Changed = Annotated[float, Between(0, math.inf, "an element above it counts as changed")]
_OffChance = Annotated[Literal["inverse", "l1", "none"], "1/chance of being kept, the same Σ|Δ| as before, nothing"]
_OffShare = Annotated[Literal["none", "l1"], "nothing makes up for what is left out, or the same Σ|Δ| as before"]


@dataclass(frozen=True)
class Method:
    """One method: what it is made of, its parameters, and how many deltas it takes.

    `random` tells that it draws from the generator that `--seed` starts.
    """

    name: str
    make: Callable[..., Stages]
    parameters: Mapping[str, Parameter]
    least: int
    most: int | None
    random: bool

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.make.__doc__ or "").strip().splitlines()[0]

    @property
    def description(self) -> str:
        """Its docstring: the equation, and where it comes from."""
        return inspect.cleandoc(self.make.__doc__ or "")

    def check(self, name: str, value: Value) -> Value:
        """The value of a parameter, if it can have it. Raises InvalidArgument."""
        if name not in self.parameters:
            known = ", ".join(self.parameters)
            raise InvalidArgument(f"{self.name} has no parameter {name}", hint=f"parameters of {self.name}: {known}")
        return self.parameters[name].checked(value)

    def check_own(self, name: str, value: Value) -> Value:
        """The value of a parameter for one delta alone, if it can have it. Raises InvalidArgument."""
        checked = self.check(name, value)
        if not self.parameters[name].by_delta:
            differing = ", ".join(name for name, one in self.parameters.items() if one.by_delta)
            raise InvalidArgument(
                f"{self.name} has one {name} for all deltas",
                hint=f"what may differ by delta in {self.name}: {differing or 'nothing'}",
            )
        return checked

    def refuse_missing(self, given: Container[str]) -> None:
        """Raise InvalidArgument where a parameter that has no default is not given."""
        missing = [name for name, one in self.parameters.items() if one.default is None and name not in given]
        if missing:
            told = "; ".join(f"{name}: {self.parameters[name].meaning}" for name in missing)
            raise InvalidArgument(
                f"{self.name} needs {', '.join(missing)}",
                hint=f"--param {missing[0]}=VALUE, in a recipe parameters = {{ {missing[0]} = VALUE }} ({told})",
            )

    def complete(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """All parameters with their values. Raises InvalidArgument, naming what is wrong or missing."""
        self.refuse_missing(given)
        return {name: one.checked(one.default) for name, one in self.parameters.items() if one.default is not None} | {
            name: self.check(name, value) for name, value in given.items()
        }

    def stages(self, given: Mapping[str, Value], own: Sequence[Mapping[str, Value]] = ()) -> Stages:
        """Its stages with these parameters, and those that each delta has of its `own`. Raises InvalidArgument."""
        columns = [self.complete({**given, **one}) for one in own] or [self.complete(given)]
        values = {name: _joined([column[name] for column in columns]) for name in columns[0]}
        return self.make(**{"lambda_" if name == "lambda" else name: value for name, value in values.items()})

    def check_deltas(self, count: int) -> None:
        """Raise InvalidArgument where it does not take so many deltas."""
        if count >= self.least and (self.most is None or count <= self.most):
            return
        wanted = f"{self.least}" if self.most == self.least else f"at least {self.least}"
        raise InvalidArgument(
            f"{self.name} takes {wanted} deltas, not {count}" if wanted != "1" else f"{self.name} takes one delta",
            hint="name as many, with a weight that is not 0, or choose another --method",
        )


def _joined(values: Sequence[Value]) -> Value | tuple[Value, ...]:
    """One value where all deltas have the same."""
    return values[0] if all(value == values[0] for value in values) else tuple(values)


METHODS: dict[str, Method] = {}
"""The methods by their names."""


def method_of(name: str) -> Method:
    """The method of that name. Raises InvalidArgument."""
    if name not in METHODS:
        raise InvalidArgument(f"unknown method {name!r}", hint=f"methods are: {', '.join(METHODS)}")
    return METHODS[name]


def _method(least: int = 1, most: int | None = None, *, random: bool = False) -> Callable[..., Callable[..., Stages]]:
    def register(function: Callable[..., Stages]) -> Callable[..., Stages]:
        METHODS[function.__name__] = Method(function.__name__, function, declared(function), least, most, random)
        return function

    return register


# --- sums -------------------------------------------------------------------------------------------------------------


@_method()
def linear(
    normalize: _Divide = False,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · Σ wᵢΔᵢ: ParamΔ, task arithmetic.

    ParamΔ: arXiv 2504.21023, equation 3. Task arithmetic: arXiv 2212.04089, section 2.
    """
    return (Sum(normalize, lambda_),)


@_method()
def ties(
    density: _Density = 0.2,
    elect: _Elect = "weighted",
    normalize: _Normalize = "weights",
    trim: Annotated[Scope, "whether the largest are those of each tensor, or of the whole model"] = "model",
    rescale: _OffShare = "none",
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · the mean of the trimmed deltas that have the elected sign.

    TIES-Merging, arXiv 2306.01708, algorithm 1: keep the `density` · n largest |Δᵢ|, elect γ = sgn(Σ Δ̂ᵢ), and take the
    mean of those Δ̂ᵢ whose sign is γ. The paper has no weights; of the two ways to bring them in, signs elected with
    weights and a weighted mean are mergekit's, `elect=unweighted normalize=count` is PEFT's.
    """
    return (*_matched(Trim(density, over=trim, rescale=rescale)), Elect(elect, normalize, lambda_))


@_method(random=True)
def dare_linear(
    density: _Density,
    rescale: _OffChance = "inverse",
    normalize: _Divide = False,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · Σ wᵢΔ̂ᵢ, where each element of Δᵢ is kept by chance, and divided by that chance.

    DARE, arXiv 2311.03099, equation 2: Δ̂ = m ⊙ Δ / (1 − p), where m is 1 with the chance 1 − p = `density`.
    """
    return (*_matched(Drop(density, rescale)), Sum(normalize, lambda_))


@_method(random=True)
def dare_ties(
    density: _Density,
    elect: _Elect = "weighted",
    normalize: _Normalize = "weights",
    rescale: _OffChance = "inverse",
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · the mean of the deltas that have the elected sign, after elements were dropped by chance.

    DARE (arXiv 2311.03099, equation 2) in the place of the trimming of TIES-Merging (arXiv 2306.01708).
    """
    return (*_matched(Drop(density, rescale)), Elect(elect, normalize, lambda_))


@_method(random=True)
def della_linear(
    density: _Density,
    epsilon: _Reach = 0.1,
    ramp: _Ramp = "paper",
    rescale: _OffChance = "inverse",
    normalize: _Divide = False,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · Σ wᵢΔ̂ᵢ, where large elements of a row are kept with a higher chance, and divided by it.

    MAGPRUNE of DELLA, arXiv 2406.11617, section 3.1: pⱼ = p_min + ε·rⱼ/n, with p_min = 1 − density − ε/2 and the rank
    rⱼ of |Δⱼ| in its row of n, 0 for the largest; Δ̂ⱼ = mⱼΔⱼ / (1 − pⱼ).
    """
    return (*_matched(_magprune(density, epsilon, ramp, rescale)), Sum(normalize, lambda_))


@_method(random=True)
def della(
    density: _Density,
    epsilon: _Reach = 0.1,
    ramp: _Ramp = "paper",
    elect: _Elect = "weighted",
    normalize: _Normalize = "weights",
    rescale: _OffChance = "inverse",
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · the mean of the deltas that have the elected sign, after MAGPRUNE.

    DELLA, arXiv 2406.11617, section 3: drop (as `della_linear`), elect, fuse.
    """
    return (*_matched(_magprune(density, epsilon, ramp, rescale)), Elect(elect, normalize, lambda_))


@_method()
def breadcrumbs(
    density: _Density,
    gamma: _Largest = 0.01,
    rescale: _OffShare = "none",
    normalize: _Divide = False,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · Σ wᵢ mᵢ ⊙ Δᵢ, where mᵢ leaves out the largest and the smallest elements of each tensor.

    Model Breadcrumbs, arXiv 2312.06795, equation 2. With its β and γ: density = γ − β, and the `gamma` here is 1 − γ.
    """
    return (*_matched(Band(density, gamma, rescale=rescale)), Sum(normalize, lambda_))


@_method()
def breadcrumbs_ties(
    density: _Density,
    gamma: _Largest = 0.01,
    elect: _Elect = "weighted",
    normalize: _Normalize = "weights",
    rescale: _OffShare = "none",
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · the mean of the deltas that have the elected sign, without their largest and smallest elements.

    Model Breadcrumbs (arXiv 2312.06795) in the place of the trimming of TIES-Merging (arXiv 2306.01708).
    """
    return (*_matched(Band(density, gamma, rescale=rescale)), Elect(elect, normalize, lambda_))


@_method()
def sce(
    select_topk: Annotated[float, Between(0, 1, "the share of the varying elements that is selected")] = 0.1,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = λ · the weighted mean of the deltas with the elected sign, at the elements that vary most.

    Select, Calculate, Erase: arXiv 2408.07990, section 3.3. The weight of a delta is its share of Σ Δ² over the
    selected elements of a tensor. Weights wᵢ scale the deltas before.
    """
    return (Weigh(), SelectVariance(select_topk), EnergyShares(), Elect("unweighted", "weights", lambda_))


# --- by agreement, or nearness ----------------------------------------------------------------------------------------


@_method()
def ram(
    epsilon: _Changed = 1e-5,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = the delta that changes an element alone, or the mean of those that do.

    Reinforced Agent Merging, arXiv 2601.13572. Weights wᵢ scale the deltas before.
    """
    return (Weigh(), Reinforce(epsilon, scale=lambda_))


@_method()
def ramplus_tl(
    r: Annotated[float, Between(0, math.inf, "how strongly what one delta changes alone is reinforced")] = 0.1,
    alpha: Annotated[float, Between(0, math.inf, "the largest ρ that counts")] = 0.2,
    epsilon: _Changed = 1e-5,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """As `ram`, with what delta i changes alone times 1 + r · min(α, ρᵢ).

    RAM+, arXiv 2601.13572; ρᵢ is the number of elements that delta i shares with others for each that it does not, here
    counted in each tensor. Weights wᵢ scale the deltas before.
    """
    return (Weigh(), Reinforce(epsilon, r, alpha, lambda_))


@_method(2)
def model_stock(lambda_: _Lambda = 1.0) -> Stages:
    """M = t · the mean of the deltas, with t = N·cos θ / (1 + (N − 1)·cos θ) from the angles between them.

    Model Stock, arXiv 2403.19522, equation 4, by tensor. Weights wᵢ scale the deltas before.
    """
    return (Weigh(), ModelStock(), Sum(scale=lambda_))


@_method(1, 1)
def nearswap(
    t: Annotated[float, Between(0, math.inf, "the largest change of an element")],
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = min(1, t/|Δ|) · Δ: small changes as they are, large ones brought to the size t.

    NearSwap, as published with QuartetAnemoi-70B-t0.0001. The weight scales the delta before.
    """
    return (Weigh(), Near(t, lambda_))


# --- on the sphere ----------------------------------------------------------------------------------------------------


@_method(2, 2)
def slerp(
    t: Annotated[float, Between(0, 1, "0 is the first delta, 1 the second")] = 0.5,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = (sin((1−t)θ)·Δ₁ + sin(tθ)·Δ₂) / sin θ, with the angle θ between the deltas of a tensor.

    Shoemake, "Animating rotation with quaternion curves", 1985. Weights wᵢ scale the deltas before.
    """
    return (Weigh(), Slerp(t), Sum(scale=lambda_))


@_method()
def multislerp(
    normalize: Annotated[bool, "whether weights are divided by their sum"] = True,
    eps: Annotated[float, Between(0, 1, "what is added to lengths that are divided by")] = 1e-8,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = the barycentre of the deltas' directions, in the tangent space at their mean, times Σ wᵢ‖Δᵢ‖.

    Multi-SLERP, as mergekit defines it (goddard.blog, "Multi-SLERP: wow, what a cool idea").
    """
    return (MultiSlerp(normalize, eps), Sum(scale=lambda_))


@_method()
def karcher(
    iterations: Annotated[int, Between(1, 1000, "steps of the fixed-point iteration at most")] = 10,
    tolerance: Annotated[float, Between(0, 1, "the step in radians at which it ends")] = 1e-5,
    lambda_: _Lambda = 1.0,
) -> Stages:
    """M = the Karcher mean of the deltas' directions, which minimises Σ wᵢθᵢ², times Σ wᵢ‖Δᵢ‖.

    arXiv 2603.04972, the spherical proxy. Weights are shares and may not be negative.
    """
    return (Karcher(iterations, tolerance), Sum(scale=lambda_))


def _matched(stage: Band | Drop | MagPrune) -> Stages:
    return (stage, MatchNorm()) if stage.rescale == "l1" else (stage,)


def _magprune(density: PerDelta, epsilon: PerDelta, ramp: Ramp, rescale: Literal["inverse", "l1", "none"]) -> MagPrune:
    for share, variation in _pairs(density, epsilon):
        reach = variation / 2 if ramp == "paper" else variation
        if 0 < share < 1 and not 0 < share - reach <= share + reach < 1:
            raise InvalidArgument(
                f"chances from {share - reach:g} to {share + reach:g} are none",
                hint=f"with density={share:g} and ramp={ramp}, epsilon is less than "
                f"{min(share, 1 - share) * (2 if ramp == 'paper' else 1):g}",
            )
    return MagPrune(density, epsilon, ramp, rescale)


def _pairs(one: PerDelta, other: PerDelta) -> list[tuple[float, float]]:
    """Both numbers of each delta, or of all."""
    count = max(len(value) if isinstance(value, tuple) else 1 for value in (one, other))
    each = [value if isinstance(value, tuple) else (value,) * count for value in (one, other)]
    return list(zip(*each, strict=True))
