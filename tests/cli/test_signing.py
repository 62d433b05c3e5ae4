"""`sign`, `verify --signed-by`, and policies: what a user sees of signatures, and what is refused without them."""

from __future__ import annotations

import io
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from deltareg.catalog import Registry
from deltareg.names import parse_reference
from deltareg.signing import KeySigner
from tests import keys
from tests.cli.program import Pair, Workplace
from tests.keys import certified, make_key

DELTA = "acme/search:1.0.0"


@pytest.fixture
def signed(stocked: Workplace) -> Workplace:
    """A user whose acme/search:1.0.0 is signed by acme.pem, and a remote `team` that has both."""
    (stocked.root / "shared").mkdir()
    stocked.ok("remote", "add", "team", stocked.root / "shared", "--default")
    stocked.ok("sign", "--generate-key", stocked.directory / "acme")
    make_key(stocked.directory, "other")
    stocked.ok("sign", DELTA, "--key", "acme.pem")
    stocked.ok("push", DELTA)
    return stocked


def require(place: Workplace, *people: str, namespace: str = "acme") -> None:
    """Add a policy to the project's settings."""
    path = place.directory / "deltareg.toml"
    with path.open("a") as file:
        file.write(f'\n[policies."{namespace}"]\nsigned-by = {json.dumps(list(people))}\n')


def forget(place: Workplace) -> None:
    """Let the local registry be empty again."""
    shutil.rmtree(place.home)


def recipe(place: Workplace, pair: Pair) -> None:
    text = f'[build]\nname = "acme/mix"\nbase = "{pair.base}"\n\n[[delta]]\nref = "acme/search"\nweight = 0.5\n'
    path = place.directory / "deltareg.toml"
    path.write_text(path.read_text() + "\n" + text if path.exists() else text)


def settings(place: Workplace) -> None:
    """The remote, in the project's own settings."""
    (place.directory / "deltareg.toml").write_text(f'remotes.team.url = "{place.root / "shared"}"\nremote = "team"\n')


# --- sign, verify, show ---


def test_generated_key_signs_and_is_told(signed: Workplace) -> None:
    assert stat.S_IMODE((signed.directory / "acme.pem").stat().st_mode) == 0o600
    found = signed.ok("verify", DELTA, "--signed-by", "acme.pub.pem")
    assert "acme.pub.pem" in found.out
    document = signed.ok("verify", DELTA, "--signed-by", "acme.pub.pem", "--json").document("verify")
    assert [row["trusted"] for row in document["signatures"]] == ["acme.pub.pem"]
    shown = signed.ok("show", DELTA)
    assert "not checked" in shown.out
    assert signed.ok("show", DELTA, "--json").document("show")["signatures"][0]["kind"] == "key"


def test_remote_is_asked_for_signatures_alone(signed: Workplace) -> None:
    forget(signed)
    document = signed.ok(
        "verify", DELTA, "--signed-by", "other.pub.pem", "--signed-by", "acme.pub.pem", "--remote", "team", "--json"
    ).document("signature")
    assert document["signatures"][0]["trusted"] == "acme.pub.pem"
    assert not signed.home.exists()
    assert signed.run("verify", DELTA, "--remote", "team").codes == ["DR0100"]
    text = signed.ok("verify", DELTA, "--signed-by", "acme.pub.pem", "--remote", "team").out
    assert "acme.pub.pem" in text


def test_sign_at_a_remote_sends_the_signature(signed: Workplace) -> None:
    document = signed.ok("sign", DELTA, "--key", "other.pem", "--remote", "team", "--json").document("sign")
    assert document["remote"].startswith("file://")
    signed.ok("verify", DELTA, "--signed-by", "other.pub.pem", "--remote", "team")


@pytest.mark.parametrize(("sign_with", "code"), [(None, "DR0409"), ("other.pem", "DR0410")])
def test_who_did_not_sign_is_told(stocked: Workplace, sign_with: str | None, code: str) -> None:
    for name in ("acme", "other"):
        make_key(stocked.directory, name)
    if sign_with:
        stocked.ok("sign", DELTA, "--key", sign_with)
    done = stocked.run("verify", DELTA, "--signed-by", "acme.pub.pem")
    assert (done.status, done.codes) == (5, [code])
    document = json.loads(stocked.run("verify", DELTA, "--signed-by", "acme.pub.pem", "--json").out)
    assert document["error"]["code"] == code


