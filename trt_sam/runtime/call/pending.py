"""A call that a thread of the runner works on."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Self

from trt_sam.errors import InferenceError
from trt_sam.runtime.call.decoded import Decoded

__all__ = ["Pending"]


class Pending:
    """What `OnnxRunner.submit` gives."""

    def __init__(self, future: Future[Decoded]) -> None:
        self._future = future

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._future.done()

    def result(self, *, copy: bool = False) -> Decoded:
        """Wait; the arrays belong to the caller, whether a `copy` is asked for or not.

        Raises:
            ContractError, InferenceError: as `decode`; or this call was dropped, or the runner closed before it began.
        """
        try:
            return self._future.result()
        except CancelledError:
            raise InferenceError("this call was dropped, or its runner closed, before it began; submit it again") from None

    def drop(self) -> None:
        """Give the result up; a call that has not begun is not made. May be called again."""
        self._future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.drop()
