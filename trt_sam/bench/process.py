"""The parent's end of a benchmark worker: starts it, asks, and never leaves it behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trt_sam._child import python_running
from trt_sam.errors import InferenceError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Worker"]

_GRACE_S = 20
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


class Worker:
    """One `bench.worker` process. Requests and answers are dictionaries (see there).

    It gets no Ctrl-C of its own: the parent does, and ends it.
    """

    def __init__(self, *, threads: int, scratch: Path) -> None:
        """Start one with `threads` CPU threads; what its libraries write goes below the folder `scratch`."""
        # Compiler caches of its own, PyTorch's and the GPU driver's: the first call shall be a first call.
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "CUDA_CACHE_PATH": str(scratch / "cuda")}
        env = os.environ | {"OMP_NUM_THREADS": str(threads), **caches}
        env["PYTHONPATH"] = os.pathsep.join(p for p in (_PACKAGE_PARENT, env.get("PYTHONPATH", "")) if p)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        self._process = subprocess.Popen(
            python_running("from trt_sam.bench.worker import main\nsys.exit(main())"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            InferenceError: the worker says why it cannot, or has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InferenceError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = InferenceError(answer["error"])
            if "traceback" in answer:
                # What Python 3.11 made `add_note` of; 3.10 keeps it and does not print it.
                error.__notes__ = [answer["traceback"]]  # type: ignore[attr-defined]
            raise error
        return answer

    def close(self, *, now: bool = False) -> None:
        """End the process, with `now` in the middle of a call if need be; safe to call again."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(0 if now else _GRACE_S)
        except subprocess.TimeoutExpired:
            # The whole session: PyTorch's compiler keeps processes of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(now=kind is not None)

    def _obituary(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        last = f": {said[-1].strip()}" if said else ""
        if code == -signal.SIGKILL:
            return "its process was killed, most likely for want of memory; ask for fewer prompts"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}){last}"[:300]
