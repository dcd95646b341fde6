"""What a second click on a photo need not compute again: the photo's embedding, and the decoder as a graph. No torch.

Both lie in the user's cache under a key of what they depend on: the bytes of photo and weights, and this package's code.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import trt_sam
from trt_sam._cache import cache_folder
from trt_sam._files import sha256_of, write_atomically
from trt_sam.download import weights_sha256
from trt_sam.errors import InputError, MissingDependencyError
from trt_sam.imaging.embeddings import Embedding, load_embedding, save_embedding

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["ClickCache"]

_MOST = {".npz": 100, ".onnx": 8, ".txt": 100}
"""Files kept of each kind, the newest used: 4 MB an embedding, about 28 MB a graph."""

_log = logging.getLogger(__name__)


class ClickCache:
    """The kept results of one checkpoint; every method leaves the cache as it was where it cannot be read or written."""

    def __init__(self, weights: str) -> None:
        """`weights` is what `weights_sha256` gives for the checkpoint."""
        code = hashlib.sha256()
        for path in sorted(Path(trt_sam.__file__).parent.rglob("*.py")):
            code.update(path.read_bytes())
        self._key = f"{weights} {code.hexdigest()}"
        self.version = code.hexdigest()[:16]
        """Begins the names of the sets of this state of the code."""

    @staticmethod
    def of(checkpoint: str) -> ClickCache | None:
        """The cache for a checkpoint's name or path (a name is downloaded); None where nothing can be kept for it.

        Raises:
            TrtSamError: as `fetch`.
        """
        try:
            cache_folder()
        except MissingDependencyError as error:
            _log.debug("nothing is kept: %s", error)
            return None
        weights = weights_sha256(checkpoint)
        return None if weights is None else ClickCache(weights)

    def embedding(self, photo: Path) -> Embedding | None:
        """The embedding of `photo` by this checkpoint's encoder, if it is kept."""
        path = self._path("embedding", ".npz", photo)
        try:
            embedding = load_embedding(path)
        except InputError as error:
            _log.debug("%s", error)
            return None
        _touch(path)
        return embedding

    def keep_embedding(self, photo: Path, embedding: Embedding) -> None:
        """Keep what the encoder made of `photo`."""
        path = self._path("embedding", ".npz", photo)
        try:
            save_embedding(path, embedding)
        except InputError as error:
            _log.warning("the embedding is not kept: %s", error)
            return
        _keep_newest(path)

    def graph(self) -> Path | None:
        """The decoder as a float32 graph for the CPU, if it is kept and still the file that was written.

        ONNX Runtime runs damaged weights without a word: the file's name holds its SHA-256, and one that differs is removed.
        """
        place = self._path("decoder", "")
        for path in place.parent.glob(f"{place.name}.*.onnx"):
            try:
                if sha256_of(path) == path.name.split(".")[1]:
                    _touch(path)
                    return path
                _log.warning("the decoder's graph in the cache was damaged; it is made again: %s", path)
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.debug("%s", error)
        return None

    def keep_graph(self, checkpoint: Checkpoint) -> bool:
        """Export the decoder (some seconds of torch), checked against PyTorch as every export is; whether it is kept.

        Raises:
            ExportError: it does not match.
            MissingDependencyError: a package of the extra "export" is not installed.
        """
        from trt_sam.graph.export import export_decoder
        from trt_sam.recipe import GraphOptions

        place = self._path("decoder", "")
        path = place.with_name(f".{place.name}.onnx")
        try:
            options = GraphOptions(precision="fp32", target="cpu")
            export_decoder(checkpoint.decoder, path, options, checkpoint_sha256=checkpoint.sha256)
            kept = place.with_name(f"{place.name}.{sha256_of(path)}.onnx")
            os.replace(path, kept)
        except (InputError, OSError) as error:
            said = str(error).partition("; choose another")[0]
            _log.warning("the graph is not kept: %s; name another folder with --cache", said)
            return False
        _keep_newest(kept)
        return True

    def set_folder(self, kind: str) -> Path:
        """Where a set of graphs or engines of this checkpoint is kept, whether it is there or not."""
        return cache_folder() / "sets" / f"{self.version}-{self._path(kind, '').name}"

    def decoder_sha256(self) -> str | None:
        """`Checkpoint.sha256`, if it is kept."""
        try:
            return self._path("decoder", ".txt").read_text(encoding="ascii")
        except (OSError, ValueError):
            return None

    def keep_decoder_sha256(self, sha256: str) -> None:
        """Keep `Checkpoint.sha256`, which is of the weights as they were loaded."""
        path = self._path("decoder", ".txt")
        try:
            write_atomically(path, sha256)
        except InputError as error:
            _log.debug("%s", error)
            return
        _keep_newest(path)

    def _path(self, kind: str, suffix: str, photo: Path | None = None) -> Path:
        key = f"{kind} {self._key} {'' if photo is None else sha256_of(photo)}"
        return cache_folder() / "clicks" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError as error:
        _log.debug("%s: %s", path, error)


def _keep_newest(written: Path) -> None:
    """Remove what was not used for longest, so that the cache does not grow without end."""
    try:
        files = [path for path in written.parent.iterdir() if path.suffix == written.suffix and not path.name.startswith(".")]
        for path in sorted(files, key=lambda p: p.stat().st_mtime_ns)[: -_MOST[written.suffix]]:
            path.unlink(missing_ok=True)
    except OSError as error:  # another process removes files at the same time
        _log.debug("%s", error)
