"""How two deltas go together, as a picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from deltareg.errors import DeltaregError
from deltareg.sketch.comparison import ALL, ComparisonReport, PairReport
from deltareg_registry.api.compare import compare
from deltareg_registry.pages.charts import MOST_LAYERS, heat_map
from deltareg_registry.pages.forms import Asking
from deltareg_registry.pages.rendering import render
from deltareg_registry.problems import status_of

__all__ = ["compare_pages"]

compare_pages = APIRouter(include_in_schema=False)

_SHOWN_SKIPPED = 50

_Name = Annotated[str, Query(max_length=300)]


@compare_pages.get("/compare")
def compare_page(request: Request, asking: Asking, first: _Name = "", second: _Name = "") -> Response:
    """The form, and once two deltas are named what their sketches tell."""
    first, second = first.strip(), second.strip()
    report: ComparisonReport | None = None
    fault, status = None, 200
    if first and second:
        try:
            report = compare(request, asking, first, second)
        except DeltaregError as error:
            fault, status = error.message, status_of(error)
    elif first or second:
        fault, status = "Name two deltas.", 400
    pair = None if report is None else report.pairs[0]
    return render(
        request,
        "compare.html",
        status=status,
        first=first,
        second=second,
        fault=fault,
        report=report,
        pair=pair,
        chart=None if pair is None else _chart(pair),
        rows=[] if pair is None else list(pair.rows(layers=False)),
        layer_rows=[] if pair is None else [row for row in pair.rows(layers=True) if row[0]][: 8 * MOST_LAYERS],
        shown_skipped=_SHOWN_SKIPPED,
        shown_layers=MOST_LAYERS,
    )


def _chart(pair: PairReport) -> object:
    classes = sorted({key for found in pair.layers.values() for key in found}, key=lambda key: (key != ALL, key))
    cosines = {(layer, key): one.cosine for layer, found in pair.layers.items() for key, one in found.items()}
    return heat_map(list(pair.layers), classes, cosines)
