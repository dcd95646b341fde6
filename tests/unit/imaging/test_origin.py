"""Which embeddings and image encoders belong to which decoder."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

from tests.fixtures.recorder import GreyEncoder, Recorder
from trt_sam.errors import InputError
from trt_sam.imaging.origin import check_encoder_of_runner, check_origin
from trt_sam.masks import AutomaticMaskGenerator
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.runtime.predictor import Predictor
from trt_sam.runtime.torch_runner import TorchRunner

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("made_by", "decoder", "encoder"),
    [
        pytest.param(("", ""), A, B, id="a bare array"),
        pytest.param((A, B), "", "", id="a decoder that says nothing"),
        pytest.param((A, A), A, B, id="the same decoder"),
        pytest.param((A, A), B, A, id="a decoder trained further behind the same encoder"),
        pytest.param((A, ""), A, A, id="an older file"),
    ],
)
def test_what_may_belong_together_is_taken(made_by: tuple[str, str], decoder: str, encoder: str) -> None:
    check_origin(made_by, decoder, lambda: encoder, "it is another", "embed again")


@pytest.mark.parametrize(
    ("made_by", "decoder", "encoder", "message"),
    [
        ((A, ""), B, B, r"it is another \(aaaaaaaaaaaa\) than the decoder's \(bbbbbbbbbbbb\); embed again"),
        ((A, A), B, B, r"it is another \(aaaaaaaaaaaa\) than the decoder's \(bbbbbbbbbbbb\); embed again"),
        ((A, A), B, "", r"it is another than the decoder's \(checkpoint aaaaaaaaaaaa, not bbbbbbbbbbbb\); embed again"),
        (("", A), B, B, r"it is another than the decoder's \(checkpoint aaaaaaaaaaaa, not bbbbbbbbbbbb\); embed again"),
    ],
)
def test_another_checkpoints_is_refused(made_by: tuple[str, str], decoder: str, encoder: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_origin(made_by, decoder, lambda: encoder, "it is another", "embed again")


def test_the_encoder_is_asked_only_where_it_decides() -> None:
    def opened() -> str:
        raise AssertionError("opened for nothing")

    check_origin((A, A), A, opened, "it is another", "embed again")
    check_origin(("", ""), A, opened, "it is another", "embed again")


def test_a_decoder_in_pytorch_knows_its_checkpoint() -> None:
    decoder = load_checkpoint("standin").decoder
    other = load_checkpoint("standin-hard").image_encoder()
    with pytest.raises(InputError, match=r"image_encoder is another one than the decoder's \(checkpoint"):
        Predictor(TorchRunner(decoder), other)
    with pytest.raises(InputError, match=r"image_encoder is another one than the decoder's \(checkpoint"):
        AutomaticMaskGenerator(TorchRunner(decoder), image_encoder=other)
    Predictor(TorchRunner(decoder), load_checkpoint("standin").image_encoder())
    trained = copy.deepcopy(decoder)
    trained.state_dict()["mask_decoder.iou_token.weight"].mul_(1.01)
    Predictor(TorchRunner(trained), load_checkpoint("standin").image_encoder())


def test_a_set_whose_encoder_is_another() -> None:
    runner = SimpleNamespace(checkpoint_sha256=A, encoder_sha256=A)
    check_encoder_of_runner(SimpleNamespace(sha256=A), runner)
    with pytest.raises(InputError, match=r"image_encoder is another one \(bbbbbbbbbbbb\) than the decoder's"):
        check_encoder_of_runner(SimpleNamespace(sha256=B), runner)


@pytest.mark.parametrize("kind", [Predictor, AutomaticMaskGenerator])
def test_both_front_ends_look(kind: type) -> None:
    runner, encoder = Recorder(), GreyEncoder()
    runner.checkpoint_sha256, encoder.checkpoint_sha256 = A, A  # type: ignore[attr-defined]
    kind(runner, image_encoder=encoder)
    encoder.checkpoint_sha256 = B  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"image_encoder is another one than the decoder's \(checkpoint bbbbbbbbbbbb"):
        kind(runner, image_encoder=encoder)
