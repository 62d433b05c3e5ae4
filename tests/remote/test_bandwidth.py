"""The limit of what transfers take of a network."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltareg.digest import sha256
from deltareg.errors import InvalidArgument
from deltareg.remote import Bandwidth, Network, parse_rate
from deltareg.remote.bodies import Download
from deltareg.remote.http import HttpClient
from tests.remote.site import say, serve_site


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


def test_rate_is_kept_over_many_pieces() -> None:
    clock = Clock()
    bandwidth = Bandwidth(1000, clock=clock, sleep=clock.sleep)
    for _ in range(50):
        bandwidth.take(100)
    assert clock.now == pytest.approx(100 + 5 - 0.1, abs=0.11)


def test_pause_does_not_save_up_a_burst() -> None:
    clock = Clock()
    bandwidth = Bandwidth(1000, clock=clock, sleep=clock.sleep)
    clock.now += 3600
    begun = clock.now
    bandwidth.take(1000)
    assert clock.now - begun == pytest.approx(0.9)


def test_no_limit_lets_all_pass() -> None:
    Bandwidth().take(10**15)


def test_threads_and_directions_share_one_limit() -> None:
    data = bytes(60_000)
    network = Network(bandwidth=Bandwidth(400_000))
    with serve_site(lambda asked, before: say(asked, 200, data if asked.method == "GET" else b"")) as site:
        http = HttpClient(site.url, network)

        def move(number: int) -> None:
            if number % 2:
                http.ask("PUT", "x", body=data)
            else:
                assert sum(map(len, http.download(Download("x", len(data), sha256(data))))) == len(data)

        begun = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(move, range(4)))
        assert 0.4 < time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        *(("1000", 1000), ("10MB/s", 10**7), ("500k", 500_000), ("500KB/s", 500_000), ("1.5 MB/s", 1_500_000)),
        *(("2MiB/s", 2 << 20), ("1G", 10**9), ("1KiB", 1024), (" 8B/s ", 8)),
    ],
)
def test_rate_is_read_as_people_write_it(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "0MB/s", "-1", "fast", "1e6", "10 MB/min", "1iB", "0.1", "١MB"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no rate"):
        parse_rate(text)
    with pytest.raises(InvalidArgument):
        Bandwidth(0)
