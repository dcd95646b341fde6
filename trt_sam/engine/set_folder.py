"""The folder of a set: written so that a kill at any moment leaves nothing that a runner accepts.

Everything is made in a hidden folder inside the output. Only when it is whole is the old manifest removed, are the files moved
in, and is the new manifest written: between these steps the folder has no manifest, so it is no set. A build that fails leaves
an older set as it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trt_sam.contract import PREPARED_NAME
from trt_sam.engine.manifest import CACHE_SUFFIX, MANIFEST_NAME, Manifest, open_manifest, write_manifest
from trt_sam.errors import BuildError, InputError, ManifestError

_log = logging.getLogger(__name__)

__all__ = ["ENCODER_NAMES", "ENGINE_NAMES", "GRAPH_NAMES", "PREPARED_NAMES", "publish", "staging", "writing"]

GRAPH_NAMES = ("decoder.onnx", "decoder_mask.onnx")
ENGINE_NAMES = ("decoder.engine", "decoder_mask.engine")
"""Of the first graph and of the second."""
_STAGING = ".trt-sam-build-"
_MORE_FILES = ".trt-sam-two-graphs"
"""Lists, one a line, what builds wrote into the folder, while more than a decoder may lie there without a manifest."""
ENCODER_NAMES = ("encoder.onnx", "encoder.engine")
PREPARED_NAMES = ("prepare.onnx", PREPARED_NAME)
"""Of the decoder in two graphs."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make `folder`, hold it against other builds, and turn what goes wrong in it into one line."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _exclusive(folder):
                yield
        except BaseException:
            if new:
                with contextlib.suppress(OSError):  # not empty: somebody else uses it
                    folder.rmdir()
            raise
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from error


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; two builds into one folder are then the user's to avoid.
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another build is writing into {folder}; wait for it, or choose another --output") from None
        # The lock is ours, so whatever temporary is left belongs to a build that was killed.
        for left in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in folder.glob(f".{MANIFEST_NAME}.*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`, gone at the end of the block."""
    stage = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, folder: Path, manifest: Manifest) -> None:
    """Move the files of `stage` into `folder` and make `manifest` its own; what an older set had besides is removed."""
    names = sorted(path.name for path in stage.iterdir())
    for name in names:
        with (stage / name).open("rb") as file:
            os.fsync(file.fileno())
    marker = folder / _MORE_FILES
    # Only what a build wrote may be removed: decoder_mask.onnx of a set with one graph is the user's own.
    ours = _written_here(folder) | set(names)
    if not ours <= {GRAPH_NAMES[0], ENGINE_NAMES[0]}:
        marker.write_text("\n".join(sorted(ours)), encoding="utf-8")
        _sync_folder(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    # The removal must reach the disk before the files change, or a power cut could leave the old manifest beside new files.
    _sync_folder(folder)
    for name in names:
        os.replace(stage / name, folder / name)
    for left in ours.difference(names):
        (folder / left).unlink(missing_ok=True)
        (folder / f"{left}{CACHE_SUFFIX}").unlink(missing_ok=True)
    _sync_folder(folder)
    write_manifest(manifest)
    _log.debug("%s holds %s", folder, ", ".join(names))
    marker.unlink(missing_ok=True)
    _sync_folder(folder)


def _written_here(folder: Path) -> set[str]:
    """The files of the set in `folder`, and of one that was not finished, as far as they can be known."""
    written: set[str] = set()
    with contextlib.suppress(ManifestError):
        written |= {file.name for graph in open_manifest(folder, verify=False).graphs for file in graph.files}
    with contextlib.suppress(FileNotFoundError):
        # Before 0.1 it was empty, and stood for the second graph.
        listed = (folder / _MORE_FILES).read_text(encoding="utf-8").split("\n")
        written |= {Path(name).name for name in listed if name} or {GRAPH_NAMES[1], ENGINE_NAMES[1]}
    return written


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
