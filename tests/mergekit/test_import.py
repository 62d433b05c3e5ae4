"""Importing as a whole: where models are found, which deltas are taken, what is written, and what is left alone."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.errors import BadMergeConfig, BadName, BadRecipe, InvalidArgument, NotHomologous, OutputExists
from deltareg.mergekit import import_mergekit
from deltareg.mergekit.config import Said
from deltareg.mergekit.models import Model, repository_names
from deltareg.names import parse_reference
from deltareg.recipe import Recipe
from tests.lora.models import adapted
from tests.mergekit.models import Models, load, make_models, save_file, torch

LINEAR = "merge_method: task_arithmetic\nbase_model: ./base\nmodels:\n"
TWO = LINEAR + "  - model: ./a\n    parameters: {weight: 0.5}\n  - {model: b, parameters: {weight: [0, 1]}}\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Small models in one directory. Read only."""
    return make_models(tmp_path_factory.mktemp("models"), "bfloat16", size=0.1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deltareg.toml"


def write(models: Models, text: str, name: str = "merge.yml") -> Path:
    """A configuration beside the models."""
    file = models.path / name
    file.write_text(text)
    return file


# --- what is written --------------------------------------------------------------------------------------------------


def test_recipe_says_where_each_value_came_from(models: Models, registry: Registry, out: Path) -> None:
    text = TWO.replace("./base", "./base\nout_dtype: float16")
    import_mergekit(write(models, text), registry, out, namespace="acme")
    written = out.read_text()
    lines = {line.split(" =")[0].strip(): line.split("# ")[-1] for line in written.splitlines() if " # " in line}
    assert lines["method"] == "line 1: merge_method: task_arithmetic"
    assert lines["base"] == "line 2: ./base" and lines["dtype"] == "line 3: out_dtype"
    assert lines["side-files"] == "mergekit copies the base's tokenizer"
    assert lines["normalize"] == "mergekit's default of normalize"
    assert 'ref = "acme/a" # line 5: model: ./a' in written and "weight = 0.5 # line 6: weight" in written
    recipe = Recipe.read(out)
    assert (recipe.build.method, recipe.build.dtype, recipe.build.side_files) == ("linear", "float16", "target")
    assert [(one.ref, one.version, one.weight) for one in recipe.delta] == [
        ("acme/a", "1.0.0", 0.5),
        ("acme/b", "1.0.0", [0.0, 1.0]),
    ]
    # mergekit gives what lies behind the layers the first value of a gradient.
    assert recipe.delta[1].where == {"model.norm.weight": 0.0, "lm_head.weight": 0.0}


def test_base_is_named_as_the_recipe_sees_it(models: Models, registry: Registry, tmp_path: Path) -> None:
    file = write(models, TWO)
    for place, expected in (
        (models.path / "deltareg.toml", "./base"),
        (models.path / "recipes" / "x.toml", "../base"),
    ):
        import_mergekit(file, registry, place)
        assert Recipe.read(place).build.base == expected
    absolute = write(models, TWO.replace("./base", str(models.path / "base")), "absolute.yml")
    import_mergekit(absolute, registry, tmp_path / "deltareg.toml")
    assert Recipe.read(tmp_path / "deltareg.toml").build.base == str((models.path / "base").resolve())


def test_settings_and_comments_of_the_file_stay(models: Models, registry: Registry, out: Path) -> None:
    before = '# ours\nthreads = 3  # few\nremote = "team"\n\n[remotes.team]\nurl = "/mnt/share"  # the share\n'
    out.write_text(before)
    import_mergekit(write(models, TWO), registry, out)
    after = out.read_text()
    assert after.startswith(before)
    values = tomllib.loads(after)
    assert (values["threads"], values["remotes"]) == (3, {"team": {"url": "/mnt/share"}})
    Recipe.read(out)


@pytest.mark.parametrize(
    "before",
    [
        "threads = 3",
        "threads = 3  # no line ends here",
        "\n\n# nothing but a remark",
        '[remotes.team]\nurl = "/mnt/share"',
        'remotes = {team = {url = "/mnt/share"}}',
        'home = "x"\r\nthreads = 2\r\n',
        'remotes.team.url = "/mnt/share"\n',
    ],
)
def test_file_may_be_written_in_any_way(models: Models, registry: Registry, out: Path, before: str) -> None:
    out.write_bytes(before.encode())
    import_mergekit(write(models, TWO), registry, out)
    after = tomllib.loads(out.read_bytes().decode())
    assert {key: value for key, value in after.items() if key not in ("build", "delta")} == tomllib.loads(before)
    assert len(Recipe.read(out).delta) == 2
    import_mergekit(write(models, TWO), registry, out, overwrite=True)
    assert tomllib.loads(out.read_bytes().decode()) == after


def test_file_that_is_no_toml_is_left_alone(models: Models, registry: Registry, out: Path) -> None:
    for data in (b"threads = = 3", b"\xff\xfe"):
        out.write_bytes(data)
        with pytest.raises(BadRecipe):
            import_mergekit(write(models, TWO), registry, out, overwrite=True)
        assert out.read_bytes() == data and registry.list() == []


def test_recipe_is_replaced_only_when_asked(models: Models, registry: Registry, out: Path) -> None:
    import_mergekit(write(models, TWO), registry, out)
    first = out.read_text()
    other = write(models, LINEAR + "  - {model: c, parameters: {weight: 0.25}}\n", "other.yml")
    with pytest.raises(OutputExists, match="holds a recipe already"):
        import_mergekit(other, registry, out)
    assert out.read_text() == first and [row.reference for row in registry.list()] == [
        "imported/a:1.0.0",
        "imported/b:1.0.0",
    ]
    out.write_text(f"threads = 2 # two\n{first}")
    import_mergekit(other, registry, out, overwrite=True)
    recipe = Recipe.read(out)
    assert [one.ref for one in recipe.delta] == ["imported/c"] and "threads = 2 # two" in out.read_text()


def test_dry_run_tells_and_writes_nothing(models: Models, registry: Registry, out: Path) -> None:
    report = import_mergekit(write(models, TWO), registry, out, dry_run=True)
    assert not out.exists() and registry.list() == []
    assert [(one.reference, one.digest, one.status) for one in report.deltas] == [
        ("imported/a:1.0.0", None, "would take"),
        ("imported/b:1.0.0", None, "would take"),
    ]
    real = import_mergekit(write(models, TWO), registry, out)
    assert real.text == report.text == out.read_text()
    assert [one.status for one in real.deltas] == ["taken", "taken"]


def test_nothing_is_written_where_a_delta_cannot_be_taken(models: Models, registry: Registry, out: Path) -> None:
    other = models.path / "wider"
    other.mkdir(exist_ok=True)
    (other / "config.json").write_bytes((models.path / "a" / "config.json").read_bytes())
    tensors = {name: torch.cat([tensor, tensor]) for name, tensor in load(models.path / "a").items()}
    save_file(tensors, other / "model.safetensors")
    text = LINEAR + "  - {model: a, parameters: {weight: 1}}\n  - {model: wider, parameters: {weight: 1}}\n"
    with pytest.raises(NotHomologous) as caught:
        import_mergekit(write(models, text), registry, out)
    assert (caught.value.data["model"], caught.value.data["line"]) == ("wider", 5)
    assert not out.exists()
    assert [row.reference for row in registry.list()] == ["imported/a:1.0.0"]  # it stays for the next attempt


# --- deltas -----------------------------------------------------------------------------------------------------------


def test_delta_that_is_there_is_not_taken_again(models: Models, registry: Registry, out: Path) -> None:
    deltareg.diff(models.path / "base", models.path / "b", registry, "acme/other-name:3.2.1")
    deltareg.diff(models.path / "base", models.path / "a", registry, "acme/a:1.0.0", codec="int8")
    report = import_mergekit(write(models, TWO), registry, out, namespace="acme")
    assert [(one.reference, one.status) for one in report.deltas] == [
        ("acme/a:1.0.1", "taken"),  # what is there is an approximation
        ("acme/other-name:3.2.1", "found"),
    ]
    again = import_mergekit(write(models, TWO), registry, out, namespace="else", overwrite=True)
    assert [(one.reference, one.status) for one in again.deltas] == [
        ("acme/a:1.0.1", "found"),
        ("acme/other-name:3.2.1", "found"),
    ]
    assert len(registry.list()) == 3


def test_version_that_other_bytes_have_or_had_is_passed_over(models: Models, registry: Registry, out: Path) -> None:
    for version in ("1.0.0", "2.3.0"):
        deltareg.diff(models.path / "a", models.path / "c", registry, f"imported/a:{version}")
    deltareg.diff(models.path / "b", models.path / "c", registry, "imported/b:1.0.0")
    registry.store.remove(parse_reference("imported/b:1.0.0"))
    report = import_mergekit(write(models, TWO), registry, out)
    assert [one.reference for one in report.deltas] == ["imported/a:2.3.1", "imported/b:1.0.1"]


def test_models_of_one_name_get_names_of_their_own() -> None:
    def model(place: str, lora: str | None = None) -> Model:
        return Model(Said(place, 1), place, lora)

    found = repository_names(
        [
            model("/models/run-1/checkpoint"),
            model("/models/run-2/checkpoint"),
            model("hf://Org/My__Model-7B@main"),
            model("/base", "/adapters/Chat LoRA"),
            model("/models/---"),
            model("/x/run-1/checkpoint"),
        ]
    )
    assert found == ["run-1-checkpoint", "run-2-checkpoint", "my-model-7b", "chat-lora", "model", "run-1-checkpoint-2"]
    assert all(parse_reference(f"acme/{name}") for name in found)


def test_adapter_on_the_base_becomes_its_delta(tmp_path: Path, registry: Registry, out: Path) -> None:
    made = adapted(tmp_path / "lora", "llama", r=4, target_modules=["q_proj", "v_proj"])
    base, adapter = made.base.name, made.adapter.name
    assert made.base.parent == made.adapter.parent
    text = (
        f"merge_method: ties\nbase_model: {base}\nmodels:\n  - {{model: {base}+{adapter}, parameters: {{weight: 1}}}}\n"
    )
    file = made.base.parent / "merge.yml"
    file.write_text(text)
    report = import_mergekit(file, registry, out)
    (delta,) = report.deltas
    assert (delta.reference, delta.status) == (f"imported/{adapter}:1.0.0", "taken")
    kinds = {entry.kind for entry in registry.artifact(delta.reference).inventory.tensors if entry.size}
    assert kinds == {"lowrank"}
    again = import_mergekit(file, registry, out, overwrite=True)
    assert (again.deltas[0].reference, again.deltas[0].status) == (delta.reference, "found")
    assert Recipe.read(out).delta[0].ref == f"imported/{adapter}"


def test_adapter_goes_under_the_next_version_where_its_name_is_taken(
    tmp_path: Path, models: Models, registry: Registry, out: Path
) -> None:
    made = adapted(tmp_path / "lora", "llama", r=4, target_modules=["q_proj"])
    deltareg.diff(models.path / "base", models.path / "a", registry, f"imported/{made.adapter.name}:1.0.0")
    file = made.base.parent / "merge.yml"
    model = f"{made.base.name}+{made.adapter.name}"
    file.write_text(
        f"merge_method: ties\nbase_model: {made.base.name}\nmodels: [{{model: {model}, parameters: {{weight: 1}}}}]\n"
    )
    for status in ("would take", "taken", "found"):
        report = import_mergekit(file, registry, out, overwrite=True, dry_run=status == "would take")
        (delta,) = report.deltas
        assert (delta.reference, delta.status) == (f"imported/{made.adapter.name}:1.0.1", status)


def test_adapter_on_another_model_is_refused(tmp_path: Path, models: Models, registry: Registry, out: Path) -> None:
    text = LINEAR + "  - {model: a+c, parameters: {weight: 1}}\n"
    with pytest.raises(BadMergeConfig, match=r"line 4: the adapter of a\+c is on another model than the base"):
        import_mergekit(write(models, text), registry, out)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (TWO.replace("./a", "./nowhere"), 4, "there is no './nowhere'"),
        (TWO.replace("./a", "a+nowhere"), 4, "there is no 'nowhere'"),
        (TWO.replace("base_model: ./base\n", ""), 1, "task_arithmetic needs a base_model"),
        (TWO.replace("model: b", "model: a/"), 6, "a/ is the model of line 4 again"),
        (TWO.replace("weight: 0.5", "density: 0.5"), 4, "weight of ./a is missing"),
        (TWO.replace("weight: 0.5", "weight: true"), 5, "weight takes a number, not yes"),
        (TWO.replace("weight: 0.5", "weight: [{filter: mlp, value: 1}]"), 5, "is missing for lm_head.weight"),
        (TWO + "parameters: {normalize: 2}\n", 7, "normalize takes yes or no, not 2"),
        (TWO + "tokenizer_source: b\n", 7, "the tokenizer of b is neither"),
        (LINEAR + "  - {model: ./base, parameters: {weight: 1}}\n", 1, "takes at least 1 model beside the base, not 0"),
        (
            TWO.replace("task_arithmetic", "ties").replace("weight: 0.5", "weight: 0.5, density: 1.5"),
            4,
            "density is 1.5",
        ),
        (
            TWO.replace("task_arithmetic", "della").replace("[0, 1]", "1, density: 0.9")
            + "parameters: {epsilon: 0.2}\n",
            6,
            "chances from 0.7 to 1.1 are none",
        ),
        (TWO.replace("task_arithmetic", "ties") + "parameters: {density: 1.5}\n", 1, "density is 1.5"),
        (
            TWO.replace("task_arithmetic", "della") + "parameters: {density: 0.1, epsilon: 0.2}\n",
            1,
            "chances from -0.1 to 0.3 are none",
        ),
        (
            TWO.replace("task_arithmetic", "model_stock") + "parameters: {filter_wise: true}\n",
            7,
            "no equal here unless",
        ),
        (
            TWO.replace("task_arithmetic", "nearswap") + "parameters: {t: 0.1}\n",
            1,
            "takes 1 model beside the base, not 2",
        ),
        (TWO.replace("task_arithmetic", "karcher"), 1, "turns whole models about the origin"),
        (
            TWO.replace("task_arithmetic", "multislerp").replace("base_model: ./base\n", ""),
            1,
            "turns whole models about the origin",
        ),
        (TWO.replace("task_arithmetic", "nuslerp").replace("[0, 1]", "[0.5, 1]"), 5, "no gradient any more"),
    ],
)
def test_what_cannot_be_said_is_refused(
    models: Models, registry: Registry, out: Path, text: str, line: int, reason: str
) -> None:
    with pytest.raises(BadMergeConfig) as caught:
        import_mergekit(write(models, text), registry, out)
    assert f"line {line}: " in caught.value.message and reason in caught.value.message, caught.value.message
    assert not out.exists() and registry.list() == []


