"""Ctrl-C at every place of a call where CPython looks for it: all slots are there afterwards, and results are right."""

from __future__ import annotations

import contextlib
import dis
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

import trt_sam
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, opened, tokens
from trt_sam._lazy import require
from trt_sam.cuda import device
from trt_sam.runner.decoder_runner import DecoderRunner

pytestmark = pytest.mark.hostcuda

_FOLDER = trt_sam.__path__[0]
_LOOKED_AFTER = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"}
"""Instructions after which CPython runs signal handlers (`CHECK_EVAL_BREAKER` in ceval.c)."""
_TOOL = 4
"""Of `sys.monitoring`, a number that no other tool has."""


def in_destructor(frame: FrameType | None) -> bool:
    """What is raised there Python only prints."""
    while frame is not None and frame.f_code.co_filename.startswith(_FOLDER):
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class Interrupt:
    """Raises KeyboardInterrupt at the `at`-th place in our files, on this thread; `seen` places there were."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0
        self.where = ""
        self._last: dict[int, str] = {}
        """The instruction that each frame (its id) had before."""
        self._names: dict[Any, dict[int, str]] = {}
        self._thread = 0

    def __enter__(self) -> Interrupt:
        self._thread = threading.get_ident()
        if sys.version_info >= (3, 12):  # 3.13.0 traces no instruction of a function that was traced before
            watch = sys.monitoring
            watch.use_tool_id(_TOOL, "interrupts")
            watch.register_callback(_TOOL, watch.events.INSTRUCTION, self._instruction)
            watch.set_events(_TOOL, watch.events.INSTRUCTION)
        else:
            sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(_TOOL, 0)
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, None)
            sys.monitoring.free_tool_id(_TOOL)
        else:
            sys.settrace(None)

    def _instruction(self, code: Any, offset: int) -> Any:
        if not code.co_filename.startswith(_FOLDER):
            return sys.monitoring.DISABLE
        frame = sys._getframe(1)
        if threading.get_ident() == self._thread and not in_destructor(frame):
            self._opcode(frame, offset)
        return None

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_FOLDER) or in_destructor(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self._opcode(frame, frame.f_lasti)
        elif event == "return":
            self._last.pop(id(frame), None)
        return self._trace

    def _opcode(self, frame: FrameType, offset: int) -> None:
        code = frame.f_code
        if code not in self._names:
            self._names[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
        name = self._names[code].get(offset, "")
        # Before RESUME a frame is not under way; what was known by its id is of one that has gone.
        if name != "RESUME" and self._last.get(id(frame), "RESUME") in _LOOKED_AFTER:
            self.seen += 1
            if self.seen == self.at:
                self.where = f"{code.co_filename}:{frame.f_lineno} {code.co_name}"
                self._last.clear()
                raise KeyboardInterrupt
        self._last[id(frame)] = name


@pytest.fixture(autouse=True)
def _leave_the_context(host_cuda: HostCuda) -> Iterator[None]:
    """An interrupt may leave its thread in the GPU's context, which works as well; tests that come later shall not be in it."""
    yield
    while host_cuda.count("context_depth"):
        require("pycuda.driver", "for the test").Context.pop()
    device._entered.device = None


USES: dict[str, Callable[[DecoderRunner], object]] = {
    "decode": lambda runner: runner.decode(*clicks(1, 1, 1)),
    "another bucket": lambda runner: runner.decode(*clicks(2, 2, 2), masks="all"),
    "run": lambda runner: runner.run(tokens(toy_embedding(5), *clicks(1, 1, 1))),
    "add_image": lambda runner: runner.add_image(toy_embedding(5)),
    "warm_up": lambda runner: runner.warm_up([(2, 2)]),
}


def interrupted(runner: DecoderRunner, use: Callable[[DecoderRunner], object], at: int) -> str:
    """Where the `at`-th place is, if there is one; after the interrupt there all slots are free, and give what they should."""
    given = clicks(1, 1, 1)
    interrupt = Interrupt(at)
    with contextlib.suppress(KeyboardInterrupt), interrupt:
        use(runner)
    wanted = expected(PLAIN, tokens(toy_embedding(2), *given))
    try:
        runner.set_image(toy_embedding(2))
        calls = [runner.submit(*given, timeout=0, masks="all") for _ in range(2)]
        for call in calls:
            np.testing.assert_array_equal(call.result().low_res_masks, wanted["low_res_masks"])
    except Exception as error:
        raise AssertionError(f"after an interrupt in {interrupt.where}, place {at}") from error
    return interrupt.where


@pytest.mark.parametrize("name", USES)
def test_an_interrupt_loses_no_slot_and_spoils_no_result(host_cuda: HostCuda, name: str) -> None:
    with opened(host_cuda, in_flight=2) as (runner, _):
        runner.set_image(toy_embedding(2))
        for _ in range(2):
            USES[name](runner)
        at = 1
        while interrupted(runner, USES[name], at):
            at += 1
    assert at > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_an_interrupt_of_what_is_done_once_leaves_nothing(host_cuda: HostCuda, name: str) -> None:
    at, where = 1, "?"
    while where:
        with opened(host_cuda, in_flight=2) as (runner, _):
            runner.set_image(toy_embedding(2))
            where = interrupted(runner, USES[name], at)
        if host_cuda.held:
            gc.collect()
        assert not host_cuda.held, (at, where)
        at += 1
    assert at > 50
