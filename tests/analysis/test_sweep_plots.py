"""Pictures of sweeps."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from deltareg.analysis import SweepReport, sweep
from deltareg.analysis.sweep_plots import plot_sweep
from deltareg.errors import InvalidArgument
from tests.analysis.scene import Scene

pytest.importorskip("matplotlib")


def swept(scene: Scene, **options: object) -> SweepReport:
    """A sweep of two metrics; of one the middle is no number."""
    count = 0

    def score(*_: object) -> dict[str, float]:
        nonlocal count
        count += 1
        return {"a <b>$&": 1.0 / count, "loss": float("nan") if count == 2 else count}

    return sweep(scene.recipe, scene.registry, score=score, lower_is_better=["loss"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": [0, 0.5, 1, 2]},
        {"alpha": [1]},
        {"alpha": [0, 1], "fused": True},
        {"alpha": [0, 0.5, 2], "beta": [0, 1]},
        {"alpha": [1], "beta": [0, 1, 3]},
        {"alpha": [0, 1, 3], "beta": [1]},
    ],
    ids=str,
)
def test_every_kind_of_sweep_is_drawn_and_the_same_each_time(
    tmp_path: Path, scene: Scene, options: dict[str, object]
) -> None:
    report = swept(scene, **options)
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")):
        first, second = (plot_sweep(report, tmp_path / f"{n}.{kind}").read_bytes() for n in range(2))
        assert first == second
        assert first.startswith(start)
    text = "".join(ElementTree.fromstring((tmp_path / "0.svg").read_bytes()).itertext())
    for told in ("a <b>$&", "loss", "lower is better" if report.beta is None else "best, at", "acme/one:1.0.0"):
        assert told in text or ("beta" in options and len(report.alpha) == 1)
    page = (tmp_path / "0.html").read_text()
    assert "<b>$" not in page
    assert page.count("<tr>") == 1 + len(report.points)


def test_other_endings_are_refused(tmp_path: Path, scene: Scene) -> None:
    with pytest.raises(InvalidArgument, match="does not tell what to draw"):
        plot_sweep(swept(scene, alpha=[1]), tmp_path / "a.pdf")
