"""The adapter that a delta is, as others find it who know no deltas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import deltareg
from deltareg import Registry
from deltareg.checkpoint import Hub
from deltareg.lora import stored_adapter
from deltareg.names import parse_reference
from deltareg.remote.hub import HubRemote
from deltareg.transfer import push
from tests.lora.models import adapted, changed, load_file, peft, tokens, torch, transformers
from tests.servers.hub_server import WRITER, HubServer, serve_hub

NAME = "acme/lora:1.0.0"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve_hub() as running:
        yield running


def test_pushed_adapter_is_loaded_by_peft_from_the_hub(tmp_path: Path, server: HubServer) -> None:
    one = adapted(tmp_path, "llama", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, NAME)
    remote = HubRemote("hf://acme", Hub(endpoint=server.url, token=WRITER))
    push(registry, NAME, remote, beside=lambda name, folder: stored_adapter(name, registry, folder))
    model = server.models["acme/lora"]
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "adapter_config.json").write_bytes(model.files["adapter_config.json"])
    weights = model.files["adapter_model.safetensors"].decode().split("sha256:")[1].split()[0]
    (beside / "adapter_model.safetensors").write_bytes(model.large[weights])
    base = transformers.AutoModelForCausalLM.from_pretrained(one.base).eval()
    with torch.no_grad():
        expected = one.model(tokens()).logits
        assert not torch.allclose(base(tokens()).logits, expected, atol=1e-3)
        found = peft.PeftModel.from_pretrained(base, beside).eval()(tokens()).logits
    assert torch.allclose(found, expected, atol=2e-6)


def test_factors_come_out_as_they_came_in(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj"])
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, NAME)
    (tmp_path / "folder").mkdir()
    files = stored_adapter(parse_reference(NAME), registry, tmp_path / "folder")
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]
    before, after = load_file(one.adapter / "adapter_model.safetensors"), load_file(files["adapter_model.safetensors"])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_full_fine_tune_is_no_adapter(tmp_path: Path) -> None:
    changed(tmp_path, "llama")
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME)
    assert stored_adapter(parse_reference(NAME), registry, tmp_path) == {}


def test_unchanged_checkpoint_is_no_adapter(tmp_path: Path) -> None:
    changed(tmp_path, "llama")
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "base", registry, NAME)
    assert stored_adapter(parse_reference(NAME), registry, tmp_path) == {}