def test_options_that_do_not_fit_are_refused(models: Models, registry: Registry, out: Path) -> None:
    file = write(models, TWO)
    with pytest.raises(InvalidArgument, match="has a base_model already"):
        import_mergekit(file, registry, out, base=str(models.path / "c"))
    with pytest.raises(InvalidArgument, match="cannot be the new base"):
        import_mergekit(file, registry, out, new_base=str(models.path / "a"))
    with pytest.raises(BadName):
        import_mergekit(file, registry, out, namespace="No Name")
    ties = write(models, TWO.replace("task_arithmetic", "ties"), "ties.yml")
    with pytest.raises(InvalidArgument, match="--new-base is for task_arithmetic"):
        import_mergekit(ties, registry, out, new_base=str(models.path / "a"))
    assert not out.exists() and registry.list() == []


# --- side files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("", "target"),
        ("tokenizer_source: base\n", "target"),
        ("tokenizer_source: ./base\n", "target"),
        ("tokenizer_source: a\n", "post"),
        ("tokenizer: {source: ./a}\n", "post"),
    ],
)
def test_tokenizer_is_that_of_the_base_or_of_the_first_model(
    models: Models, registry: Registry, out: Path, key: str, expected: str
) -> None:
    import_mergekit(write(models, TWO + key), registry, out)
    assert Recipe.read(out).build.side_files == expected


