"""HTTP for downloads: an answer within seconds or none, the settings that pip's users have made, and faults in a few words."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from trt_sam._lazy import require

__all__ = ["ANSWER_SECONDS", "SourceError", "new_session", "opened", "reason_of", "within"]

ANSWER_SECONDS = 5.0
"""How long a source may take to begin its answer."""
_STALL_SECONDS = 20.0
"""How long an answer that has begun may pause."""

_Result = TypeVar("_Result")


class SourceError(Exception):
    """A source that cannot give the file. `answered` says whether something was there at all."""

    def __init__(self, reason: str, *, answered: bool) -> None:
        super().__init__(reason)
        self.answered = answered


def new_session() -> Any:
    """A `requests.Session` that trusts what pip trusts: PIP_CERT or SSL_CERT_FILE (requests' own variables go before them)."""
    session = require("requests", "to download checkpoints").Session()
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if certificates and os.path.exists(certificates):
        session.verify = certificates
    # A server that compresses once more, or decompresses on the way, would change what is counted and read raw.
    session.headers["Accept-Encoding"] = "identity"
    return session


def opened(session: Any, url: str, *, start: int = 0) -> Any:
    """The streamed `requests.Response` of a GET, its body still to be read.

    With `start` above 0 the server is asked for the bytes from there on. One that can answers with status 206, one that cannot
    with 200 and the whole file.

    Raises:
        SourceError: no answer in time, no connection, a status that is no success, another part, or an HTML page.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    response = within(
        ANSWER_SECONDS, lambda: session.get(url, stream=True, timeout=(ANSWER_SECONDS, _STALL_SECONDS), headers=headers)
    )
    asked = start and response.headers.get("content-range", "").startswith(f"bytes {start}-")
    if response.status_code != 200 and not (response.status_code == 206 and asked):
        response.close()
        raise SourceError(f"answered with HTTP status {response.status_code}", answered=True)
    if response.headers.get("content-type", "").lower().startswith("text/html"):
        response.close()
        raise SourceError("answered with an HTML page instead of the file", answered=True)
    return response


def within(seconds: float, call: Callable[[], _Result]) -> _Result:
    """What `call` returns, if it returns in time.

    A thread of its own, because the timeouts of requests count for each address that a name has, and not for finding them.

    Raises:
        SourceError: it took longer, or its own exceptions, in a few words.
    """
    results: list[_Result] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if failures:
        raise reason_of(failures[0]) from failures[0]
    raise SourceError(f"no answer in {seconds:g} s", answered=False)


def reason_of(error: BaseException) -> SourceError:
    """A fault of requests, urllib3 or a socket in a few words, without addresses; anything else is raised as it is."""
    if isinstance(error, SourceError):
        return error
    exceptions = require("requests.exceptions", "to download checkpoints")
    urllib3 = require("urllib3.exceptions", "to download checkpoints")
    if isinstance(error, (exceptions.ConnectTimeout, exceptions.ReadTimeout)):
        return SourceError(f"no answer in {ANSWER_SECONDS:g} s", answered=False)
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return SourceError(f"answered with HTTP status {error.response.status_code}", answered=True)
    if isinstance(error, exceptions.SSLError):
        return SourceError("its certificate is not trusted (REQUESTS_CA_BUNDLE or PIP_CERT names others)", answered=True)
    if isinstance(error, (exceptions.ChunkedEncodingError, urllib3.ProtocolError, urllib3.ReadTimeoutError)):
        return SourceError("the download was cut off", answered=True)
    if isinstance(error, exceptions.ProxyError):
        return SourceError("the proxy gives no connection", answered=False)
    if isinstance(error, (exceptions.ConnectionError, urllib3.HTTPError)):
        return SourceError("no connection", answered=False)
    if isinstance(error, exceptions.RequestException):
        return SourceError(f"its address cannot be used ({type(error).__name__})", answered=False)
    raise error
