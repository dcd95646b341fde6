"""What a request is refused with: a status, a code for programs, a line for people."""

from __future__ import annotations

from trt_sam.errors import TrtSamError

__all__ = ["ClientGoneError", "Refusal", "bad_prompt", "busy", "image_unknown"]


class Refusal(TrtSamError):  # noqa: N818 - it is no error of the service
    """A request that is not answered; the client is told why, in JSON."""

    def __init__(self, status: int, code: str, message: str, *, retry_seconds: int | None = None, allow: str = "") -> None:
        """Refuse with an HTTP `status` of 400 or more; `retry_seconds` is when to come again, `allow` the methods to use."""
        super().__init__(message)
        self.status, self.code, self.retry_seconds, self.allow = status, code, retry_seconds, allow


class ClientGoneError(Exception):
    """The client has closed the connection, so nobody waits for the answer."""


def bad_prompt(message: str) -> Refusal:
    """Points, labels, boxes or another part of a request that cannot be used."""
    return Refusal(400, "bad_prompt", message)


def image_unknown() -> Refusal:
    """The image is not held, or was never."""
    return Refusal(404, "image_unknown", "no such image, or it has expired; send the picture again to POST /images")


def busy(what: str, seconds: float) -> Refusal:
    """The queue is full; come again in about `seconds`."""
    return Refusal(429, "busy", f"too many {what} are waiting; try again later", retry_seconds=max(1, round(seconds + 0.5)))
