"""What golden data take the place of a reference for: who answered, and whose weights those are."""

from __future__ import annotations

from trt_sam.errors import InputError
from trt_sam.gate.golden import Golden
from trt_sam.graph.advice import WRITE_GOLDEN

__all__ = ["about_golden", "check_checkpoint"]


def check_checkpoint(golden: Golden, source: str, checkpoint_sha256: str) -> None:
    """Raise InputError where `source` holds another checkpoint's weights than the golden data; a hash may be "", unknown."""
    if golden.checkpoint_sha256 and checkpoint_sha256 not in ("", golden.checkpoint_sha256):
        raise InputError(
            f"{source} holds the weights {checkpoint_sha256[:12]}, the golden data {golden.path} are of "
            f"{golden.checkpoint} ({golden.checkpoint_sha256[:12]}); write those of its checkpoint with {WRITE_GOLDEN}"
        )


def about_golden(golden: Golden) -> tuple[str, str, str]:
    """Name of the reference behind golden data, what executed it, and the hash of its weights."""
    if not golden.versions:
        return golden.checkpoint, "run and saved by Polygraphy", golden.checkpoint_sha256
    versions = ", ".join(f"{name} {version}" for name, version in golden.versions.items())
    return golden.checkpoint, f"PyTorch in float64, as golden data ({versions})", golden.checkpoint_sha256
