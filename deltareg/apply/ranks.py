"""Several processes that work on one output: who they are, what each of them does, and how they hear of one another."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Protocol

from deltareg.apply.plan import Plan
from deltareg.closing import Closing
from deltareg.errors import DeltaregError, InvalidArgument, RankLost

__all__ = ["ALONE", "Ranks", "TorchRanks", "largest_share", "one_of_several", "ranks_of", "share"]

# A rank may have to wait for the slowest: what is lost is noticed by its connection, not by the clock.
_PATIENCE = timedelta(days=7)


class Ranks(Protocol):
    """The processes of a job. All of them make the same calls in the same order."""

    @property
    def number(self) -> int:
        """The number of this one."""
        ...

    @property
    def local(self) -> int:
        """Its number among those on the same machine."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def each(self, value: Any) -> Iterator[Any]:
        """The values of all, in the order of their numbers, one at a time. Waits for those that are not there yet.

        Raises RankLost where one of them failed, or does not answer any more.
        """
        ...

    def fail(self, error: BaseException) -> None:
        """Tell the others that this one gives up; no call is made after it."""
        ...

    def leave(self) -> None:
        """Say nothing any more, not even of a failure: the others are at work and would hear of it when they are done.

        Who started the ranks ends the others when this one has ended.
        """
        ...

    def close(self) -> None:
        """Part from the others."""
        ...


class _Alone:
    """One process."""

    number = 0
    local = 0
    count = 1

    def each(self, value: Any) -> Iterator[Any]:
        """The value."""
        yield value

    def fail(self, error: BaseException) -> None:
        """Nobody is there to hear it."""

    def leave(self) -> None:
        """Nobody is there."""

    def close(self) -> None:
        """Nobody is there."""


ALONE: Ranks = _Alone()
"""For a process that is the only one."""


class TorchRanks(Closing):
    """The processes that `torchrun` has started, which hear of one another through torch.distributed (gloo)."""

    def __init__(self) -> None:
        """Meet the others, as the environment says. Raises InvalidArgument where torch is missing, RankLost."""
        try:
            import torch.distributed as distributed
        except ImportError as error:
            raise InvalidArgument(
                "several processes need torch, which is not installed", hint="pip install torch"
            ) from error
        self._distributed: Any = distributed
        self._failed = False
        with _Translated():
            # What is exchanged are paths and counts, from this machine's memory: gloo, whatever the device.
            self._distributed.init_process_group("gloo", timeout=_PATIENCE)
        self.number = int(self._distributed.get_rank())
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        self.count = int(self._distributed.get_world_size())

    def each(self, value: Any) -> Iterator[Any]:
        """The values of all: see `Ranks`."""
        if self._failed:
            raise RankLost("this rank has failed already")
        yield from self._each((None, value))

    def fail(self, error: BaseException) -> None:
        """Tell the others: they raise RankLost where they hear of it."""
        if self._failed:
            return
        message = error.message if isinstance(error, DeltaregError) else f"{type(error).__name__}: {error}"
        try:
            for _ in self._each((message, None)):
                pass
        except DeltaregError:
            return  # they have failed too, or are gone

    def leave(self) -> None:
        """Say nothing any more: see `Ranks`."""
        self._failed = True

    def close(self) -> None:
        """Part from the others."""
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()

    def _each(self, told: tuple[str | None, Any]) -> Iterator[Any]:
        # One after another, so that no rank holds what all of them have to tell.
        for rank in range(self.count):
            box = [told if rank == self.number else None]
            with _Translated():
                self._distributed.broadcast_object_list(box, src=rank)
            message, value = box[0] or (None, None)
            if message is not None:
                self._failed = True
                raise RankLost(
                    f"rank {rank} of {self.count} failed: {message}",
                    hint="mend what it says and run the same command again; with --resume it goes on where it was",
                    rank=rank,
                )
            yield value


class _Translated:
    """Turns what torch.distributed raises into RankLost."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, DeltaregError):
            raise RankLost(
                "another rank does not answer any more",
                cause=str(error).splitlines()[0][:300],
                hint="look at what torchrun says of it, then run the same command again with --resume",
            ) from error


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """The ranks that torchrun has started, or this process alone."""
    return TorchRanks() if one_of_several(environment) else ALONE


def one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process, and others beside it."""
    return "TORCHELASTIC_RUN_ID" in environment and environment.get("WORLD_SIZE", "1") != "1"


def share(plan: Plan, count: int) -> list[frozenset[str]]:
    """The tensors that each of `count` ranks writes: whole files where there are enough of them, by bytes.

    A file that one rank alone writes needs no file system on which several machines can write to one.
    """
    files = [[name for name, _, _ in shard.tensors] for shard in plan.shards]
    units = files if len(files) >= count else [[name] for names in files for name in names]
    sized = [(sum(plan.tensors[name].nbytes for name in unit), unit) for unit in units]
    # The largest first, each to whoever has least: at most a third more than the best there is (Graham, "Bounds on
    # multiprocessing timing anomalies", 1969).
    loads = [(0, rank) for rank in range(count)]
    found: list[set[str]] = [set() for _ in range(count)]
    for size, unit in sorted(sized, key=lambda one: (-one[0], one[1])):
        load, rank = heapq.heappop(loads)
        found[rank].update(unit)
        heapq.heappush(loads, (load + size, rank))
    return [frozenset(names) for names in found]


def largest_share(plan: Plan, count: int) -> float:
    """Which part of the bytes that are computed, not copied, the busiest of `count` ranks has."""
    computed = {tensor.name: tensor.nbytes for tensor in plan.tensors.values() if tensor.action != "copy"}
    busiest = max(sum(computed.get(name, 0) for name in names) for names in share(plan, count))
    return busiest / max(1, sum(computed.values()))