def test_malformed_signature_is_told_by_show_and_verify(stocked: Workplace) -> None:
    pair = make_key(stocked.directory, "acme")
    keys.sign(Registry(stocked.home).store, DELTA, pair.private, lambda bundle: bundle[:40])
    assert "malformed" in stocked.ok("show", DELTA).out
    done = stocked.run("verify", DELTA, "--signed-by", "acme.pub.pem")
    assert (done.status, done.codes) == (5, ["DR0411"])


def test_password_comes_from_stdin_or_the_variable(stocked: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(stocked.directory, "acme", password=b"a secret")
    assert stocked.run("sign", DELTA, "--key", "acme.pem").codes == ["DR0101"]
    stocked.ok("sign", DELTA, "--key", "acme.pem", DELTAREG_PASSWORD="a secret")
    assert stocked.run("sign", DELTA, "--key", "acme.pem", DELTAREG_PASSWORD="wrong").codes == ["DR0101"]

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a secret\n")))
    stocked.ok("sign", DELTA, "--key", "acme.pem", "--password-stdin")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert stocked.run("sign", DELTA, "--key", "acme.pem", "--password-stdin").codes == ["DR0101"]


def test_certificate_signs(stocked: Workplace) -> None:
    party = certified(stocked.directory, "acme")
    stocked.ok("sign", DELTA, "--key", party.key, "--certificate", party.certificate)
    stocked.ok("verify", DELTA, "--signed-by", party.root)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sign"],
        ["sign", DELTA],
        ["sign", DELTA, "--sigstore", "--key", "acme.pem"],
        ["sign", DELTA, "--key", "acme.pem", "--chain", "root.pem"],
        ["sign", DELTA, "--key", "acme.pem", "--certificate", "c.pem", "--password-stdin"],
        ["sign", DELTA, "--generate-key", "new"],
        ["verify", DELTA, "--signed-by", "a.pem", "--remote", "x/", "--base", "b", "--post", "p"],
    ],
)
def test_what_does_not_go_together_is_wrong_usage(stocked: Workplace, arguments: list[str]) -> None:
    assert stocked.run(*arguments).codes == ["DR0100"]


def test_dry_runs_write_nothing(stocked: Workplace) -> None:
    document = stocked.ok("sign", "--generate-key", "acme", "--dry-run", "--json").document("key")
    assert (document["public"], document["fingerprint"]) == ("acme.pub.pem", None)
    assert list(stocked.directory.iterdir()) == []
    make_key(stocked.directory, "acme")
    assert stocked.ok("sign", DELTA, "--key", "acme.pem", "--dry-run", "--json").document("sign")["signature"] is None
    assert "signatures" not in stocked.ok("show", DELTA).out


def test_without_the_library_its_command_is_told(stocked: Workplace) -> None:
    make_key(stocked.directory, "acme")
    program = (
        "import sys\n"
        "sys.modules['model_signing'] = None; sys.modules['cryptography'] = None\n"
        "from deltareg.cli import main\n"
        "sys.argv[1:] = {!r}\n"
        "sys.exit(main())\n"
    )
    for arguments in (
        ["sign", DELTA, "--key", "acme.pem"],
        ["sign", "--generate-key", "new"],
        ["verify", DELTA, "--signed-by", "acme.pub.pem"],
    ):
        done = stocked.python(program.format(arguments))
        assert done.codes == ["DR0101"], done.err
        assert "pip install 'deltareg[sign]'" in done.err
    assert stocked.python(program.format(["show", DELTA])).status == 0


# --- policies ---


def test_pull_refuses_what_the_policy_does_before_a_pack_comes(signed: Workplace) -> None:
    require(signed, "other.pub.pem")
    forget(signed)
    done = signed.run("pull", DELTA)
    assert (done.status, done.codes) == (5, ["DR0410"])
    assert "deltareg.toml" in done.err
    assert not list((signed.home / "registry" / "blobs" / "sha256").iterdir())
    (signed.directory / "deltareg.toml").unlink()
    require(signed, "other.pub.pem", "acme.pub.pem")
    signed.ok("pull", DELTA)
    signed.ok("verify", DELTA, "--signed-by", "acme.pub.pem")


