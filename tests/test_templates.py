"""Templates of recipes are where an installed program finds them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import cast

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from deltareg.recipe import parse_recipe
from deltareg.recipe_file import SCENARIOS

ROOT = Path(__file__).parents[1]
NAMES = [f"scenario-{number}.toml" for number in SCENARIOS]


def test_every_scenario_has_a_template_and_nothing_else_lies_there() -> None:
    found = resources.files("deltareg").joinpath("templates")
    assert sorted(one.name for one in found.iterdir()) == NAMES
    for name in NAMES:
        assert parse_recipe(found.joinpath(name).read_bytes()).delta


@pytest.mark.parametrize("builder", [WheelBuilder, SdistBuilder])
def test_wheel_and_sdist_ship_them(builder: type[WheelBuilder | SdistBuilder]) -> None:
    files = builder(str(ROOT)).recurse_included_files()
    shipped = {cast("str", file.distribution_path) for file in files}
    assert {f"deltareg/templates/{name}" for name in NAMES} <= shipped
