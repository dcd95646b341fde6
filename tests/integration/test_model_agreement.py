"""Our decoder against transformers' `SamModel` with the same weights, and against a plain numpy decoder in float64.

Which tokens each side sees: transformers appends one "not a point" (label -1, SAM's padding token) to clicks, but only when
no box is given, and puts box corners after the clicks; our decoder takes every token from its caller and adds none. It
also computes the two-way transformer's LayerNorms with eps 1e-6 by default; Meta, and so we, with 1e-5: so the config here.
"""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from numpy_decoder import numpy_decoder
from torch import Tensor

from trt_sam.model import SamDecoder
from trt_sam.model.hardened import SCALE, harden
from trt_sam.model.naming import HF_TIED_COPY, HF_TIED_SOURCE, meta_to_hf
from trt_sam.model.transformer import Attention

transformers = pytest.importorskip("transformers")

FULL, SMALL = (64, 64), (16, 16)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_decoder(grid: tuple[int, int], *, peaky: bool = False, seed: int = 0) -> SamDecoder:
    torch.manual_seed(seed)
    decoder = SamDecoder(grid=grid).eval().requires_grad_(False)
    if peaky:
        for module in decoder.modules():
            if isinstance(module, Attention):
                module.q_proj.weight *= 3
                module.k_proj.weight *= 3
    return decoder


def to_double(decoder: SamDecoder) -> SamDecoder:
    decoder = copy.deepcopy(decoder).double()
    decoder.refresh_position_encoding()
    return decoder


def make_hf(decoder: SamDecoder) -> torch.nn.Module:
    """`SamModel` with the decoder's weights; its image encoder is there because it must be, and never runs."""
    size = 16 * decoder.grid[0]
    config = transformers.SamConfig(
        vision_config={"hidden_size": 32, "num_hidden_layers": 0, "num_attention_heads": 1, "image_size": size},
        prompt_encoder_config={"image_size": size},
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )
    model = transformers.SamModel(config).eval().requires_grad_(False)
    state, unknown = meta_to_hf(decoder.state_dict())
    assert unknown == []
    state[HF_TIED_COPY] = state[HF_TIED_SOURCE]
    result = model.to(decoder.image_pe.dtype).load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert all(name.startswith("vision_encoder.") for name in result.missing_keys)
    return model


