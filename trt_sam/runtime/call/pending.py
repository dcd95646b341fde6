"""A call, or a photo, that a thread of the runner works on."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trt_sam.errors import InferenceError
from trt_sam.runtime.call.decoded import Decoded

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Pending", "PendingImage", "image_of"]


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


class PendingImage:
    """What `OnnxRunner.submit_image` gives."""

    def __init__(self, number: int, image: Any) -> None:
        """Of image `number`; `image` is it, or its future."""
        self.number = number
        """Of the image, for `use_image` and `image=`; at once."""
        self._image = image

    def done(self) -> bool:
        """Whether the image is there; returns at once."""
        return not isinstance(self._image, Future) or self._image.done()

    def result(self) -> int:
        """Wait until the image is there; gives its number.

        Raises:
            InferenceError: the image encoder failed, or the runner was closed before it began.
        """
        image_of(self._image)
        return self.number


def image_of(image: Any) -> Any:
    """The image itself, of which a thread may still be making the embedding; raises InferenceError where that failed."""
    if not isinstance(image, Future):
        return image
    try:
        return image.result()
    except CancelledError:
        raise InferenceError("the runner was closed before this image was embedded; open a new one") from None
