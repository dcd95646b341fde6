"""Whether an embedding, or the image encoder that makes them, belongs to a decoder: told by the hashes of their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trt_sam.errors import InputError

__all__ = ["check_encoder_of_runner", "check_origin"]


def check_origin(
    made_by: tuple[str, str], checkpoint_sha256: str, encoder_sha256: Callable[[], str], what: str, advice: str
) -> None:
    """Raise InputError where an embedding is known to be another checkpoint's than the decoder is.

    The same decoder decides for itself: embeddings that its weights were trained on fit. Else the encoders decide, where both
    are known, for a decoder may have been trained further behind one encoder. A hash is "" where it is unknown.

    Args:
        made_by: (hash of the encoder's weights, hash of the decoder's of the same checkpoint), of the embedding.
        checkpoint_sha256: of the decoder.
        encoder_sha256: gives that of the decoder's own encoder; asked only where it decides, because it may have to open it.
        what: begins the message, such as "embedding file cat.npz was made by another image encoder".
        advice: ends it.
    """
    encoder, checkpoint = made_by
    if checkpoint and checkpoint == checkpoint_sha256:
        return
    own = encoder_sha256() if encoder else ""
    if own:
        if encoder != own:
            raise InputError(f"{what} ({encoder[:12]}) than the decoder's ({own[:12]}); {advice}")
    elif checkpoint and checkpoint_sha256:
        raise InputError(f"{what} than the decoder's (checkpoint {checkpoint[:12]}, not {checkpoint_sha256[:12]}); {advice}")


def check_encoder_of_runner(encoder: Any, runner: Any) -> None:
    """Raise InputError where an image encoder is known to be of another checkpoint than the decoder that `runner` runs.

    Either may be of any kind: what an object does not say in `sha256`, `encoder_sha256` or `checkpoint_sha256` is unknown.
    """
    if encoder is None or encoder is runner:
        return
    check_origin(
        (_said(encoder, "sha256"), _said(encoder, "checkpoint_sha256")),
        _said(runner, "checkpoint_sha256"),
        lambda: _said(runner, "encoder_sha256"),
        "image_encoder is another one",
        "take encoder and decoder of one checkpoint",
    )


def _said(source: Any, name: str) -> str:
    value = getattr(source, name, "")
    return value if isinstance(value, str) else ""
