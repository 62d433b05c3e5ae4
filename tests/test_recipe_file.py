"""Changing a recipe keeps what people wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.errors import BadRecipe, InvalidArgument, NotFound, OutputExists
from deltareg.recipe import RecipeDelta, Setting, parse_recipe
from deltareg.recipe_file import SCENARIOS, RecipeFile, template

WRITTEN = """\
# top
threads = 4 # four

# the build
[build]
base = "b"   # base
parameters = { x = [1,
 2] }

# first
[[delta]]  # one of them
ref = "a/one" # its name
where = { mlp = 0.5 }

# second
[[delta]]
ref = "a/two"
weight = 1
[delta.where]
mlp = 0.4 # low
[delta.parameters]
density = 0.3 # few
[delta.parameters.gamma]
# of all
mlp = 0.1

# remotes
[remotes.a]
url = "/a"
namespaces = [
  "x",
]
"""


def file_of(text: str = WRITTEN) -> RecipeFile:
    return RecipeFile(Path("deltareg.toml"), text)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_delta_comes_behind_the_others_and_nothing_else_changes(end: str) -> None:
    file = file_of(WRITTEN.replace("\n", end))
    assert file.add(RecipeDelta(ref="a/three", version="^1.2", weight=0.5, where={"mlp": [0.1, 0.2]})) is None
    added = '[[delta]]\nref = "a/three"\nversion = "^1.2"\nweight = 0.5\nwhere = {mlp = [0.1, 0.2]}\n\n'
    assert file.text == WRITTEN.replace("# remotes\n", added + "# remotes\n").replace("\n", end)


def test_the_first_delta_comes_behind_the_build() -> None:
    file = file_of('[build]\nbase = "b"\n[build.parameters]\nk = 1\n\n[remotes.a]\nurl = "/a"')
    file.add(RecipeDelta(ref="a/one"))
    assert file.text == (
        '[build]\nbase = "b"\n[build.parameters]\nk = 1\n\n[[delta]]\nref = "a/one"\nweight = 1.0\n\n'
        '[remotes.a]\nurl = "/a"'
    )


def test_a_delta_that_is_there_is_changed_in_its_place() -> None:
    file = file_of()
    before = file.add(RecipeDelta(ref="a/one", version="^2", weight=0.25))
    assert before == RecipeDelta(ref="a/one", where={"mlp": 0.5})
    assert file.text == WRITTEN.replace("where = { mlp = 0.5 }\n", 'version = "^2"\nweight = 0.25\n')
    file = file_of()
    written: dict[str, Setting] = {"density": 0.3, "gamma": {"mlp": 0.1}}
    file.add(RecipeDelta(ref="a/two", where={"mlp": 0.4}, parameters=written))
    assert file.text == WRITTEN


def test_tables_of_a_delta_keep_their_comments() -> None:
    file = file_of()
    changed = RecipeDelta(
        ref="a/two",
        where={"mlp": 0.6, "attention": 0.2},
        parameters={"density": 0.3, "epsilon": 0.1, "gamma": {"mlp": 0.2}},
    )
    file.add(changed)
    assert file.text == WRITTEN.replace("mlp = 0.4 # low\n", "mlp = 0.6 # low\nattention = 0.2\n").replace(
        "# few\n", "# few\nepsilon = 0.1\n\n"
    ).replace("mlp = 0.1\n", "mlp = 0.2\n")


def test_a_delta_goes_with_the_comments_directly_above_it() -> None:
    file = file_of()
    file.remove("a/two")
    start, end = WRITTEN.index("# second"), WRITTEN.index("# remotes")
    assert file.text == WRITTEN[:start] + WRITTEN[end:]
    file.remove("a/one")
    assert file.text == WRITTEN[: WRITTEN.index("# first")] + WRITTEN[end:]
    with pytest.raises(NotFound) as caught:
        file_of().remove("a/tow")
    assert "did you mean a/two?" in caught.value.message


def test_headers_within_texts_and_arrays_are_none() -> None:
    text = '[build]\nbase = """\n[[delta]]\nref"""\nallow-licence = [\n"mit",\n]\n\n[[delta]]\nref = "a/b"\n'
    file = file_of(text)
    file.remove("a/b")
    assert file.text == text[: text.index('\n[[delta]]\nref = "')]


@pytest.mark.parametrize("deltas", ['delta = [{ ref = "a/b" }]\n', 'delta = [ { ref = "a/b" } ] # [[delta]]\n'])
def test_what_cannot_be_changed_safely_is_left_alone(deltas: str) -> None:
    file = file_of(deltas + '[build]\nbase = "b"\n')
    before = file.text
    for change in (
        lambda: file.add(RecipeDelta(ref="a/c")),
        lambda: file.add(RecipeDelta(ref="a/b", weight=0.5)),
        lambda: file.remove("a/b"),
    ):
        with pytest.raises(BadRecipe, match="cannot be changed safely"):
            change()
    assert file.text == before


names = st.sampled_from(["a/one", "a/two", "a/three", "b/four"])
weights = st.floats(-10, 10).map(lambda one: round(one, 3)) | st.lists(st.floats(0, 1), min_size=2, max_size=3)
selectors = st.sampled_from(["mlp", "model.layers.*", 'odd "name"'])
wishes = st.builds(
    lambda ref, version, weight, where, parameters: RecipeDelta(
        ref=ref, version=version, weight=weight, where=where, parameters=parameters
    ),
    names,
    st.sampled_from([None, "^1.2", ">=1, <3"]),
    weights,
    st.dictionaries(selectors, weights, max_size=2),
    st.dictionaries(
        st.sampled_from(["density", "gamma"]),
        weights | st.dictionaries(selectors, weights, min_size=1, max_size=2),
        max_size=2,
    ),
)


@given(st.lists(wishes | names, max_size=6))
def test_any_order_of_changes_says_what_was_meant(changes: list[RecipeDelta | str]) -> None:
    file = file_of()
    wanted = {one.ref: one for one in file.recipe.delta}
    for change in changes:
        if isinstance(change, RecipeDelta):
            file.add(change)
            wanted[change.ref] = change
        elif change in wanted:
            file.remove(change)
            del wanted[change]
    assert parse_recipe(file.text.encode()).delta == list(wanted.values())
    # What is not a delta has not moved by a byte.
    assert file.text.startswith(WRITTEN[: WRITTEN.index("# first")])
    assert file.text.endswith(WRITTEN[WRITTEN.index("# remotes") :])


tails = st.sampled_from(["", "\n", "\n\n\n", "\n# end\n", "\n\n# end", '\n\n# r\n[remotes.a]\nurl = "/a"\n'])
starts = st.sampled_from(
    ["", "\n\n", "# top\n\n", 'home = "h" # \u2028[[delta]]\n', WRITTEN.partition("# the build")[0]]
)
middles = st.sampled_from(
    ["", '\n[[delta]]\nref = "a/one"', '\n\n[[delta]]\nref = "a/one"\n[delta.where]\n# low\nmlp = 0.5']
)


@given(starts, middles, tails, st.sampled_from(["\n", "\r\n"]), wishes.filter(lambda one: one.ref != "a/one"))
def test_taking_out_what_was_added_gives_the_same_bytes(
    start: str, middle: str, tail: str, end: str, delta: RecipeDelta
) -> None:
    text = f'{start}[build]\nbase = "b"{middle}{tail}'.replace("\n", end)
    file = file_of(text)
    file.add(delta)
    assert file.recipe.delta[-1] == delta
    assert file.text.count("\n") == file.text.count(end)
    file.remove(delta.ref)
    assert file.text == text


def test_a_line_end_of_another_kind_stays_where_it_is() -> None:
    text = '[build]\r\nbase = "b"\n# odd\n[remotes.a]\nurl = "/a"\n'
    file = file_of(text)
    file.add(RecipeDelta(ref="a/one"))
    assert file.text == text.replace("# odd", '\n[[delta]]\nref = "a/one"\nweight = 1.0\n# odd')


def test_comments_that_stand_by_themselves_stay() -> None:
    own = '# a part of its own\n\n[remotes.a]\nurl = "/a"\n'
    text = f'[build]\nbase = "b"\n\n[[delta]]\nref = "a/one" # its\n# its too\n\n{own}'
    file = file_of(text)
    file.add(RecipeDelta(ref="a/one", version="^1"))
    assert file.text == text.replace("# its too\n", '# its too\nversion = "^1"\n')
    file.remove("a/one")
    assert file.text == f'[build]\nbase = "b"\n\n{own}'


def test_writing_keeps_the_mode_and_the_link(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_bytes(WRITTEN.replace("\n", "\r\n").encode())
    real.chmod(0o640)
    (tmp_path / "deltareg.toml").symlink_to(real)
    file = RecipeFile.read(tmp_path / "deltareg.toml")
    file.remove("a/one")
    file.write()
    assert (tmp_path / "deltareg.toml").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_bytes().count(b"\r\n") == real.read_bytes().count(b"\n") > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deltareg.toml", "real.toml"]


def test_a_new_recipe_keeps_settings_and_overwrites_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.toml"
    path.write_text("# mine\nthreads = 4\n\n")
    RecipeFile.new(path, template(1)).write()
    assert path.read_text() == "# mine\nthreads = 4\n\n" + template(1)
    with pytest.raises(OutputExists):
        RecipeFile.new(path, template(1))
    for text in ("[[delta]]\n", "zebra = 1\n"):
        path.write_text(text)
        with pytest.raises(OutputExists):
            RecipeFile.new(path, template(1))
    path.write_text("[build\n")
    with pytest.raises(BadRecipe, match="not valid TOML"):
        RecipeFile.new(path, template(1))


def test_what_would_be_too_large_to_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.toml"
    settings = "#" * (1 << 20)
    path.write_text(settings)
    with pytest.raises(BadRecipe, match="larger than"):
        RecipeFile.new(path, template(1))
    assert path.read_text() == settings


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_templates_are_recipes_that_explain_themselves(scenario: int) -> None:
    text = template(scenario)
    recipe = parse_recipe(text.encode())
    assert f"scenario {scenario}" in text and "deltareg check" in text
    assert len(recipe.delta) == (2 if scenario == 4 else 1)
    assert tomllib.loads(text).keys() == {"build", "delta"}
    with pytest.raises(InvalidArgument):
        template(scenario + 4)
