"""The decoder and the embedding for one click: from the cache where they are kept, else from the checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.commands._click_cache import ClickCache
from trt_sam.commands._encoder_set import write_decoder_set
from trt_sam.commands._kept_sets import hold, hold_whole
from trt_sam.errors import GraphError, InputError, TrtSamError
from trt_sam.imaging.embeddings import Embedding, load_embedding
from trt_sam.imaging.origin import check_origin
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.runtime.interface import Runner

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint
    from trt_sam.runtime.onnx_runner import OnnxRunner

Embed = Callable[[Path | None, npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""The embedding float32 [1, 256, 64, 64] of a photo, by its file and its pixels; of a part of one, which has no file."""

__all__ = ["OpenedDecoder", "OpenedForPhotos", "keep_for_the_next", "open_decoder", "open_for_photos"]

_log = logging.getLogger(__name__)

_MANY_PROMPTS = 256
"""As many are worth the half minute in which the graphs are written: they took 17 ms for each where PyTorch took 85."""


@dataclass(frozen=True)
class OpenedDecoder:
    """What a click needs."""

    runner: Runner = field(repr=False)
    embedding: npt.NDArray[np.float32] = field(repr=False)
    """float32 [1, 256, 64, 64]."""
    executed: str
    """Words for what executes."""
    from_cache: tuple[str, ...]
    """Of "embedding" and "graph"."""
    embed: Embed = field(repr=False)
    """Embeds parts of the photo; raises InputError where there is no image encoder."""
    keep_graph: Callable[[], None] = field(repr=False)
    """Puts the decoder's graph into the cache, if it is to be there and is not; raises TrtSamError where that fails."""


@contextlib.contextmanager
def open_decoder(args: argparse.Namespace, image: npt.NDArray[np.uint8], *, num_prompts: int = 1) -> Iterator[OpenedDecoder]:
    """Open what `--checkpoint`, `--onnx`, `--set` and `--embedding` name, for the photo `args.image`, its pixels `image`.

    For many prompts a checkpoint's graphs are written into the cache first, where they are not there.

    Raises:
        TrtSamError: one of them cannot be used, or they do not belong together.
    """
    embedding = None if args.embedding is None else _read_embedding(args, image)
    if args.set is not None:
        with _open_set(args.set) as of_set:
            executed = f"ONNX Runtime ({of_set.options.precision} graph, CPU)"
            if embedding is not None:
                _check_origin(args.embedding, embedding, of_set.checkpoint_sha256, lambda: of_set.encoder_sha256)
            whole = of_set.embed(image) if embedding is None else embedding.image_embeddings
            yield OpenedDecoder(of_set, whole, executed, (), lambda _, part: of_set.embed(part), lambda: None)
        return
    source = _Source(args)
    runner, executed = source.runner(many=num_prompts >= _MANY_PROMPTS)
    try:
        if embedding is not None:
            _check_origin(args.embedding, embedding, source.decoder_sha256(runner), source.encoder_sha256)
        whole = source.embed(args.image, image) if embedding is None else embedding.image_embeddings
        yield OpenedDecoder(runner, whole, executed, tuple(source.from_cache), source.embed, source.keep_graph)
    finally:
        runner.close()


@dataclass(frozen=True)
class OpenedForPhotos:
    """What many photos need."""

    runner: Runner = field(repr=False)
    embed: Embed = field(repr=False)


@contextlib.contextmanager
def open_for_photos(args: argparse.Namespace, *, num_prompts: int) -> Iterator[OpenedForPhotos]:
    """Open what `--checkpoint` and `--onnx`, or `--set`, name, once for all photos; as `open_decoder`.

    Raises:
        TrtSamError: one of them cannot be used, or they do not belong together.
    """
    if args.set is not None:
        with _open_set(args.set) as of_set:
            yield OpenedForPhotos(of_set, lambda _, image: of_set.embed(image))
        return
    source = _Source(args)
    runner, _ = source.runner(many=num_prompts >= _MANY_PROMPTS)
    with runner:
        yield OpenedForPhotos(runner, source.embed)


def keep_for_the_next(decoder: OpenedDecoder) -> None:
    """Export the decoder into the cache where PyTorch ran it; the masks are written, so a failure is a warning."""
    try:
        decoder.keep_graph()
    except TrtSamError as error:
        _log.warning("the next call will load the checkpoint again: %s", " ".join(str(error).split()))


def _open_set(folder: Path) -> OnnxRunner:
    from trt_sam.runtime.onnx_runner import OnnxRunner
    from trt_sam.runtime.set_graphs import check_is_set

    check_is_set(folder)
    return OnnxRunner(folder)


