"""Tiny real models, what mergekit makes of them, and what deltareg makes of the imported recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import deltareg
from deltareg import Registry
from deltareg.build.settings import parameter_schedules, weight_schedule
from deltareg.mergekit import MergekitReport, import_mergekit
from deltareg.recipe import Recipe

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("mergekit", reason="needs the extra `oracle`")
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.merge import MergeOptions, run_merge  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

__all__ = ["POSTS", "Imported", "Models", "load", "make_models", "save_file", "torch"]

POSTS = ("a", "b", "c")
Tensors = Mapping[str, Any]


def load(directory: Path) -> dict[str, Any]:
    """The tensors of a checkpoint."""
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def _llama(layers: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    )
    return transformers.LlamaForCausalLM(config)


def _gpt2(layers: int) -> Any:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=layers, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


_MAKERS: Mapping[str, Callable[[int], Any]] = {"llama": _llama, "gpt2": _gpt2}


def make_models(path: Path, dtype: str, *, kind: str = "llama", layers: int = 4, size: float = 0.5) -> Models:
    """A `base` and fine-tunes of it in `path`: `size` is that of their changes against the weights."""
    torch.manual_seed(11)
    model = _MAKERS[kind](layers).to(getattr(torch, dtype))
    model.save_pretrained(path / "base")
    before = load(path / "base")
    for name in POSTS:
        model.config.save_pretrained(path / name)
        changed = {key: _changed(tensor, size) for key, tensor in before.items()}
        save_file(changed, path / name / "model.safetensors", metadata={"format": "pt"})
    return Models(path, dtype)


def _changed(tensor: Any, size: float) -> Any:
    wide = tensor.float()
    noise = torch.randn(wide.shape) * size * wide.std(unbiased=False).clamp(min=0.02)
    return (wide + noise * (torch.rand(wide.shape) < 0.8)).to(tensor.dtype)


@dataclass(frozen=True)
class Models:
    """Models in one directory."""

    path: Path
    dtype: str

    def config(self, method: str, models: Mapping[str, Any] | list[str], **keys: Any) -> dict[str, Any]:
        """A configuration with these models, each with its parameters, and further keys; `base` is the base_model."""
        given = models if isinstance(models, dict) else dict.fromkeys(models)
        listed = [
            {"model": str(self.path / name), **({} if parameters is None else {"parameters": parameters})}
            for name, parameters in given.items()
        ]
        base = {} if keys.pop("no_base", False) else {"base_model": str(self.path / "base")}
        return {"merge_method": method, "models": listed, **base, "dtype": "float32", **keys}

    def theirs(
        self, config: Mapping[str, Any], out: Path, around: AbstractContextManager[Any] | None = None
    ) -> Tensors:
        """What mergekit makes of a configuration."""
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        with around or nullcontext():
            run_merge(MergeConfiguration.model_validate(config), str(out), options)
        return load(out)

    def imported(self, config: Mapping[str, Any], place: Path, **options: Any) -> Imported:
        """The recipe of a configuration, and its deltas in a registry beside it."""
        place.mkdir(parents=True, exist_ok=True)
        file = place / "merge.yml"
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        registry = Registry(place / "home")
        report = import_mergekit(file, registry, place / "deltareg.toml", threads=1, **options)
        return Imported(place, registry, report)

    def both(
        self,
        config: Mapping[str, Any],
        place: Path,
        around: Callable[[Imported], AbstractContextManager[Any]] | None = None,
        **options: Any,
    ) -> tuple[Tensors, Tensors, Imported]:
        """What the recipe gives, what mergekit gives, and the recipe."""
        done = self.imported(config, place, **options)
        return done.apply(), self.theirs(config, place / "theirs", None if around is None else around(done)), done


@dataclass(frozen=True)
class Imported:
    """An imported configuration."""

    place: Path
    registry: Registry
    report: MergekitReport

    @property
    def recipe(self) -> Recipe:
        """The recipe that was written."""
        return Recipe.read(self.place / "deltareg.toml")

    def apply(self) -> Tensors:
        """What the recipe gives."""
        recipe = self.recipe
        out = self.place / "ours"
        deltas = [
            (
                f"{one.ref}:{one.version}",
                weight_schedule(one.weight, one.where),
                parameter_schedules(recipe.build.method, one.parameters),
            )
            for one in recipe.delta
        ]
        deltareg.apply(
            str((self.place / recipe.build.base).resolve()),
            deltas,
            self.registry,
            out,
            method=recipe.build.method,
            parameters=parameter_schedules(recipe.build.method, recipe.build.parameters),
            seed=recipe.build.seed,
            side_files=recipe.build.side_files,
            dtype=recipe.build.dtype,
            threads=1,
        )
        return load(out)