def test_policy_is_for_its_namespace_alone_and_a_name_wins(signed: Workplace) -> None:
    require(signed, "other.pub.pem", namespace="someone")
    require(signed, "other.pub.pem")
    require(signed, "acme.pub.pem", namespace="acme/search")
    forget(signed)
    signed.ok("pull", DELTA)


def test_apply_refuses_what_is_not_signed(signed: Workplace, pair: Pair) -> None:
    require(signed, "other.pub.pem")
    done = signed.run("apply", pair.base, DELTA, "-o", "out")
    assert (done.status, done.codes) == (5, ["DR0410"])
    assert not (signed.directory / "out").exists()
    signed.ok("sign", DELTA, "--key", "other.pem")
    signed.ok("apply", pair.base, DELTA, "-o", "out")


def test_lock_and_build_refuse_what_is_not_signed(signed: Workplace, pair: Pair) -> None:
    settings(signed)
    require(signed, "other.pub.pem")
    recipe(signed, pair)
    forget(signed)
    for arguments in (["lock"], ["build", "-o", "out"]):
        done = signed.run(*arguments)
        assert (done.status, done.codes) == (5, ["DR0410"]), done.err
    assert not (signed.directory / "deltareg.lock").exists()
    assert not (signed.directory / "out").exists()


def test_locked_build_asks_who_signed_too(signed: Workplace, pair: Pair) -> None:
    """What a lock was made from is not trusted for it: the policy may be newer than the lock."""
    settings(signed)
    recipe(signed, pair)
    forget(signed)
    signed.ok("lock")
    text = (signed.directory / "deltareg.toml").read_text()
    require(signed, "other.pub.pem")
    done = signed.run("build", "--locked", "-o", "out")
    assert (done.status, done.codes) == (5, ["DR0410"]), done.err
    (signed.directory / "deltareg.toml").write_text(text)
    require(signed, "acme.pub.pem")
    signed.ok("build", "--locked", "-o", "out")
    shutil.rmtree(signed.directory / "out")
    signed.ok("build", "--locked", "--offline", "-o", "out")


def test_build_brings_the_signature_of_what_is_here_already(signed: Workplace, pair: Pair) -> None:
    settings(signed)
    recipe(signed, pair)
    require(signed, "other.pub.pem")
    registry = Registry(signed.home)
    aside = signed.root / "aside"
    shutil.copytree(signed.home, aside)
    signed.ok("sign", DELTA, "--key", "other.pem", "--remote", "team")
    shutil.rmtree(registry.home)
    shutil.copytree(aside, registry.home)
    assert signed.run("apply", pair.base, DELTA, "-o", "out").codes == ["DR0410"]
    assert signed.run("build", "--offline", "-o", "out").codes == ["DR0410"]
    signed.ok("build", "-o", "out")
    signed.ok("verify", DELTA, "--signed-by", "other.pub.pem")


def test_policy_counts_for_what_a_stacked_delta_requires(signed: Workplace, pair: Pair) -> None:
    """other/top is taken on top of acme/search: acme's policy is asked for too, though nobody named acme's delta."""
    settings(signed)
    signed.ok("diff", pair.post, pair.base, "--tag", "other/top:1.0.0", "--on", DELTA)
    signed.ok("push", "other/top:1.0.0")
    text = f'[build]\nname = "acme/mix"\nbase = "{pair.base}"\n\n[[delta]]\nref = "other/top"\nweight = 1.0\n'
    path = signed.directory / "deltareg.toml"
    before = path.read_text()
    path.write_text(before + text)
    require(signed, "other.pub.pem")
    done = signed.run("lock")
    assert (done.status, done.codes) == (5, ["DR0410"]), done.err
    assert DELTA in done.err
    path.write_text(before + text)
    require(signed, "acme.pub.pem")
    signed.ok("lock")


def test_projects_policy_wins_over_the_users(signed: Workplace, pair: Pair) -> None:
    user = signed.user_file
    with user.open("a") as file:
        file.write(f'\n[policies.acme]\nsigned-by = ["{signed.directory / "other.pub.pem"}"]\n')
    assert signed.run("apply", pair.base, DELTA, "-o", "out").codes == ["DR0410"]
    require(signed, "acme.pub.pem")
    signed.ok("apply", pair.base, DELTA, "-o", "out")


