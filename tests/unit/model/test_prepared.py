"""The decoder in two parts gives the plain decoder's outputs."""

from __future__ import annotations

import secrets

import pytest
import torch
from torch import Tensor

from tests.unit.model.test_fused import double, make_decoder, make_feed
from trt_sam.contract import EMBEDDING_SHAPE, term_specs
from trt_sam.model import SamDecoder
from trt_sam.model.fused import for_target, fuse
from trt_sam.model.prepared import PreparedDecoder, PreparedImage

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def decode(decoder: SamDecoder, image: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """By both parts."""
    with torch.no_grad():
        masks, iou = PreparedDecoder(decoder)(PreparedImage(decoder)(image), coords, labels)
    return masks, iou


def distance(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("peak", [1.0, 4.0])
def test_the_parts_are_the_decoder_exactly(peak: float) -> None:
    """In float64, for weights and prompts that are new in every run: what is left is rounding."""
    seed = secrets.randbelow(2**31)
    decoder = double(make_decoder(seed, peak=peak))
    image, coords, labels = (each.double() for each in make_feed(decoder, 3 * (seed // 3)))
    expected = decoder(image, coords, labels)
    assert max(distance(decode(decoder, image, coords, labels), expected)) < 1e-11, f"seed {seed}"


@pytest.mark.parametrize("peak", [1.0, 3.0])
def test_float32_is_as_near_as_the_form_that_keeps_the_image(peak: float) -> None:
    """The deviation of a position is the square root of a sum with cancellation: that must not cost digits."""
    decoder = make_decoder(5, full=True, peak=peak)
    feed = make_feed(decoder, 6)
    wide = tuple(each.double() for each in feed)
    expected = double(decoder)(*wide)
    found, absorbed = decode(decoder, *feed), fuse(decoder, for_target("cpu"))(*feed)
    for mine, other in zip(distance(found, expected), distance(absorbed, expected), strict=True):
        assert mine < max(2 * other, 2e-6)


def test_the_terms_are_those_of_the_contract() -> None:
    terms = PreparedImage(make_decoder(0, full=True))(torch.randn(EMBEDDING_SHAPE))
    assert [tuple(term.shape) for term in terms] == [spec.dims for spec in term_specs()]
    assert all(bool(term.isfinite().all()) for term in terms)
