"""What TensorRT says when it refuses a call, for our exception: it answers None or False, and tells the reason elsewhere."""

from __future__ import annotations

import functools
import threading
from typing import Any

from trt_sam.engine.callbacks import in_words

__all__ = ["Complaints", "recorder_of"]

_MOST = 8
"""Errors that are kept, the latest."""
_MOST_CHARACTERS = 500


class Complaints:
    """What was said on each thread: TensorRT reports an error on the thread that called it."""

    def __init__(self) -> None:
        self._local = threading.local()

    def hear(self, message: str) -> None:
        """Remember an error of this thread."""
        heard = self._heard()
        if words := in_words(message):
            heard.append(words)
            del heard[:-_MOST]

    def forget(self) -> None:
        """Before a call: what was said of earlier ones is not its reason."""
        self._heard().clear()

    def after(self, sentence: str) -> str:
        """`sentence` with TensorRT's reason, which is then forgotten; or with where it may be found."""
        heard = list(dict.fromkeys(self._heard()))
        self.forget()
        return f"{sentence}: {'; '.join(heard)[:_MOST_CHARACTERS]}" if heard else f"{sentence}; its log has the reason"

    def _heard(self) -> list[str]:
        found: list[str] | None = getattr(self._local, "heard", None)
        if found is None:
            found = self._local.heard = []
        return found


@functools.cache
def recorder_of(kind: Any) -> tuple[Any, Complaints]:
    """An error recorder of `kind`, the IErrorRecorder of a binding module, for a Runtime and all it makes; and what it hears.

    One for the life of the process, as the logger: TensorRT does not keep it alive.
    """
    complaints = Complaints()

    class Recorder(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            kind.__init__(self)

        def report_error(self, code: Any, description: str) -> bool:
            complaints.hear(description)
            return True

        def num_errors(self) -> int:
            return 0

        def get_error_code(self, index: int) -> int:
            return 0  # never asked, as there are no errors

        def get_error_desc(self, index: int) -> str:
            return ""

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            return None

    return Recorder(), complaints