def test_condition_for_no_tensor_is_left_out_and_told(models: Models, registry: Registry, out: Path) -> None:
    rules: list[Any] = [{"filter": "nowhere", "value": 3}, {"filter": "mlp", "value": 2}, {"value": 1}]
    text = LINEAR + f"  - {{model: a, parameters: {{weight: {json.dumps(rules)}}}}}\n"
    report = import_mergekit(write(models, text), registry, out)
    assert "no tensor has 'nowhere' in its name" in " ".join(report.notes)
    assert (Recipe.read(out).delta[0].weight, Recipe.read(out).delta[0].where) == (1.0, {"*mlp*": 2.0})


def test_two_versions_of_one_repository_get_names_of_their_own(models: Models, registry: Registry, out: Path) -> None:
    """A recipe takes one version of each name."""
    for number, post in enumerate("ab"):
        deltareg.diff(models.path / "base", models.path / post, registry, f"imported/b:1.0.{number}")
    report = import_mergekit(write(models, TWO), registry, out)
    assert [(one.reference, one.status) for one in report.deltas] == [
        ("imported/b:1.0.0", "found"),
        ("imported/b-2:1.0.0", "taken"),
    ]
    assert len({one.digest for one in report.deltas}) == 2 and len(Recipe.read(out).delta) == 2
