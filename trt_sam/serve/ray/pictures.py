"""`PictureFolder`: the pictures that clients sent, by the hash of their bytes, where every replica can read them.

It is what makes embeddings expendable: a replica that has none of a picture makes it again. Give all machines the same folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from trt_sam._files import write_atomically
from trt_sam.serve.faults import image_unknown

__all__ = ["PictureFolder"]

_ID = re.compile(r"[0-9a-f]{32}")


class PictureFolder:
    """Files by id, 256 folders of them. Nothing here removes old ones: `find DIR -type f -mmin +60 -delete`.

    A file's time of change is when it was last sent or read; that of access is kept by few file systems.
    """

    def __init__(self, folder: str) -> None:
        """Use `folder`, made where it is missing."""
        self._folder = Path(folder)

    def put(self, picture: bytes) -> str:
        """Keep the bytes of a picture; gives its id, which is the same for the same bytes.

        Raises:
            InputError: the folder cannot be written, or the disk is full.
        """
        name = hashlib.sha256(picture).hexdigest()[:32]
        path = self._path(name)
        if not _touched(path):
            write_atomically(path, picture)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of a picture; Refusal where there is none of that id."""
        if not _ID.fullmatch(name):
            raise image_unknown()
        path = self._path(name)
        _touched(path)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise image_unknown() from None

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name


def _touched(path: Path) -> bool:
    """Whether the file is there; then it was changed just now, for whoever removes old ones."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's, which is as good to read
        return True
    return True
