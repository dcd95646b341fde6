"""benchmarks/gpu_photos.py over the host-memory driver: that it measures what it says, not how fast anything is."""

from __future__ import annotations

import pytest

from benchmarks.gpu_photos import lines, measure
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import runs_of
from tests.fixtures.toy_encoder import toy_photo
from tests.fixtures.toy_runner import encoder_of, opened
from trt_sam.contract import EMBEDDING_BYTES
from trt_sam.errors import InputError

pytestmark = pytest.mark.hostcuda


def test_each_row_is_measured(host_cuda: HostCuda) -> None:
    encoder, fake = encoder_of(host_cuda)
    with opened(host_cuda, encoder=encoder, in_flight=2, image_bytes=8 * EMBEDDING_BYTES) as (runner, _):
        found = measure(runner, [toy_photo(3), toy_photo(5, 30, 20)], seconds=0.2)
        assert runs_of(fake) >= found.photo_to_mask.samples + 4
        assert runner.images_held == 1
    assert min(found.click.samples, found.click_while_encoding.samples, found.photo_to_mask.samples) >= 2
    assert found.photos_per_second > 0
    assert [line.partition(":")[0] for line in lines(found)] == [
        *("photo to mask", "click", "click while photos are encoded", "photos per second")
    ]


def test_a_runner_without_encoder_is_refused(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _), pytest.raises(InputError, match="no image encoder; build one with"):
        measure(runner, [toy_photo(3)], seconds=0.1)
