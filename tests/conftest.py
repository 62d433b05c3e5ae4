"""The checkpoints that every test may ask for."""

from __future__ import annotations

import os
import signal

# Before torch and the BLAS of numpy are loaded: these take a thread for each core, and spin while they wait for work.
# Beside other workers of pytest, tests on tiny tensors took three times as long. Tests of threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from selenium.webdriver import Remote

from tests import weights
from tests.servers.chromium import browse
from tests.servers.docker_registry import DockerRegistry, serve_docker_registry
from tests.servers.object_store import Bucket, ObjectStore, Proxy, serve_objects, serve_proxy
from tests.servers.postgresql import PostgreSQL, serve_postgresql


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: begun last, one would keep a worker busy when the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def signals_end_processes() -> None:
    """What a shell has told a background job to ignore, the programs that tests start would ignore too."""
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


@pytest.fixture(scope="session")
def minilm() -> weights.Pair:
    """The real MiniLM and its fine-tune, fp32, 91 MB each. Read only."""
    return weights.minilm()


@pytest.fixture(scope="session")
def minilm_bf16() -> weights.Pair:
    """The same in bfloat16, 45 MB each. Read only."""
    return weights.minilm_bf16()


@pytest.fixture(scope="session")
def anarcii() -> Mapping[str, Path]:
    """The real protein models by name, fp32, 4 MB each. Read only."""
    return weights.anarcii()


@pytest.fixture(scope="session")
def anarcii_bf16() -> Mapping[str, Path]:
    """The same in bfloat16, 2 MB each. Read only."""
    return weights.anarcii(bf16=True)


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> weights.Pair:
    """A generated bf16 pair of about 10 MB each, in three shards. Read only."""
    return weights.Pair(*weights.synthetic(tmp_path_factory.mktemp("small-llama"), 0.01, seed=1, shards=3))


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """A real S3 server on loopback."""
    with serve_objects() as running:
        yield running


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, which the environment says how to reach."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    with object_store.bucket() as made:
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the environment now names as the store of `bucket`: requests are counted, and may be refused."""
    with serve_proxy(bucket.server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL on loopback."""
    with serve_postgresql() as running:
        yield running


@pytest.fixture
def database(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of an empty database in it."""
    with postgresql.database() as url:
        yield url


@pytest.fixture(scope="session")
def docker_registry() -> Iterator[DockerRegistry]:
    """A real OCI registry on loopback, which deletes what it is told to and asks nobody who they are."""
    with serve_docker_registry() as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Remote]:
    """A real browser. What pages keep in it stays from test to test."""
    with browse() as running:
        yield running
