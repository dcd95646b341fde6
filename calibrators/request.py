"""What a user asks to calibrate on: photos or embeddings, prompts, and where the embeddings of photos are kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibrators.feeds import CalibrationFeeds, FeedOptions, calibration_feeds
from trt_sam._files import sha256_of
from trt_sam.errors import InputError
from trt_sam.feeds.realistic import Decode
from trt_sam.imaging.embeddings import Encoder, embed_photo, save_embedding
from trt_sam.imaging.photos import list_images
from trt_sam.progress import Progress

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["CalibrationRequest"]


@dataclass(frozen=True)
class CalibrationRequest:
    """The data of a calibration."""

    data: Path
    """A folder of embedding files, or of photos."""
    are_photos: bool
    """Whether the folder holds photos, which the checkpoint's encoder embeds."""
    options: FeedOptions
    prompts: Path | None = None
    """The user's own, see `prompt_file`; None to draw them."""
    cache: Path | None = None
    """Keeps the embeddings of photos, under names made of what each is made from; None to keep none."""
    random_prompts: bool = False
    """Draw prompts anywhere, and not on what the float32 decoder segments."""

    @contextlib.contextmanager
    def open(self, checkpoint: Checkpoint, progress: Progress | None = None) -> Iterator[CalibrationFeeds]:
        """The feeds, usable inside the block.

        Raises:
            InputError: the data cannot be used (see `calibration_feeds`), or `cache` cannot be written.
        """

        def tell(phase: str, done: int, total: int) -> None:
            if progress is not None:
                progress(done / total, phase)

        with contextlib.ExitStack() as stack:
            folder = self.data
            hashes: dict[str, str] = {}
            if self.are_photos:
                photos = list_images([self.data])
                encoder = checkpoint.image_encoder()
                folder = stack.enter_context(_folder(self.cache))
                hashes = self._embed(photos, encoder, folder, progress)
            yield calibration_feeds(
                folder,
                self.options,
                prompts=self.prompts,
                encoder_sha256=checkpoint.encoder_sha256,
                photo_sha256=hashes,
                decode=None if self.random_prompts else _decode(checkpoint),
                progress=tell,
            )

    def _embed(self, photos: Sequence[Path], encoder: Encoder, folder: Path, progress: Progress | None) -> dict[str, str]:
        """Write the photos' embeddings into `folder`; the hashes of the photos' files, by the names of these."""
        hashes = {}
        for number, photo in enumerate(photos, start=1):
            # Numbered, because photos of different folders may share a name.
            path = folder / f"{number:06d}_{photo.stem}.npz"
            if self.cache is None:
                save_embedding(path, embed_photo(photo, encoder))
            else:
                _link(_kept(photo, encoder, self.cache), path)
            hashes[path.name] = sha256_of(photo)
            if progress is not None:
                progress(number / len(photos), "photos")
        return hashes


def _decode(checkpoint: Checkpoint) -> Decode:
    from trt_sam.runtime.torch_runner import TorchRunner

    return TorchRunner(checkpoint.decoder).run


@contextlib.contextmanager
def _folder(cache: Path | None) -> Iterator[Path]:
    """A temporary folder, on the file system of `cache`."""
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".set-", dir=cache)
    except OSError as error:
        raise InputError(f"cannot write {cache or tempfile.gettempdir()}: {error.strerror}; choose another --output") from error
    with folder as name:
        yield Path(name)


def _kept(photo: Path, encoder: Encoder, cache: Path) -> Path:
    """The embedding file of a photo, under a name that its bytes, its file name and the encoder's weights decide."""
    name = hashlib.sha256(f"{sha256_of(photo)} {encoder.sha256} {photo.name}".encode()).hexdigest()[:32]
    path = cache / f"{name}.npz"
    if not path.exists():
        save_embedding(path, embed_photo(photo, encoder))
    return path


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
