"""Every form of the decoder gives the plain decoder's outputs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from trt_sam.model import SamDecoder
from trt_sam.model.fused import FormOptions, for_target, fuse

Feed = tuple[Tensor, ...]

SWITCHES = ["fold_positions", "deferred_shuffle", "batched_heads", "gathered_points", "shared_image", "mask_input"]
FORMS = {
    "cpu": for_target("cpu"),
    "gpu": for_target("gpu"),
    "cpu-mask": for_target("cpu", mask_input=True),
    "gpu-mask": for_target("gpu", mask_input=True),
    "plain": FormOptions("plain", *[False] * 5),
    "plain-switched": FormOptions("plain"),
}
for _attention, _name in itertools.product(["projected", "absorbed"], SWITCHES):
    _form = FormOptions(_attention)
    FORMS[f"{_attention}-flip-{_name}"] = dataclasses.replace(_form, **{_name: not getattr(_form, _name)})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_decoder(seed: int, *, full: bool = False, peak: float = 1.0) -> SamDecoder:
    """A float32 decoder with random weights, biases and norms; its attention is peaky with a larger `peak`."""
    torch.manual_seed(seed)
    decoder = SamDecoder() if full else SamDecoder(embed_dim=32, grid=(8, 8), mlp_dim=64)
    for name, parameter in decoder.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() == 1:
            parameter.data = (0.1 * noise + float(name.endswith("weight"))) if "norm" in name else 0.3 * noise
        elif "attn" in name:
            parameter.data *= peak
    decoder.refresh_position_encoding()
    return decoder.eval().requires_grad_(False)


def make_feed(decoder: SamDecoder, seed: int, *, mask: bool = False) -> Feed:
    """Random prompts with random labels, -2 and -1 among them, one prompt without any point and one box."""
    generator = torch.Generator().manual_seed(seed)
    prompts, points = (int(torch.randint(1, high, (1,), generator=generator)) for high in (5, 7))
    height, width = decoder.grid
    images = prompts if seed % 3 == 2 else 1
    image = torch.randn(images, decoder.image_pe.shape[-1], height, width, generator=generator)
    coords = torch.rand(prompts, points, 2, generator=generator) * 16 * width
    labels = torch.randint(-2, 4, (prompts, points), generator=generator).float()
    labels[0] = -2.0
    if points > 1:
        labels[-1, :2] = torch.tensor([2.0, 3.0])
    feed = [image, coords, labels]
    if mask:
        feed.append(5 * torch.randn(prompts, 1, 4 * height, 4 * width, generator=generator))
        feed.append((torch.arange(prompts) % 2 == seed % 2).float())
    return tuple(feed)


def double(decoder: SamDecoder) -> SamDecoder:
    wide = copy.deepcopy(decoder).double()
    wide.refresh_position_encoding()
    return wide


def widened(feed: Feed) -> Feed:
    return tuple(tensor.double() for tensor in feed)


def distance(outputs: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> list[float]:
    """Largest differences of masks and IoU, each relative to the largest value of the reference."""
    assert [o.shape for o in outputs] == [r.shape for r in reference]
    return [float((o.double() - r).abs().max() / r.abs().max()) for o, r in zip(outputs, reference, strict=True)]


@pytest.mark.parametrize("peak", [1.0, 3.0])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_equals_plain_in_float64(form: FormOptions, peak: float) -> None:
    decoder = double(make_decoder(1, peak=peak))
    fused = fuse(decoder, form)
    for seed, mask in itertools.product(range(4), [False, True] if form.mask_input else [False]):
        feed = widened(make_feed(decoder, seed, mask=mask))
        assert max(distance(fused(*feed), decoder(*feed))) < 1e-10, (seed, mask)


@dataclasses.dataclass(frozen=True)
class Case:
    """A float32 decoder with feeds, the float64 decoder's outputs, and the plain float32 decoder's largest errors."""

    decoder: SamDecoder
    feeds: list[Feed]
    exact: list[tuple[Tensor, Tensor]]
    plain_errors: Tensor


@functools.cache
def make_case(seed: int, peak: float, mask: bool) -> Case:
    decoder = make_decoder(seed, peak=peak)
    feeds = [make_feed(decoder, 10 * seed + index, mask=mask) for index in range(3)]
    reference = double(decoder)
    exact = [reference(*widened(feed)) for feed in feeds]
    errors = [distance(decoder(*feed), outputs) for feed, outputs in zip(feeds, exact, strict=True)]
    return Case(decoder, feeds, exact, torch.tensor(errors).amax(0))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_float32_error_is_at_most_twice_the_plain_one(form: FormOptions) -> None:
    for seed, peak in itertools.product(range(2), [1.0, 3.0]):
        case = make_case(seed, peak, form.mask_input)
        fused = fuse(case.decoder, form)
        errors = [distance(fused(*feed), exact) for feed, exact in zip(case.feeds, case.exact, strict=True)]
        for error, plain in zip(torch.tensor(errors).amax(0), case.plain_errors, strict=True):
            assert error <= 2 * plain + 5e-7, (seed, peak, float(error), float(plain))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("peak", [1.0, 3.0])
def test_full_size(target: str, peak: float) -> None:
    decoder = make_decoder(3, full=True, peak=peak)
    feed = make_feed(decoder, 6)
    wide = double(decoder)
    exact = wide(*widened(feed))
    assert max(distance(fuse(wide, for_target(target))(*widened(feed)), exact)) < 1e-10
    errors = distance(fuse(decoder, for_target(target))(*feed), exact)
    for error, plain in zip(errors, distance(decoder(*feed), exact), strict=True):
        assert error <= 2 * plain + 5e-7


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_absent_points_change_nothing(form: FormOptions) -> None:
    decoder = double(make_decoder(5, peak=3.0))
    fused = fuse(decoder, form)
    image, coords, labels = widened(make_feed(decoder, 4))
    padded_coords = torch.cat([1000 * torch.rand_like(coords), coords], dim=1)
    padded_labels = torch.cat([torch.full_like(labels, -2.0), labels], dim=1)
    assert max(distance(fused(image, padded_coords, padded_labels), fused(image, coords, labels))) < 1e-10


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_half_keeps_its_islands(form: FormOptions) -> None:
    decoder = make_decoder(7)
    feed = make_feed(decoder, 3, mask=form.mask_input)
    exact = double(decoder)(*widened(feed))
    fused, plain = fuse(decoder, form).to_half(), decoder.to_half()
    masks, iou = fused(*feed)
    assert (masks.dtype, iou.dtype) == (torch.float16, torch.float32)
    for error, plain_error in zip(distance((masks, iou), exact), distance(plain(*feed), exact), strict=True):
        assert error <= 2 * plain_error + 2e-3
    if fused.points is not None:
        assert fused.points.frequencies.dtype == fused.points.table.dtype == torch.float32


def test_fusing_leaves_the_decoder_alone() -> None:
    decoder = make_decoder(2)
    feed = make_feed(decoder, 1)
    before = decoder(*feed)
    fuse(decoder, for_target("gpu")).to_half()
    fuse(decoder, FormOptions("plain", *[False] * 5)).to_half()
    assert all(torch.equal(a, b) for a, b in zip(before, decoder(*feed), strict=True))
    assert decoder.image_pe.dtype == torch.float32


def test_mask_branch_is_absent_when_not_used() -> None:
    decoder = make_decoder(2)
    assert not any("mask_downscaling" in name for name, _ in fuse(decoder, for_target("gpu")).named_parameters())
    with pytest.raises(AssertionError, match="takes no mask_input"):
        fuse(decoder, for_target("gpu"))(*make_feed(decoder, 1, mask=True))


def test_wrong_options_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="to_half"):
        fuse(make_decoder(2).to_half(), for_target("gpu"))
    with pytest.raises(ValueError, match="cpu or gpu"):
        for_target("tpu")
    with pytest.raises(ValueError, match="plain, projected, absorbed"):
        FormOptions(attention="flash")


@pytest.mark.slow  # test_export does it with one graph that has every input and output
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_exported_graph_keeps_its_dynamic_sizes(target: str, tmp_path: Path) -> None:
    decoder = make_decoder(11)
    fused = fuse(decoder, for_target(target))
    image, coords, labels = torch.randn(1, 32, 8, 8), torch.rand(3, 4, 2), torch.ones(3, 4)
    prompts, points = torch.export.Dim("num_prompts"), torch.export.Dim("num_points")
    names = ["image_embeddings", "point_coords", "point_labels"]
    path = str(tmp_path / "decoder.onnx")
    torch.onnx.export(
        fused,
        (image, coords, labels),
        path,
        dynamo=True,
        dynamic_shapes=({}, {0: prompts, 1: points}, {0: prompts, 1: points}),
        input_names=names,
        opset_version=20,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num_prompts, num_points in [(1, 1), (1, 2), (5, 7)]:
        coords = torch.rand(num_prompts, num_points, 2) * 128
        labels = torch.randint(-2, 4, (num_prompts, num_points)).float()
        feed = dict(zip(names, (image.numpy(), coords.numpy(), labels.numpy()), strict=True))
        masks, iou = (torch.from_numpy(output) for output in session.run(None, feed))
        exact = double(decoder)(image.double(), coords.double(), labels.double())
        assert max(distance((masks, iou), exact)) < 1e-5
