"""Which tensors keep a delta off a target, and what is told of them."""

from __future__ import annotations

import pytest

from deltareg.errors import NotHomologous
from deltareg.fingerprint.structure import Structure, Value
from deltareg.homology import (
    FINDINGS,
    Finding,
    Severity,
    Verdict,
    compare_configurations,
    compare_fingerprints,
    compare_shapes,
    compare_spaces,
    compare_tokenizer_fingerprints,
    delta_shapes,
    refuse_mismatch,
    verdict_of,
)
from deltareg.manifest import Fingerprint, Inventory, TensorEntry, TokenizerFingerprint
from tests import docs

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


# --- findings -----------------------------------------------------------------------------------------------------

NOTHING = Structure(None, {}, {})


def space(base: dict[str, tuple[int, ...]], target: dict[str, tuple[int, ...]]) -> dict[str, str]:
    inventory = Inventory(
        tensors=[
            TensorEntry(name=name, kind="zero", base_dtype="F32", post_dtype="F32", shape=list(shape))
            for name, shape in base.items()
        ]
    )
    findings, _ = compare_spaces(inventory, NOTHING, target, NOTHING)
    return {found.subject: found.code for found in findings}


def structure(
    model_type: str | None = "llama", behaviour: dict[str, Value] | None = None, **fields: Value
) -> Structure:
    return Structure(model_type, fields, behaviour or {})


def fields(base: Structure, target: Structure, *, untied: bool = True) -> dict[str, str]:
    return {found.subject: found.code for found in compare_configurations(base, target, untied=untied)}


def tokenizer(core: str = "a", added: str = "a", template: str | None = None, rows: int = 4) -> TokenizerFingerprint:
    digest = {text: f"sha256:{text * 64}" for text in "abc"}
    return TokenizerFingerprint(
        core=digest[core],
        added=digest[added],
        chat_template=template and digest[template],
        kind="bpe",
        rows=rows,
    )


@pytest.mark.parametrize("code", FINDINGS)
def test_every_finding_is_explained_on_the_page(code: str) -> None:
    kind = FINDINGS[code]
    page = (docs.ROOT / "docs" / "errors.md").read_text()
    assert f"### {code} ({kind.severity})\n\n{kind.meaning}\n" in page
    assert " against " in kind.example
    assert kind.remedy.endswith(".")
    assert Finding(code, kind.severity, "w", "this", "that").remedy == kind.remedy
    # What apply takes as it is asks for nothing that it refuses.
    assert ("refuses" in kind.remedy) <= (kind.severity == "warning")


def test_names_that_differ_in_a_prefix_and_in_more() -> None:
    base = {"model.layers.0.a.weight": (2, 2), "model.layers.0.b.weight": (2, 2)}
    wrapped = {f"module.{name}": shape for name, shape in base.items()}
    assert space(base, wrapped) == {"2 tensors": "prefix"}
    wrapped["module.model.layers.0.b.weight"] = (3, 2)
    assert space(base, wrapped) == {"2 tensors": "prefix", "model.layers.0.b.weight": "tensor-shape"}


def test_rows_of_what_is_no_embedding_are_a_shape() -> None:
    base = {"model.layers.0.a.weight": (4, 2), "model.embed_tokens.weight": (4, 2)}
    other = {"model.layers.0.a.weight": (5, 2), "model.embed_tokens.weight": (4, 3)}
    assert set(space(base, other).values()) == {"tensor-shape"}
    assert space(base, base | {"model.embed_tokens.weight": (9, 2)}) == {"model.embed_tokens.weight": "vocabulary-rows"}


def test_an_output_embedding_is_no_copy_where_nothing_is_tied() -> None:
    base = {"model.layers.0.a.weight": (4, 2), "lm_head.weight": (4, 2)}
    assert space(base, {"model.layers.0.a.weight": (4, 2)}) == {"lm_head.weight": "tensor-missing"}


def test_what_one_configuration_does_not_say_is_no_difference() -> None:
    assert fields(structure(None, layers=2), structure("llama", heads=4)) == {}
    assert fields(structure("llama", layers=2), structure("llama", layers=2.0)) == {}
    assert fields(structure("bert", layers=2), structure("llama", layers=3)) == {
        "model_type": "model-type",
        "layers": "structure-field",
    }


def test_fields_with_a_remedy_and_fields_that_are_told() -> None:
    base = structure(vocabulary_size=4, tied_embeddings=True, behaviour={"rope_scaling": None})
    other = structure(vocabulary_size=5, tied_embeddings=False, behaviour={"rope_scaling": {"factor": 8}})
    told = {"vocabulary_size": "behaviour-field", "tied_embeddings": "tied-head", "rope_scaling": "behaviour-field"}
    assert fields(base, other) == told
    assert fields(base, other, untied=False) == told | {"tied_embeddings": "behaviour-field"}


@pytest.mark.parametrize(
    ("base", "target", "expected"),
    [
        (False, None, {"tied_embeddings": "tied-unknown"}),
        (True, None, {"tied_embeddings": "tied-unknown"}),
        (False, True, {"tied_embeddings": "tied-head"}),
        (False, False, {}),
        (None, True, {}),
    ],
)
def test_ties_that_a_target_without_tensors_does_not_tell_are_no_difference(
    base: bool | None, target: bool | None, expected: dict[str, str]
) -> None:
    sides = [{} if tied is None else {"tied_embeddings": tied} for tied in (base, target)]
    digest = "sha256:" + "0" * 64
    fingerprint = Fingerprint(digest=digest, space=digest, inventory=digest, structure=sides[0])
    found = compare_fingerprints(fingerprint, Structure(None, sides[1], {}), None, None)
    assert {one.subject: one.code for one in found} == expected
    verdicts = {"tied-unknown": "homologous", "tied-head": "adaptable"}
    assert verdict_of(found) == next((verdicts[code] for code in expected.values()), "identical")


def test_long_values_are_cut() -> None:
    (found,) = compare_configurations(structure(behaviour={"x": "y" * 5000}), structure(), untied=False)
    assert len(found.delta) < 200


@pytest.mark.parametrize(
    ("base", "target", "codes"),
    [
        (None, None, []),
        (tokenizer(), tokenizer(), []),
        (tokenizer(), None, ["tokenizer-missing"]),
        (None, tokenizer(), ["tokenizer-missing"]),
        (tokenizer(), tokenizer(added="b"), ["tokenizer-added"]),
        (tokenizer(), tokenizer(core="b", added="b", template="c"), ["tokenizer-core", "chat-template"]),
    ],
)
def test_tokenizers_are_compared_by_layer(
    base: TokenizerFingerprint | None, target: TokenizerFingerprint | None, codes: list[str]
) -> None:
    assert [found.code for found in compare_tokenizer_fingerprints(base, target, embedding=True)] == codes


def test_tokens_do_not_matter_to_a_model_without_an_embedding() -> None:
    (found,) = compare_tokenizer_fingerprints(tokenizer(), tokenizer(core="b"), embedding=False)
    assert (found.code, found.severity) == ("tokenizer-core", "note")


def test_identical_needs_more_than_no_findings() -> None:
    assert verdict_of([], identical=False) == "homologous"
