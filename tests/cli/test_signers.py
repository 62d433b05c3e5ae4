"""`deltareg signers`, and what a server's policy does to pull, lock, build and apply; and what a lock keeps of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltareg.catalog import Registry
from deltareg.lock import Lock, lock_bytes, read_lock
from deltareg.names import parse_reference
from deltareg.remote import Network, open_remote
from deltareg.transfer import push
from tests import keys
from tests.cli.program import Pair, Workplace
from tests.keys import KeyPair, certified, make_key
from tests.servers.deltareg_server import RunningServer, empty, running_server

DELTA = "acme/search:1.0.0"


@pytest.fixture
def acme(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path, "acme")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("signers") / "server") as started:
        yield started


@pytest.fixture
def served(stocked: Workplace, pair: Pair, server: RunningServer) -> tuple[Workplace, RunningServer]:
    """A user with a recipe, whose only remote is a server that has acme/search:1.0.0, unsigned, and nothing else."""
    empty(server)
    stocked.environment["DELTAREG_TOKEN"] = server.token
    stocked.environment["DELTAREG_REMOTE"] = server.url
    push(Registry(stocked.home), DELTA, open_remote(server.url, Network.of(stocked.environment, [server.url])))
    text = f'[build]\nname = "acme/mix"\nbase = "{pair.base}"\n\n[[delta]]\nref = "acme/search"\nweight = 0.5\n'
    (stocked.directory / "deltareg.toml").write_text(text + f'\n[remotes.team]\nurl = "{server.url}"\n')
    stocked.environment["DELTAREG_REMOTE"] = "team"
    return stocked, server


def ask_for(server: RunningServer, *people: KeyPair) -> None:
    texts = [one.public.read_text() for one in people]
    with server.client() as http:
        http.patch("/api/v1/namespaces/acme", json={"policy": {"signedBy": texts}}).raise_for_status()


def forget_all(place: Workplace) -> None:
    """Let the home be new."""
    shutil.rmtree(place.home)


def lock_in(place: Workplace) -> Lock:
    return read_lock(place.directory / "deltareg.lock")


def rewrite(place: Workplace, **changed: Any) -> None:
    """Change what the lock says of its signature, and seal it anew, as who may write to the project can."""
    lock = lock_in(place)
    (delta,) = lock.deltas
    signature = delta.signatures[0].model_copy(update=changed)
    delta = delta.model_copy(update={"signatures": [signature]})
    (place.directory / "deltareg.lock").write_bytes(lock_bytes(lock.model_copy(update={"deltas": [delta]})))


def test_pull_lock_build_and_apply_refuse_what_the_server_wants_signed(
    served: tuple[Workplace, RunningServer], pair: Pair, acme: KeyPair
) -> None:
    place, server = served
    ask_for(server, acme)
    for arguments in (["pull", DELTA], ["lock"], ["build", "-o", "out"]):
        forget_all(place)
        done = place.run(*arguments)
        assert (done.status, done.codes) == (5, ["DR0409"]), done.err
        assert f"the policy for acme that {server.url} told on" in done.err
    assert not (place.directory / "deltareg.lock").exists()
    assert not (place.directory / "out").exists()


def test_signed_delta_is_pulled_locked_built_and_applied(
    served: tuple[Workplace, RunningServer], pair: Pair, acme: KeyPair
) -> None:
    place, server = served
    ask_for(server, acme)
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    forget_all(place)
    place.ok("lock")
    place.ok("build", "--locked", "-o", "out")
    place.ok("apply", pair.base, DELTA, "-o", "applied")
    (signature,) = lock_in(place).deltas[0].signatures
    assert (signature.kind, signature.key) == ("key", acme.public.read_text())
    # Applying asks nobody, and knows all the same.
    registry = Registry(place.home)
    for one in registry.store.referrers("acme/search", registry.resolve(DELTA)):
        registry.store.path(keys.Digest(one.digest)).unlink()
    assert place.run("apply", pair.base, DELTA, "-o", "more").codes == ["DR0411"]


def test_locked_build_from_a_warm_store_needs_no_server(
    stocked: Workplace, pair: Pair, acme: KeyPair, served: tuple[Workplace, RunningServer]
) -> None:
    place, server = served
    ask_for(server, acme)
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    forget_all(place)
    place.ok("lock")
    place.ok("build", "--locked", "-o", "out")
    text = (place.directory / "deltareg.toml").read_text()
    # A port where nobody answers.
    (place.directory / "deltareg.toml").write_text(text.replace(server.url, "http://127.0.0.1:9"))
    place.ok("build", "--locked", "-o", "again")
    (place.home / "signers.json").unlink()
    place.ok("build", "--locked", "-o", "by-the-lock-alone")
    rewrite(place, key=make_key(place.root, "other").public.read_text())
    done = place.run("build", "--locked", "-o", "wrong")
    assert done.codes == ["DR0411"], done.err
    assert "the key in the lock is another one" in done.err


@pytest.mark.parametrize(
    ("changed", "code", "why"),
    [
        ({"digest": "sha256:" + "0" * 64}, "DR0409", "is gone"),
        ({"signer": "key " + "0" * 64}, "DR0411", "it is by key"),
        ({"kind": "certificate"}, "DR0411", "not by a certificate"),
        ({"key": "no key"}, "DR0101", "no public key"),
    ],
    ids=["gone", "signer", "kind", "key"],
)
def test_lock_that_says_something_else_of_who_signed_is_refused(
    served: tuple[Workplace, RunningServer], acme: KeyPair, changed: dict[str, str], code: str, why: str
) -> None:
    place, server = served
    ask_for(server, acme)
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    place.ok("lock")
    rewrite(place, **changed)
    done = place.run("build", "--locked", "-o", "out")
    assert done.codes == [code], done.err
    assert why in done.err
    assert not (place.directory / "out").exists()


def test_build_fetches_the_signature_that_the_lock_has(served: tuple[Workplace, RunningServer], acme: KeyPair) -> None:
    """The delta was here before it was signed."""
    place, server = served
    aside = place.root / "aside"
    shutil.copytree(place.home, aside)
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    ask_for(server, acme)
    place.ok("lock")
    shutil.rmtree(place.home)
    shutil.copytree(aside, place.home)
    done = place.run("build", "--locked", "--offline", "-o", "out")
    assert done.codes == ["DR0409"], done.err
    place.ok("build", "--locked", "-o", "out")
    place.ok("build", "--locked", "--offline", "-o", "again")


def test_lock_without_signatures_stays_valid_and_learns_of_them_later(
    served: tuple[Workplace, RunningServer], acme: KeyPair
) -> None:
    place, server = served
    place.ok("lock")
    place.ok("build", "--locked", "-o", "out")
    assert lock_in(place).deltas[0].signatures == []
    output = lock_in(place).output
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    ask_for(server, acme)
    place.ok("lock", "--check")
    place.ok("build", "--locked", "-o", "again")
    done = place.ok("lock", "--json").document("locking")
    assert done["changed"]
    assert len(lock_in(place).deltas[0].signatures) == 1
    # What was built is what would be built.
    assert lock_in(place).output == output is not None
    assert not place.ok("lock", "--json").document("locking")["changed"]
    place.ok("lock", "--check")


def test_who_has_no_policy_takes_no_signature_out_of_a_lock(
    served: tuple[Workplace, RunningServer], acme: KeyPair
) -> None:
    place, server = served
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    ask_for(server, acme)
    place.ok("lock")
    before = (place.directory / "deltareg.lock").read_bytes()
    ask_for(server)
    forget_all(place)
    place.ok("lock")
    place.ok("lock", "--check")
    assert (place.directory / "deltareg.lock").read_bytes() == before


def test_certificate_in_a_lock_is_known_by_its_signature(served: tuple[Workplace, RunningServer], pair: Pair) -> None:
    place, _ = served
    party = certified(place.root, "ann")
    file = place.directory / "deltareg.toml"
    plain = file.read_text()
    file.write_text(plain + f'\n[policies.acme]\nsigned-by = ["{party.root}"]\n')
    place.ok("sign", DELTA, "--key", party.key, "--certificate", party.certificate, "--remote", "team")
    place.ok("lock")
    (signature,) = lock_in(place).deltas[0].signatures
    assert (signature.kind, signature.key) == ("certificate", None)
    assert "CN=ann" in signature.signer
    file.write_text(plain)
    place.ok("build", "--locked", "--offline", "-o", "out")
    rewrite(place, signer="CN=bob")
    assert place.run("build", "--locked", "--offline", "-o", "more").codes == ["DR0411"]


def test_signature_in_a_lock_for_other_bytes_is_refused(served: tuple[Workplace, RunningServer], acme: KeyPair) -> None:
    place, server = served
    ask_for(server, acme)
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    place.ok("lock")
    registry = Registry(place.home)
    reference = parse_reference("acme/search:2.0.0")
    bundle = keys.bundle_of(reference, registry.store.read(registry.resolve(DELTA)), keys.KeySigner(acme.private))
    other = keys.attach_bundle(registry.store, parse_reference(DELTA), registry.resolve(DELTA), bundle)
    rewrite(place, digest=other)
    done = place.run("build", "--locked", "-o", "out")
    assert done.codes == ["DR0411"], done.err
    assert "it signs acme/search:2.0.0" in done.err


# --- the command ---


def test_signers_are_listed_accepted_and_forgotten(served: tuple[Workplace, RunningServer], acme: KeyPair) -> None:
    place, server = served
    assert "no server has named anybody" in place.ok("signers", "list").err
    other = make_key(place.root, "other")
    ask_for(server, acme)
    place.ok("sign", DELTA, "--key", acme.private, "--remote", "team")
    place.ok("pull", DELTA)
    listed = place.ok("signers", "list", "--json").document("signers")
    (pin,) = listed["signers"]
    assert (pin["namespace"], pin["server"], pin["keys"][0]["pem"]) == ("acme", server.url, acme.public.read_text())
    assert pin["keys"][0]["fingerprint"] in place.ok("signers", "list").out
    ask_for(server, other)
    done = place.run("pull", DELTA)
    assert (done.status, done.codes) == (5, ["DR0413"]), done.err
    assert f"deltareg signers accept acme --remote {server.url}" in done.err
    before = (place.home / "signers.json").read_bytes()
    shown = place.ok("signers", "accept", "acme", "--remote", "team", "--dry-run", "--json").document("signers")
    assert (shown["change"], shown["dryRun"]) == ("accepted", True)
    assert (place.home / "signers.json").read_bytes() == before
    place.ok("signers", "accept", "acme", "--remote", server.url)
    assert place.run("pull", DELTA).codes == ["DR0410"]
    place.ok("sign", DELTA, "--key", other.private, "--remote", "team")
    place.ok("pull", DELTA)
    gone = place.ok("signers", "forget", "acme", "--json").document("signers")
    assert gone["change"] == "forgotten"
    assert place.ok("signers", "list", "--json").document("signers")["signers"] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["accept", "acme"], "DR0002"),
        (["accept", "acme/search"], "DR0102"),
        (["forget", "acme"], "DR0002"),
        (["forget", "acme:1"], "DR0102"),
        (["accept", "nobody"], "DR0002"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_accepted_or_forgotten_is_told(
    served: tuple[Workplace, RunningServer], arguments: list[str], code: str
) -> None:
    place, _ = served
    done = place.run("signers", *arguments)
    assert done.codes == [code], done.err
    assert "hint: " in done.err


def test_without_the_library_a_server_that_wants_signatures_is_told_what_to_install(
    served: tuple[Workplace, RunningServer], acme: KeyPair
) -> None:
    place, server = served
    ask_for(server, acme)
    program = (
        "import sys\n"
        "sys.modules['model_signing'] = None; sys.modules['cryptography'] = None\n"
        "from deltareg.cli import main\n"
        f"sys.exit(main(['pull', {DELTA!r}]))\n"
    )
    done = place.python(program)
    assert done.codes == ["DR0101"], done.err
    assert "deltareg[sign]" in done.err
    assert json.loads(place.ok("signers", "list", "--json").out)["signers"] == []
