"""The generated pages and schemas are those of this program, and the schemas tell good documents from bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from deltareg.config import KEYS, VARIABLES
from deltareg.errors import BadManifest, UnsupportedFormat, all_errors
from deltareg.manifest import DeltaConfig, Descriptor, Document, Index, Inventory, Manifest, ReferrerManifest, parse
from tests import docs

EXAMPLES = docs.ROOT / "schemas" / "examples"
VALID = sorted((EXAMPLES / "valid").glob("*.json"))
INVALID = sorted((EXAMPLES / "invalid").glob("*.json"))
STORED: list[type[Document]] = [Manifest, ReferrerManifest, DeltaConfig, Inventory, Index, Descriptor]


def schema_of(example: Path) -> str:
    return example.name.split(".")[0]


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((docs.ROOT / "schemas" / f"{name}.schema.json").read_text()))


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize(("path", "text"), docs.generated().items(), ids=str)
def test_generated_files_are_up_to_date(path: Path, text: str) -> None:
    assert (docs.ROOT / path).read_text() == text, "run: make docs"


def test_no_schema_is_left_over() -> None:
    found = {path.name.removesuffix(".schema.json") for path in (docs.ROOT / "schemas").glob("*.schema.json")}
    assert found == set(docs.SCHEMAS)


def test_the_check_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"], root=tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == sorted(map(str, docs.generated()))
    assert docs.main([], root=tmp_path) == 0
    (tmp_path / "docs" / "cli.md").write_text("old")
    (tmp_path / "schemas" / "gone.schema.json").write_text("{}")
    capsys.readouterr()
    assert docs.main(["--check"], root=tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == ["docs/cli.md", "schemas/gone.schema.json"]
    assert docs.main([], root=tmp_path) == 0
    assert docs.main(["--check"], root=tmp_path) == 0
    assert docs.main(["--chekc"]) == 2


@pytest.mark.parametrize("name", docs.SCHEMAS)
def test_every_schema_is_one_and_has_examples(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(validator(name).schema)
    assert name in map(schema_of, VALID)
    assert name in map(schema_of, INVALID)


@pytest.mark.parametrize("example", VALID, ids=name_of)
def test_valid_examples_are_valid(example: Path) -> None:
    value = json.loads(example.read_text())
    validator(schema_of(example)).validate(value)
    docs.SCHEMAS[schema_of(example)].model_validate(value)


@pytest.mark.parametrize("example", INVALID, ids=name_of)
def test_invalid_examples_are_not(example: Path) -> None:
    faults = list(validator(schema_of(example)).iter_errors(json.loads(example.read_text())))
    assert len(faults) == 1, "an example shows one fault"
    model = docs.SCHEMAS[schema_of(example)]
    if issubclass(model, Document) and model in STORED:
        with pytest.raises((BadManifest, UnsupportedFormat)):
            parse(model, example.read_bytes(), what=example.name)


def test_every_command_and_option_is_on_the_page() -> None:
    page = (docs.ROOT / "docs" / "cli.md").read_text()
    sections = dict(re.findall(r"^## `(deltareg[^`]*)`\n\n```text\n(.*?)```$", page, re.MULTILINE | re.DOTALL))
    found = dict(docs.commands())
    assert set(sections) == set(found)
    for path, context in found.items():
        for parameter in context.command.params:
            words = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
            for word in words:
                assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", sections[path]), f"{path} {word}"


def test_every_command_and_option_is_explained() -> None:
    for path, context in docs.commands():
        assert context.command.help, path
        for parameter in context.command.params:
            assert parameter.help or parameter.name == "help", f"{path} {parameter.name}"


def test_every_setting_and_variable_is_on_the_page() -> None:
    page = (docs.ROOT / "docs" / "cli.md").read_text()
    for word in [*KEYS, *VARIABLES]:
        assert f"| `{word}` |" in page


def test_every_variable_that_the_program_reads_is_known() -> None:
    source = "\n".join(path.read_text() for path in (docs.ROOT / "deltareg").rglob("*.py"))
    assert set(re.findall(r"\bDELTAREG_[A-Z]+\b", source)) == set(VARIABLES)


def test_every_error_is_on_its_page() -> None:
    page = (docs.ROOT / "docs" / "errors.md").read_text()
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))
    for error in all_errors():
        assert f"### {error.code} {error.__name__}\n" in page


def test_every_code_that_the_program_names_exists() -> None:
    known = {error.code for error in all_errors()}
    for path in (docs.ROOT / "deltareg").rglob("*.py"):
        assert set(re.findall(r"\bDR\d{4}\b", path.read_text())) <= known, path
