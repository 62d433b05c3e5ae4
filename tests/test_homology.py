"""Which tensors keep a delta off a target, and what is told of them."""

from __future__ import annotations

import pytest

from deltareg.errors import NotHomologous
from deltareg.homology import Finding, Severity, Verdict, compare_shapes, delta_shapes, refuse_mismatch, verdict_of
from deltareg.manifest import Inventory, TensorEntry

BASE = {"a": (2, 3), "b": (), "c": (0, 4)}


def finding(severity: Severity, subject: str = "w") -> Finding:
    return Finding("some-code", severity, subject, "this", "that")


def codes(findings: list[Finding]) -> dict[str, str]:
    assert {found.severity for found in findings} <= {"error"}
    return {found.subject: found.code for found in findings}


def test_shapes_of_the_base_are_those_of_tensors_that_it_has() -> None:
    inventory = Inventory(
        tensors=[
            TensorEntry(name="kept", kind="planes", base_dtype="F32", post_dtype="F32", shape=[2, 3], packs=[0]),
            TensorEntry(name="added", kind="full", post_dtype="F32", shape=[4], packs=[0]),
            TensorEntry(name="removed", kind="removed", base_dtype="F32", shape=[5]),
            TensorEntry(name="scalar", kind="zero", base_dtype="I64", post_dtype="I64", shape=[]),
        ]
    )
    assert delta_shapes(inventory) == {"kept": (2, 3), "removed": (5,), "scalar": ()}


def test_same_space_has_no_findings_in_whatever_order() -> None:
    assert compare_shapes(BASE, dict(reversed(BASE.items()))) == []
    assert compare_shapes({}, {}) == []


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), ()])
def test_another_shape_is_found(shape: tuple[int, ...]) -> None:
    (found,) = compare_shapes(BASE, {**BASE, "a": shape})
    assert (found.code, found.delta, found.target) == ("tensor-shape", "shape [2, 3]", f"shape {list(shape)}")


def test_missing_and_unexpected_tensors_are_all_found() -> None:
    assert codes(compare_shapes(BASE, {"a": (2, 3), "x": (1,), "y": ()})) == {
        "b": "tensor-missing",
        "c": "tensor-missing",
        "x": "tensor-unexpected",
        "y": "tensor-unexpected",
    }


def test_optional_tensor_may_be_missing_but_not_of_another_shape() -> None:
    without = {name: shape for name, shape in BASE.items() if name != "b"}
    assert compare_shapes(BASE, without, optional=iter(["b"])) == []
    assert codes(compare_shapes(BASE, {**BASE, "b": (1,)}, optional=["b"])) == {"b": "tensor-shape"}
    assert codes(compare_shapes(BASE, {**without, "z": ()}, optional=["b", "z"])) == {"z": "tensor-unexpected"}


@pytest.mark.parametrize(
    ("severities", "verdict"),
    [
        ([], "identical"),
        (["note"], "homologous"),
        (["note", "warning"], "adaptable"),
        (["warning", "error", "note"], "incompatible"),
    ],
)
def test_worst_finding_decides(severities: list[Severity], verdict: Verdict) -> None:
    assert verdict_of(finding(severity) for severity in severities) == verdict


def test_warnings_and_notes_refuse_nothing() -> None:
    refuse_mismatch([finding("warning"), finding("note")], message="no", hint="none")


def test_refusal_names_the_first_tensors_and_carries_all() -> None:
    findings = [finding("note", "n"), *(finding("error", f"t{number}") for number in range(40))]
    with pytest.raises(NotHomologous, match=r"^it does not fit: t0: this ") as raised:
        refuse_mismatch(findings, message="it does not fit", hint="take another")
    assert "t40" not in raised.value.message
    assert "more" in raised.value.message
    assert "40 tensors" in (raised.value.cause or "")
    assert (raised.value.hint, raised.value.exit_code) == ("take another", 3)
    told = raised.value.data["findings"]
    assert isinstance(told, list)
    assert [entry["subject"] for entry in told] == [f"t{number}" for number in range(40)]
    assert told[0] == {"code": "some-code", "subject": "t0", "delta": "this", "target": "that"}


def test_single_tensor_is_told_in_the_singular() -> None:
    with pytest.raises(NotHomologous) as raised:
        refuse_mismatch([finding("error")], message="no", hint="none")
    assert "1 tensor of" in (raised.value.cause or "")
    assert "more" not in raised.value.message
