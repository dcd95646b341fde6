"""`Pool`: workers on a cluster of Ray, as many as it has room for, made anew where they died."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import require
from trt_sam._version import __version__
from trt_sam.cluster.photo import Task
from trt_sam.cluster.plan import Shard
from trt_sam.cluster.shard import Done
from trt_sam.cluster.worker import Worker
from trt_sam.errors import InputError, TrtSamError, first_line

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Pool", "WorkerDiedError", "check_reachable", "connected"]

_REACH_SECONDS = 5.0
_POLL_SECONDS = 1.0
_STILLBORN = 8

_log = logging.getLogger(__name__)


class WorkerDiedError(Exception):
    """A worker ended while it did a shard."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to the cluster at `address` ("auto": of this machine; empty: one that is started for this) in the block.

    Raises:
        InputError: it cannot be reached.
        MissingDependencyError: ray is not installed.
    """
    ray = require("ray", "to work on a cluster")
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except Exception as error:  # ray has ConnectionError, RuntimeError, ValueError and others for it
        raise InputError(
            f"no cluster of Ray at {address or 'this machine'} ({first_line(error)}); start one with ray start --head, or "
            "leave the address out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


class Pool:
    """The workers; a context manager that ends them."""

    def __init__(self, files: Mapping[str, bytes], *, gpu: bool) -> None:
        """Have workers of the set with these `files`, each with a GPU or a core of its own."""
        self._ray = require("ray", "to work on a cluster")
        self._resource = "GPU" if gpu else "CPU"
        options = {"num_gpus": 1, "num_cpus": 1} if gpu else {"num_cpus": 1}
        # A worker is never restarted by Ray: where its machine has gone there may be no room, and its shard would wait for it.
        self._class = self._ray.remote(Worker).options(**options, max_restarts=0, max_task_retries=0)
        self._files = self._ray.put(dict(files))
        self._starting: dict[Any, Any] = {}
        """Workers by the call that they answer first."""
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Shard]] = {}
        self._stillborn = 0
        """Workers that died while they opened the set, one after the other."""
        self.seen: set[str] = set()
        """Names of the machines that workers ran on."""

    def fill(self, shards: int) -> None:
        """Start workers until there are as many as the cluster has room for, or as there are shards."""
        room = int(self._ray.cluster_resources().get(self._resource, 0))
        if not room and not self._busy and not self._starting and not self._idle:
            raise InputError(f"the cluster has no {self._resource}; add machines, or give a set for what it has")
        for _ in range(min(room, shards) - len(self._starting) - len(self._idle) - len(self._busy)):
            worker = self._class.remote()
            self._starting[worker.open.remote(self._files, __version__)] = worker

    def idle(self) -> Any | None:
        """A worker that has nothing to do; None where there is none."""
        return self._idle.pop() if self._idle else None

    def give(self, worker: Any, shard: Shard, photos: str, task: Task) -> None:
        """Have it do a shard."""
        self._busy[worker.do.remote(photos, shard, task)] = (worker, shard)

    def done(self) -> list[tuple[Shard, Done | WorkerDiedError]]:
        """Shards that were done since, with what came out; waits a moment for one.

        Raises:
            TrtSamError: a worker could not be started or a file not be written, which others will not do better.
        """
        calls = [*self._busy, *self._starting]
        if not calls:
            time.sleep(_POLL_SECONDS)
            return []
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=_POLL_SECONDS)
        found: list[tuple[Shard, Done | WorkerDiedError]] = []
        for call in ready:
            if call in self._starting:
                worker = self._starting.pop(call)
                try:
                    self.seen.add(self._result(call))
                    self._idle.append(worker)
                    self._stillborn = 0
                except WorkerDiedError as died:
                    self._stillborn += 1
                    if self._stillborn >= _STILLBORN:
                        raise InputError(f"{_STILLBORN} workers died before their first photo ({died})") from None
                continue
            worker, shard = self._busy.pop(call)
            try:
                found.append((shard, self._result(call)))
                self._idle.append(worker)
            except WorkerDiedError as died:
                found.append((shard, died))
        return found

    def close(self) -> None:
        """End all workers; safe to call again."""
        for worker in [*self._starting.values(), *self._idle, *(worker for worker, _ in self._busy.values())]:
            with contextlib.suppress(Exception):
                self._ray.kill(worker)
        self._starting, self._idle, self._busy = {}, [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _result(self, call: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(call)
        except exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, TrtSamError) else error) from None
        except exceptions.RayError as error:
            raise WorkerDiedError(first_line(error)) from None


def check_reachable(address: str) -> None:
    """Raise InputError where nothing answers at `address`: Ray itself tries for a long time, and says much.

    Raises:
        MissingDependencyError: ray is not installed.
    """
    require("ray", "to work on a cluster")
    if address in ("", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--ray is {address!r}, must be HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"nothing answers at {address} ({reason}); is the cluster up? ray start --head prints its address"
        ) from None
