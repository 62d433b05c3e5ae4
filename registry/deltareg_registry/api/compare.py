"""How two deltas go together, before either is downloaded."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from deltareg.sketch.comparison import ComparisonReport, estimate
from deltareg_registry.api.artifacts import open_delta
from deltareg_registry.api.asking import PROBLEMS, Asking
from deltareg_registry.api.caching import Cache
from deltareg_registry.api.turns import turn
from deltareg_registry.state import state_of

__all__ = ["compare_router"]

compare_router = APIRouter(prefix="/api/v1/compare", tags=["compatibility"], responses=PROBLEMS)

_CACHE: Cache[ComparisonReport] = Cache(256)
"""Reports by names and digests: versions never change."""

_Name = Annotated[str, Query(max_length=300, description="namespace/name:version, :channel or @digest")]


@compare_router.get("", response_model_exclude_none=True)
def compare(request: Request, asking: Asking, first: _Name, second: _Name) -> ComparisonReport:
    """Norms of two deltas, and their cosine and opposed signs by module class and layer, from their sketches.

    Tensors of which either delta keeps no sketch, as small deltas do, are skipped: `deltareg compare` reads their
    records.
    """
    state = state_of(request)
    deltas = [
        (str(reference), artifact)
        for reference, artifact in (open_delta(state, asking, first), open_delta(state, asking, second))
    ]
    key = " ".join(f"{name} {artifact.digest}" for name, artifact in deltas)
    found = _CACHE.get(key)
    if found is None:
        with turn():
            found = estimate(deltas)
        _CACHE.put(key, found)
    return found