def test_paths_of_a_policy_count_from_its_file(signed: Workplace, pair: Pair) -> None:
    (signed.directory / "keys").mkdir()
    (signed.directory / "acme.pub.pem").rename(signed.directory / "keys" / "acme.pem")
    require(signed, "keys/acme.pem")
    inner = signed.directory / "deep"
    inner.mkdir()
    registry = Registry(signed.home)
    from deltareg.config import load_settings

    loaded = load_settings(inner, {})
    assert loaded.policies.rules["acme"].signed_by == (str(signed.directory / "keys" / "acme.pem"),)
    reference = parse_reference(DELTA)
    registry.policies = loaded.policies
    assert registry.check_signed(reference)[0].trusted == str(signed.directory / "keys" / "acme.pem")


def test_lost_key_of_a_policy_refuses_everything(signed: Workplace, pair: Pair) -> None:
    require(signed, "gone.pem")
    done = signed.run("apply", pair.base, DELTA, "-o", "out")
    assert done.codes == ["DR0101"]
    assert "gone.pem" in done.err


@pytest.mark.parametrize(
    "text",
    [
        "[policies.acme]\n",
        "[policies.acme]\nsigned-by = []\n",
        '[policies.acme]\nsigned-by = "key.pem"\n',
        "[policies.acme]\nsigned-by = [1]\n",
        '[policies.acme]\nsigned-by = [""]\n',
        '[policies.acme]\nsigned-by = ["k.pem"]\nsinged = 1\n',
        '[policies.ACME]\nsigned-by = ["k.pem"]\n',
        'policies = "acme"\n',
        '[policies]\nacme = "k.pem"\n',
    ],
)
def test_policy_that_is_none_is_refused_whole(stocked: Workplace, text: str) -> None:
    (stocked.directory / "deltareg.toml").write_text(text)
    assert stocked.run("list").codes == ["DR0103"]


def test_half_written_signature_is_no_signature(signed: Workplace) -> None:
    """A bundle whose blob was cut short at the remote: told, and the delta refused where a policy asks for it."""
    store = Registry(signed.home).store
    digest = store.resolve(parse_reference(DELTA))
    manifest: dict[str, Any] = json.loads(store.read(store.referrers("acme/search", digest)[0].digest))  # type: ignore[arg-type]
    blob = Path(signed.root / "shared" / "blobs" / "sha256" / manifest["layers"][0]["digest"][7:])
    blob.write_bytes(blob.read_bytes()[:100])
    require(signed, "acme.pub.pem")
    forget(signed)
    done = signed.run("pull", DELTA)
    assert (done.status, done.codes) == (5, ["DR0411"])


def test_signers_are_those_of_the_library(signed: Workplace) -> None:
    """The same from Python: a registry with policies is what refuses."""
    from deltareg.signing import Policies, Policy

    policy = Policy("acme", (str(signed.directory / "other.pub.pem"),), signed.directory / "deltareg.toml")
    registry = Registry(signed.home, policies=Policies({"acme": policy}))
    from deltareg.errors import SignatureUntrusted
    from deltareg.signatures import sign

    with pytest.raises(SignatureUntrusted):
        registry.check_signed(DELTA)
    sign(registry, DELTA, KeySigner(signed.directory / "other.pem"))
    assert [row.trusted for row in registry.check_signed(DELTA)] == [str(signed.directory / "other.pub.pem")]


def test_digest_means_the_bytes_whichever_version_was_signed(signed: Workplace, pair: Pair) -> None:
    registry = Registry(signed.home)
    digest = registry.resolve(DELTA)
    registry.store.publish(parse_reference("acme/search:2.0.0"), registry.store.read(digest))
    require(signed, "acme.pub.pem")
    assert signed.run("apply", pair.base, "acme/search:2.0.0", "-o", "out").codes == ["DR0411"]
    signed.ok("apply", pair.base, f"acme/search@{digest}", "-o", "out")
    signed.ok("verify", f"acme/search@{digest}", "--signed-by", "acme.pub.pem")
