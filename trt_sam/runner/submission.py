"""A call under way: wait for it, or ask whether it is done."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from trt_sam.cuda.ranges import marked
from trt_sam.errors import ContractError, InferenceError
from trt_sam.runner.call import Decoded, DecodedOnDevice
from trt_sam.runner.lease import Lease
from trt_sam.runner.plans.plan import Plan
from trt_sam.runner.slot import Slot

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Submission"]

Found = TypeVar("Found", Decoded, DecodedOnDevice)
"""What a call gives: on the host, or left on the device."""
Result = TypeVar("Result")


class Submission(Generic[Found]):
    """What `DecoderRunner.submit` gives; it holds a slot until its result is taken or it is dropped. For one thread."""

    __slots__ = ("_copied", "_give_back", "_lease", "_plan", "_result", "_slot")

    def __init__(self, lease: Lease, plan: Plan, give_back: Callable[[Lease, BaseException | None], None]) -> None:
        self._slot: Slot | None = lease.slot
        self._plan = plan
        self._give_back = give_back
        self._result: Found | None = None
        self._copied = False
        self._lease: Lease | None = lease

    def done(self) -> bool:
        """Whether what was queued has run; returns at once. The best of several masks is fetched by `result`, which waits then.

        Raises:
            InferenceError: the work failed; the message says so if that closed the runner.
        """
        slot = self._slot
        if slot is None:
            return True
        try:
            with slot.lock:
                self._check(slot)
                with slot.device.active():
                    return slot.stream.done()
        except BaseException as error:
            self._end(error)
            raise

    @property
    def device_arrays(self) -> DecodedOnDevice:
        """The results of a call with `masks="device"`, at once: a DLPack consumer's stream waits for them, not the host."""
        if self._plan.call.masks != "device":
            raise InferenceError(f'this call was asked for masks="{self._plan.call.masks}"; ask for "device"')
        return cast(DecodedOnDevice, self._plan.results)

    def result(self, *, copy: bool = False) -> Found:
        """Wait, and give the slot back: the results are valid until its next use, or for good with `copy`.

        Raises:
            ContractError: a copy is asked for after views were.
            InferenceError: the work failed (the message says so if that closed the runner), or the runner was closed.
        """
        if self._slot is None and self._result is not None:
            if copy and not self._copied and self._plan.call.masks != "device":
                raise ContractError("the result was taken as views before; take it with copy=True the first time")
            return self._result

        def read(plan: Plan) -> Found:
            found = plan.finish()
            return cast(Found, found.copy() if copy and isinstance(found, Decoded) else found)

        self._result = self.collect(read)
        self._copied = copy
        return self._result

    def collect(self, read: Callable[[Plan], Result]) -> Result:
        """Wait, give what `read` gives of the plan, and give the slot back; errors as `result`."""
        slot = self._slot
        if slot is None:
            raise InferenceError("this call has failed or was dropped; submit it again")
        try:
            with slot.lock:
                self._check(slot)
                with slot.device.active():
                    with marked("wait"):
                        slot.wait()
                    found = read(self._plan)
            self._end(None)
        except BaseException as error:
            self._end(error)
            raise
        return found

    def drop(self) -> None:
        """Give the slot back without the result. May be called again."""
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.drop()

    def __del__(self) -> None:
        # The next user of the slot waits for what is queued.
        if hasattr(self, "_lease"):
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        lease, self._lease, self._slot = self._lease, None, None
        if lease is not None:
            try:
                if error is not None:
                    self._give_back(lease, error)
            finally:
                lease.give_back()

    @staticmethod
    def _check(slot: Slot) -> None:
        if slot.closed:
            raise InferenceError("the runner was closed while this call was under way; open a new one")
