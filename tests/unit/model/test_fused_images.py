"""Several images in one call of a fused decoder: each prompt's outputs are those of a call on its image alone."""

from __future__ import annotations

import pytest
import torch

from tests.unit.model.test_fused import FORMS, double, make_decoder
from trt_sam.model.fused import fuse


@pytest.mark.parametrize("form", ["cpu", "gpu", "cpu-mask", "gpu-mask", "plain", "projected-flip-fold_positions"])
@pytest.mark.parametrize("images", [1, 3])
def test_each_prompt_has_its_own_image(form: str, images: int) -> None:
    decoder = double(make_decoder(images))
    fused = fuse(decoder, FORMS[form])
    generator = torch.Generator().manual_seed(images)
    height, width = decoder.grid
    embeddings = torch.randn(images, 32, height, width, generator=generator, dtype=torch.float64)
    index = torch.randint(0, images, (5,), generator=generator, dtype=torch.int32)
    prompts = [
        torch.rand(5, 3, 2, generator=generator).double() * 16 * width,
        torch.randint(-2, 4, (5, 3), generator=generator).float(),
    ]
    if "mask" in form:
        prompts.append(5 * torch.randn(5, 1, 4 * height, 4 * width, generator=generator, dtype=torch.float64))
        prompts.append(torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
    found = fused(embeddings, *prompts, image_index=index)
    for row, image in enumerate(index.tolist()):
        alone = decoder(embeddings[image : image + 1], *(each[row : row + 1] for each in prompts))
        for ours, theirs in zip(found, alone, strict=True):
            torch.testing.assert_close(ours[row : row + 1], theirs, rtol=0, atol=1e-9)
