"""What a configuration may say, and what is refused: with the line and the reason, whatever the file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.errors import BadMergeConfig
from deltareg.mergekit.config import read_config
from deltareg.mergekit.document import parse_document
from deltareg.mergekit.values import Rule

GOOD = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5}
  - model: b
    parameters:
      weight: [0, 1e-1]
parameters:
  density: 0.5
"""


def write(path: Path, text: str | bytes) -> Path:
    file = path / "merge.yml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refusal(path: Path, text: str | bytes) -> BadMergeConfig:
    with pytest.raises(BadMergeConfig) as caught:
        read_config(write(path, text))
    assert str(caught.value).startswith(str(path / "merge.yml"))
    return caught.value


def test_everything_has_its_line(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))
    assert (config.method.text, config.method.line) == ("ties", 1)
    assert config.base is not None and (config.base.text, config.base.line) == ("base", 2)
    assert [(one.name.text, one.name.line) for one in config.models] == [("a", 4), ("b", 6)]
    # YAML 1.1 reads 1e-1 as text, as mergekit knows.
    assert config.models[1].parameters == {"weight": [Rule(None, (0.0, 0.1), 8)]}
    assert config.parameters == {"density": [Rule(None, 0.5, 10)]}


def test_conditions_are_read_in_their_order(tmp_path: Path) -> None:
    text = GOOD + "  lambda:\n    - filter: mlp\n      value: [1, 2]\n    - {filter: '*', value: 3}\n"
    rules = read_config(write(tmp_path, text)).parameters["lambda"]
    assert rules == [Rule("mlp", (1.0, 2.0), 12), Rule(None, 3.0, 14)]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", None, "empty"),
        ("# nothing\n", None, "empty"),
        ("{}", 1, "empty"),
        ("- a\n- b\n", 1, "a list, not a mapping"),
        ("just words", 1, "'just words', not a mapping"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: 1\na: 2\n", 2, "the key a occurs twice, in line 1"),
        ("x: {y: 1,\n y: 2}\n", 2, "the key y occurs twice"),
        ("base: &b {x: 1}\nc:\n  <<: *b\n", 3, "merge keys"),
        ("1: x\n", 1, "a key is no text"),
        ("? [a]\n: x\n", 1, "a key is no text"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "is a tag"),
        ("a: !!python/name:os.system x\n", 1, "could not determine a constructor"),
        ("x: *nothing\n", 1, "undefined alias"),
        ("x: &x [*x]\n", 1, "nested deeper"),
        ("x: " + "[" * 40 + "]" * 40, 1, "nested deeper"),
        ("x: " + "[" * 100_000, None, "nested deeper"),
        ("x: " + "9" * 5000, 1, "is no value"),
        ("a: 1\nb: \x07\n", 2, "not valid YAML"),
        (b"a: 1\nb: \xff\xfe\n", 2, "no text in UTF-8"),
        ("a: " + "x" * 300_000, None, "larger than"),
    ],
)
def test_what_is_no_configuration_tells_why(tmp_path: Path, text: str | bytes, line: int | None, reason: str) -> None:
    error = refusal(tmp_path, text)
    assert reason in error.message
    if line is not None:
        assert f"line {line}" in error.message


def test_aliases_that_expand_without_end_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    error = refusal(tmp_path, bomb)
    assert "aliases expand to more than" in error.message


