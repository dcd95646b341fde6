"""A process forked from one that holds a runner: told in one line, hangs nowhere, frees nothing that is its parent's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, make, opened, tokens
from trt_sam.cuda import accounts
from trt_sam.cuda import device as cuda
from trt_sam.errors import TrtSamError

pytestmark = pytest.mark.hostcuda


def in_fork(work: Callable[[], object]) -> object:
    """What `work` gives in a forked process; ten seconds, and it counts as hung."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import signal

            signal.alarm(10)
            os.write(write, pickle.dumps(work()))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, data
    return pickle.loads(data)


def told(call: Callable[[], object]) -> str:
    try:
        call()
    except TrtSamError as error:
        return str(error)
    return "nothing"


def test_a_forked_process_is_told_and_its_parent_goes_on(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        runner.decode(*given)
        late = runner.submit(*given)
        kept = late.result().low_res_masks

        def work() -> object:
            calls = [
                lambda: runner.decode(*given),
                lambda: runner.set_image(toy_embedding(1)),
                runner.warm_up,
                lambda: runner.use_image(1),
                cuda.Device,
                lambda: make(host_cuda),
            ]
            lines = [told(call) for call in calls]
            runner.close()
            host_cuda.reset()
            nonlocal kept
            kept = None  # type: ignore[assignment]
            return lines, runner.closed, host_cuda.called, accounts.outstanding()

        with (
            runner._core.lock,
            runner._images.uploading,
            runner._dispatch.warming,
            accounts._lock,
        ):  # as another thread may hold them
            lines, closed, called, outstanding = in_fork(work)  # type: ignore[misc]
        assert all("start worker processes by spawn" in line for line in lines), lines
        assert closed
        assert (called, outstanding) == ([], {})
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(1), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        del kept