class _Source:
    """Loads the checkpoint when something is not in the cache, and only once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._cache = None if args.checkpoint is None or args.no_cache else ClickCache.of(args.checkpoint)
        self._checkpoint: Checkpoint | None = None
        self._in_torch = False
        self.from_cache: list[str] = []

    def runner(self, *, many: bool) -> tuple[Runner, str]:
        """What decodes, and words for it; for `many` prompts the graphs are made first where they are not kept."""
        from trt_sam.runtime.onnx_runner import OnnxRunner

        if self._args.onnx is not None:
            runner = OnnxRunner(self._args.onnx)
            self._check_graph(runner)
            return runner, f"ONNX Runtime ({runner.options.precision} graph, CPU)"
        kept = None if self._cache is None or importlib.util.find_spec("onnxruntime") is None else self._cache.graph()
        if many and self._cache is not None and (found := self._kept_set(self._cache.set_folder("decoder"))) is not None:
            return found, "ONNX Runtime (fp32 graph, CPU)"
        if kept is not None:
            try:
                runner = OnnxRunner(kept)
            except GraphError as error:
                _log.debug("%s", error)
                kept.unlink(missing_ok=True)
            else:
                self.from_cache.append("graph")
                return runner, "ONNX Runtime (fp32 graph, CPU)"
        from trt_sam.runtime.torch_runner import TorchRunner

        self._in_torch = True
        return TorchRunner(self._load().decoder), "PyTorch (float32, CPU)"

    def decoder_sha256(self, runner: Runner) -> str:
        """Hash of the weights of the decoder that runs; "" where a graph does not say it and there is no checkpoint."""
        said = str(getattr(runner, "checkpoint_sha256", ""))
        return said if said or self._args.checkpoint is None else self._load().sha256

    def encoder_sha256(self) -> str:
        """Hash of the checkpoint's image encoder; "" where there is neither."""
        return "" if self._args.checkpoint is None else self._load().encoder_sha256

    def embed(self, photo: Path | None, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if photo is None:
            return self._load().image_encoder().embed(image)
        kept = None if self._cache is None else self._cache.embedding(photo)
        height, width, _ = image.shape
        if kept is not None and kept.original_size == (height, width):
            self.from_cache.insert(0, "embedding")
            return kept.image_embeddings
        encoder = self._load().image_encoder()
        _log.info("embedding %s (%d x %d) by %s's image encoder", photo, width, height, self._args.checkpoint)
        started = time.perf_counter()
        embedding = encoder.embed(image)
        _log.info("embedded in %.1f s", time.perf_counter() - started)
        if self._cache is not None:
            self._cache.keep_embedding(photo, Embedding(embedding, (height, width), photo.name, encoder.sha256))
        return embedding

    def _kept_set(self, folder: Path) -> OnnxRunner | None:
        """The decoder's graphs for many prompts from the cache, made where they are not there; None where that cannot be."""
        from trt_sam.runtime.onnx_runner import OnnxRunner

        if not _can_export():
            return None
        try:
            if hold_whole(folder):
                runner = OnnxRunner(folder)
                self.from_cache.append("graph")
                return runner
            started = time.perf_counter()
            _log.info("writing the decoder's graphs into the cache, once per checkpoint, as PyTorch is several times slower")
            write_decoder_set(
                self._load(),
                EngineRecipe(checkpoint=self._args.checkpoint, graph=GraphOptions(precision="fp32", target="cpu")),
                folder,
            )
            hold(folder)
            _log.info("written in %.1f s", time.perf_counter() - started)
            return OnnxRunner(folder)
        except TrtSamError as error:
            _log.warning("the decoder's graphs are not kept, so PyTorch runs it: %s%s", *_why_not_kept(error))
            return None

    def keep_graph(self) -> None:
        if self._cache is None or not self._in_torch:
            return
        if not _can_export():
            _log.info("with onnx, onnxscript and onnxruntime (the extra export) the next click would be faster")
            return
        started = time.perf_counter()
        _log.info(
            "all is written; keeping the decoder as a graph in the cache, once per checkpoint, so that the next click "
            "needs no torch (Ctrl-C leaves that to the next call)"
        )
        if self._cache.keep_graph(self._load()):
            _log.info("kept in %.1f s", time.perf_counter() - started)

    def _load(self) -> Checkpoint:
        if self._checkpoint is None:
            require("torch", "to read a checkpoint")
            _log.info("loading %s", self._args.checkpoint)
            from trt_sam.model.checkpoint import load_checkpoint

            self._checkpoint = load_checkpoint(self._args.checkpoint)
            if self._cache is not None:
                self._cache.keep_decoder_sha256(self._checkpoint.sha256)
        return self._checkpoint

    def _check_graph(self, runner: OnnxRunner) -> None:
        if self._args.checkpoint is None or runner.checkpoint_sha256 == "":
            return
        expected = None if self._cache is None else self._cache.decoder_sha256()
        if runner.checkpoint_sha256 != (expected or self._load().sha256):
            runner.close()
            raise InputError(
                f"{self._args.onnx} was exported from another checkpoint than {self._args.checkpoint}; export it from this one"
            )


def _why_not_kept(error: Exception) -> tuple[str, str]:
    """What is wrong with the cache, and what to do: not what the writing of an output would advise."""
    said, _, advice = " ".join(str(error).split()).partition("; ")
    is_of_an_output = "choose another" in advice or "--output" in advice
    return said, "; name another folder with --cache" if is_of_an_output else f"; {advice}" if advice else ""


def _can_export() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxscript", "onnxruntime"))


def _read_embedding(args: argparse.Namespace, image: npt.NDArray[np.uint8]) -> Embedding:
    path: Path = args.embedding
    size = (image.shape[0], image.shape[1])
    # A bare array does not know its photo: it is taken to be of this one.
    embedding = load_embedding(path, original_size=None if path.suffix == ".npz" else size)
    if embedding.original_size != size:
        height, width = embedding.original_size
        raise InputError(
            f"{path} is the embedding of an image of {width}x{height}, this one is {size[1]}x{size[0]}; embed it again"
        )
    # A photo may have been renamed. A file that does not say whose it is has its own name here.
    if embedding.file_name not in (args.image.name, "", path.stem):
        seen = (path, embedding.file_name, args.image.name)
        _log.warning("%s was made of %s, not of %s; unless both are one photo, the masks mean nothing", *seen)
    return embedding


def _check_origin(path: Path, embedding: Embedding, checkpoint_sha256: str, encoder_sha256: Callable[[], str]) -> None:
    check_origin(
        (embedding.encoder_sha256, embedding.checkpoint_sha256),
        checkpoint_sha256,
        encoder_sha256,
        f"embedding file {path} was made by another image encoder",
        "embed the photo with the decoder's own checkpoint",
    )