def test_aliases_within_reason_are_values(tmp_path: Path) -> None:
    document = parse_document("a: &x {y: [1, 2]}\nb: *x\n", tmp_path)
    table = document.table
    assert table is not None and table["b"].table == table["a"].table
    assert table["b"].line == 2


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(BadMergeConfig, match="there is no file"):
            read_config(path)


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (("merge_method: ties", "merge_methd: ties"), 1, "unknown key merge_methd (did you mean merge_method?)"),
        (("merge_method: ties", "merge_method: tie"), 1, "unknown method 'tie' (did you mean ties?)"),
        (("merge_method: ties", "merge_method: passthrough"), 1, "passthrough: it stacks layers"),
        (("merge_method: ties", "merge_method: arcee_fusion"), 1, "softmax"),
        (("merge_method: ties", "merge_method: [ties]"), 1, "merge_method is a list, not a text"),
        (("base_model: base", "base_model: {model: base}"), 2, "base_model is a mapping"),
        (("base_model: base", "slices: []"), 2, "slices: slices put layers together"),
        (("base_model: base", "modules: {}"), 2, "modules: modules are merged apart"),
        (("base_model: base", "experts: []"), 2, "experts: a mixture of experts"),
        (("base_model: base", "gate_mode: random"), 2, "gate_mode: a mixture of experts"),
        (("base_model: base", "dtype: bfloat"), 2, "did you mean bfloat16?"),
        (("base_model: base", "tokenizer_source: union"), 2, "a union of vocabularies"),
        (("base_model: base", "tokenizer: {}"), 2, "a union of vocabularies"),
        (("base_model: base", "tokenizer: {source: base, tokens: {x: {source: a}}}"), 2, "tokens builds"),
        (("base_model: base", "tokenizer: {source: base, pad_to_multiple_of: 64}"), 2, "pad_to_multiple_of builds"),
        (("base_model: base", "tokenizer: {sorce: base}"), 2, "unknown key sorce (did you mean source?)"),
        (("base_model: base", "tokenizer: base"), 2, "tokenizer is 'base', not a mapping"),
        (("base_model: base", "chat_template: chatml"), 2, "chat_template: a recipe takes"),
        (("  - model: a\n", "  - modle: a\n"), 4, "a model is a mapping with the key model"),
        (("  - model: a\n", "  - model: ''\n"), 4, "model is '', not a text"),
        (("{weight: 0.5}", "{wieght: 0.5}"), 5, "unknown parameter wieght (did you mean weight?)"),
        (("{weight: 0.5}", "{weight: heavy}"), 5, "weight is 'heavy', not a number"),
        (("{weight: 0.5}", "{weight: .nan}"), 5, "weight is nan, not a number"),
        (("{weight: 0.5}", "{weight: 1e400}"), 5, "not a number"),
        (("{weight: 0.5}", "{weight: []}"), 5, "the list is empty"),
        (("{weight: 0.5}", "{weight: [1, {value: 2}]}"), 5, "a condition is a mapping"),
        (("{weight: 0.5}", "{weight: {filter: mlp}}"), 5, "a condition is a mapping"),
        (("{weight: 0.5}", "{weight: {filtre: mlp, value: 1}}"), 5, "unknown key filtre (did you mean filter?)"),
        (("{weight: 0.5}", "[weight]"), 5, "parameters is a list"),
        (("  density: 0.5", "  normalize: [true, false]"), 10, "a list of yes and no"),
    ],
)
def test_what_has_no_meaning_is_refused_with_its_line(
    tmp_path: Path, change: tuple[str, str], line: int, reason: str
) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    error = refusal(tmp_path, text)
    assert f"line {line}: " in error.message and reason in error.message


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("weight: 0.5", "weigth: 0.5").replace("density", "densty").replace("base_model", "bsae_model")
    error = refusal(tmp_path, text)
    assert [fault.split(":")[0] for fault in error.data["faults"]] == ["line 2", "line 5", "line 10"]  # type: ignore[union-attr]


def test_models_and_method_have_to_be_there(tmp_path: Path) -> None:
    assert "merge_method is missing" in refusal(tmp_path, "models: [{model: a}]\n").message
    assert "models is missing" in refusal(tmp_path, "merge_method: ties\n").message
    assert "models is empty" in refusal(tmp_path, "merge_method: ties\nmodels: []\n").message


def test_slices_alone_are_one_fault(tmp_path: Path) -> None:
    text = "slices:\n  - sources: [{model: a, layer_range: [0, 4]}]\nmerge_method: slerp\nbase_model: a\n"
    error = refusal(tmp_path, text)
    assert error.data["faults"] == ["line 1: slices: slices put layers together, which deltas of one base cannot"]
    assert error.hint is not None and "models:" in error.hint


def test_what_changes_nothing_is_noted(tmp_path: Path) -> None:
    text = GOOD + "  int8_mask: true\n  select_topk: 0.1\nwrite_model_card: false\nchat_template: auto\n"
    notes = read_config(write(tmp_path, text)).notes
    assert [note.split(":")[0] for note in notes] == ["line 13", "line 11", "line 12", "line 14"]
    assert "int8_mask changes nothing here" in notes[1] and "ties has no select_topk" in notes[2]
