"""How far a delta moves each layer: read from its inventory, and kept, as versions never change."""

from __future__ import annotations

from dataclasses import dataclass

from deltareg.artifact import Artifact
from deltareg.sketch.comparison import ALL, Side, norms_of
from deltareg_registry.api.caching import Cache
from deltareg_registry.api.turns import turn
from deltareg_registry.pages.charts import MOST_LAYERS, LineChart, line_chart

__all__ = ["LayerNorms", "layer_norms"]

_LINES = {"attention": "attention", "mlp": "feed-forward"}


@dataclass(frozen=True)
class LayerNorms:
    """Norms by layer and class, as a table and, where there are layers, as a picture."""

    classes: list[str]
    rows: list[tuple[str, list[float | None]]]
    more: int
    """Layers that are left out."""
    chart: LineChart | None


# A row is about a kilobyte.
_CACHE: Cache[LayerNorms] = Cache(20_000, lambda norms: 1 + len(norms.rows))


def layer_norms(artifact: Artifact) -> LayerNorms:
    """The norms of a delta's layers. Raises what reading its inventory raises."""
    found = _CACHE.get(artifact.digest)
    if found is None:
        with turn():
            found = _read(artifact)
        _CACHE.put(artifact.digest, found)
    return found


def _read(artifact: Artifact) -> LayerNorms:
    entries = {entry.name: entry for entry in artifact.inventory.tensors}
    norms = norms_of(Side("", artifact, entries, {}, at_hand=False))
    layers = list(norms.layers)
    shown = layers[:MOST_LAYERS]
    classes = sorted({key for layer in shown for key in norms.layers[layer]}, key=lambda key: (key != ALL, key))
    lines = {
        kind: (label, [norms.layers[layer].get(kind) for layer in shown])
        for kind, label in _LINES.items()
        if kind in classes
    }
    return LayerNorms(
        classes=classes,
        rows=[(layer, [norms.layers[layer].get(key) for key in classes]) for layer in shown],
        more=len(layers) - len(shown),
        chart=line_chart(shown, lines),
    )