def run_hf(model: torch.nn.Module, image: Tensor, *, multimask: bool, **prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [num_prompts, masks, h, w] and IoU; prompts are a point batch of one image, or with masks a batch of images."""
    if "input_masks" in prompts:
        # transformers has one mask per image of the batch, so each prompt is an image of its own here.
        prompts = {name: value if name == "input_masks" else value.transpose(0, 1) for name, value in prompts.items()}
        image = image.expand(len(prompts["input_masks"]), -1, -1, -1)
    output = model(image_embeddings=image, multimask_output=multimask, **prompts)
    return output.pred_masks.flatten(0, 1), output.iou_scores.flatten(0, 1)


def make_case(kind: str, num_prompts: int, decoder: SamDecoder) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same prompts for us and for transformers."""
    dtype, size = decoder.image_pe.dtype, 16 * decoder.grid[0]
    generator = torch.Generator().manual_seed(num_prompts)
    n = num_prompts

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    clicks, labels = size * uniform(n, 3, 2), torch.randint(0, 2, (n, 3), generator=generator)
    boxes = size * uniform(n, 2, 2)
    pad, minus_one = torch.zeros(n, 1, 2, dtype=dtype), torch.full((n, 1), -1)
    corner_labels = torch.tensor([[2, 3]]).expand(n, -1)
    if kind == "points":
        # Both see: click, click, click, -1. We pass the last one, transformers appends it.
        ours = (torch.cat([clicks, pad], 1), torch.cat([labels, minus_one], 1))
        theirs = {"input_points": clicks[None], "input_labels": labels[None]}
    elif kind == "boxes":
        # Both see: corner, corner. Nobody adds a -1.
        ours = (boxes, corner_labels)
        theirs = {"input_boxes": boxes.flatten(1)[None]}
    elif kind == "mixed":
        # Both see: click, -1, click, corner, corner. The -1 is the caller's on both sides; a box, so transformers adds none.
        labels[:, 1] = -1
        ours = (torch.cat([clicks, boxes], 1), torch.cat([labels, corner_labels], 1))
        theirs = {"input_points": clicks[None], "input_labels": labels[None], "input_boxes": boxes.flatten(1)[None]}
    else:
        # Both see: click, click, click, -1, and a mask per prompt.
        masks = 10 * (uniform(n, 1, 4 * decoder.grid[0], 4 * decoder.grid[1]) - 0.5)
        ours = (torch.cat([clicks, pad], 1), torch.cat([labels, minus_one], 1), masks, torch.ones(n, dtype=dtype))
        theirs = {"input_points": clicks[None], "input_labels": labels[None], "input_masks": masks}
    names = ("point_coords", "point_labels", "mask_input", "has_mask_input")
    feed = dict(zip(names, ours, strict=False))
    return feed | {"point_labels": feed["point_labels"].to(dtype)}, theirs


def make_image(decoder: SamDecoder) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.randn(1, 256, *decoder.grid, generator=generator, dtype=torch.float64).to(decoder.image_pe.dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of `b`."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


KINDS = ("points", "boxes", "mixed", "mask")
# In float64 the full grid shares all code with the small one and costs sixteen times as much.
CASES = {
    "float32 full": [(kind, n) for kind in KINDS for n in (1, 3, 16)],
    "float64 full": [("mask", 1)],
    "float64 small": [(kind, n) for kind in KINDS for n in (1, 3, 16)],
    "float64 small peaky": [(kind, 3) for kind in KINDS],
}


@functools.cache
def make_pair(setting: str) -> tuple[SamDecoder, torch.nn.Module]:
    decoder = make_decoder(SMALL if "small" in setting else FULL, peaky="peaky" in setting)
    if "float64" in setting:
        decoder = to_double(decoder)
    return decoder, make_hf(decoder)


@pytest.mark.parametrize(("setting", "kind", "num_prompts"), [(s, *case) for s, cases in CASES.items() for case in cases])
def test_agrees_with_transformers(setting: str, kind: str, num_prompts: int) -> None:
    decoder, hf = make_pair(setting)
    tolerance = TOLERANCE[decoder.image_pe.dtype]
    image, (ours, theirs) = make_image(decoder), make_case(kind, num_prompts, decoder)
    with torch.inference_mode():
        masks, iou = decoder(image, **ours)
        three, three_iou = run_hf(hf, image, multimask=True, **theirs)
        assert distance(masks[:, 1:], three) < tolerance
        assert distance(iou[:, 1:], three_iou) < tolerance
        if num_prompts == 3 and "small" in setting:
            one, one_iou = run_hf(hf, image, multimask=False, **theirs)
            assert distance(masks[:, :1], one) < tolerance
            assert distance(iou[:, :1], one_iou) < tolerance


def test_one_more_token_would_be_seen() -> None:
    """The comparison is sharp: a second -1, which transformers does not send, moves the masks by far more than tolerance."""
    decoder = make_decoder(SMALL)
    hf, image = make_hf(decoder), make_image(decoder)
    ours, theirs = make_case("points", 3, decoder)
    more = {
        "point_coords": torch.cat([ours["point_coords"], torch.zeros(3, 1, 2)], 1),
        "point_labels": torch.cat([ours["point_labels"], -torch.ones(3, 1)], 1),
    }
    with torch.inference_mode():
        three, _ = run_hf(hf, image, multimask=True, **theirs)
        assert distance(decoder(image, **more)[0][:, 1:], three) > 1e-2


def test_peaky_weights_are_peaky() -> None:
    """The peaky decoder puts more than half of a softmax on one of 256 positions; the default one spreads it."""
    for peaky, low, high in ((False, 0.0, 0.1), (True, 0.5, 1.0)):
        decoder = make_decoder(SMALL, peaky=peaky)
        last = decoder.mask_decoder.transformer.final_attn_token_to_image
        seen: list[Tensor] = []
        last.q_proj.register_forward_hook(lambda *a, seen=seen: seen.append(a[2]))
        last.k_proj.register_forward_hook(lambda *a, seen=seen: seen.append(a[2]))
        with torch.inference_mode():
            decoder(make_image(decoder), **make_case("boxes", 3, decoder)[0])
        q, k = (x.unflatten(-1, (8, 16)).transpose(1, 2) for x in seen)
        largest = float(torch.softmax(q @ k.transpose(-1, -2) / 4, -1).max())
        assert low < largest <= high


@pytest.mark.parametrize("with_mask", [False, True])
def test_agrees_with_numpy_in_float64(with_mask: bool) -> None:
    """Tokens: five output tokens, then per prompt a click, an absent point (left out), a -1 and two corners."""
    decoder = to_double(make_decoder((4, 4), peaky=True, seed=3))
    rng = np.random.default_rng(5)
    coords, labels = rng.uniform(-20, 80, (3, 5, 2)), np.array([[1.0, -2, -1, 2, 3]] * 3)
    image = rng.normal(size=(1, 256, 4, 4))
    mask, has = rng.normal(size=(3, 1, 16, 16)), np.array([1.0, 0.0, 1.0])
    extra = (mask, has) if with_mask else ()
    with torch.inference_mode():
        masks, iou = decoder(*(torch.from_numpy(x) for x in (image, coords, labels, *extra)))
    reference = numpy_decoder(decoder, image, coords, labels, *extra)
    assert distance(masks, torch.from_numpy(reference[0])) < 1e-10
    assert distance(iou, torch.from_numpy(reference[1])) < 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_padded_rows_equal_the_rows_alone(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    """-2 is padding, wherever it stands: rows of 0 to 9 points in one batch give what each row gives alone."""
    decoder = make_decoder(SMALL, peaky=seed == 2)
    decoder = to_double(decoder) if dtype == torch.float64 else decoder
    image, rng = make_image(decoder), np.random.default_rng(seed)
    lengths = [0, *rng.integers(1, 10, int(rng.integers(3, 7))).tolist()]
    coords = torch.from_numpy(rng.uniform(0, 256, (len(lengths), 9, 2))).to(dtype)
    labels = torch.full((len(lengths), 9), -2, dtype=dtype)
    places = [np.sort(rng.permutation(9)[:length]) for length in lengths]
    for row, place in enumerate(places):
        labels[row, place] = torch.from_numpy(rng.choice([-1.0, 0, 1, 2, 3], len(place))).to(dtype)
    with torch.inference_mode():
        masks, iou = decoder(image, coords, labels)
        for row, place in enumerate(places):
            alone, alone_iou = decoder(image, coords[row : row + 1, place], labels[row : row + 1, place])
            assert distance(masks[row : row + 1], alone) < tolerance
            assert distance(iou[row : row + 1], alone_iou) < tolerance


def test_hardened_decoder_is_the_same_function_with_outliers() -> None:
    # Rescaled in float32, as `load_checkpoint("standin-hard")` does, and judged in float64.
    single = make_decoder(SMALL)
    decoder, hard = to_double(single), to_double(harden(single))
    image = make_image(decoder)
    feed = make_case("mask", 3, decoder)[0]
    with torch.inference_mode():
        masks, iou = decoder(image, **feed)
        hard_masks, hard_iou = hard(image, **feed)
    assert distance(hard_masks, masks) < 1e-12
    assert distance(hard_iou, iou) < 1e-12
    changed = 0
    for (name, before), after in zip(decoder.state_dict().items(), hard.state_dict().values(), strict=True):
        ratios = (after / before)[before != after]
        factors = {round(float(ratio), 6) for ratio in ratios}
        assert factors <= {SCALE, 1 / SCALE}, name
        changed += bool(factors)
    assert changed == 7 * (2 + 2 + 2 + 1) + 2 * (2 + 1)
    again = to_double(harden(single)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in hard.state_dict().items())
