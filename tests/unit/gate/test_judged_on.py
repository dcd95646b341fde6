"""What `compare` judges on where no flag says it: the reference's own data, whoever else is named, in whichever order."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.made_answers import outputs, side
from trt_sam.accuracy.sides import Side
from trt_sam.commands._judged_on import questions_of
from trt_sam.errors import InputError
from trt_sam.gate.golden import load_golden
from trt_sam.model.checkpoint import DATA_FOLDER, load_checkpoint

STANDIN = load_checkpoint("standin").sha256
REAL = load_golden(DATA_FOLDER / "golden" / "mobile_sam.npz").checkpoint_sha256


def of(weights: str, **changes: Any) -> Side:
    return dataclasses.replace(side(outputs(1)), checkpoint_sha256=weights, **changes)


def asked(**given: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"prompts": 8, "seed": 0, "embeddings": None, "photos": None, "random_embeddings": False, **given}
    )


def described(*sides: Side) -> str:
    return questions_of(asked(), sides[0], sides[1:], None, []).description


@pytest.mark.parametrize("order", [(REAL, STANDIN), (STANDIN, REAL), (REAL,), (STANDIN,)])
def test_the_reference_says_whose_data_are_taken(order: tuple[str, ...]) -> None:
    candidates = [of(weights) for weights in order]
    assert described(of(REAL), *candidates).startswith("golden data of mobile_sam on ")
    assert described(of(STANDIN), *candidates).endswith(" synthetic scenes that it was not trained on")


def test_candidates_of_an_unknown_reference_must_be_of_one_mind() -> None:
    unknown = of("")
    assert described(unknown, of(REAL), of(""), of(REAL)).startswith("golden data of mobile_sam on ")
    for order in ((REAL, STANDIN), (STANDIN, REAL)):
        with pytest.raises(InputError, match="there is nothing to judge by"):
            described(unknown, *map(of, order))


class Encoding:
    """Of a checkpoint, whose image encoder it has."""

    def __init__(self, encoder_sha256: str) -> None:
        self.encoder_sha256 = encoder_sha256

    def image_encoder(self) -> Any:
        raise InputError(f"embedded by {self.encoder_sha256}")


def embedded_by(*sides: Side) -> str:
    with pytest.raises(InputError) as error:
        questions_of(asked(photos=Path("photos")), sides[0], sides[1:], None, [])
    return str(error.value)


def test_the_reference_says_who_embeds() -> None:
    none = of("")
    a, b, c = (of("", source=name, checkpoint=Encoding(name)) for name in ("a", "b", "c"))
    assert embedded_by(a, b, c) == embedded_by(a, c, b) == "embedded by a"
    assert embedded_by(none, b) == embedded_by(none, none, b) == "embedded by b"
    assert embedded_by(none, b, c) == embedded_by(none, c, b)
    assert embedded_by(none, b, c).startswith("b and c have different image encoders, and candidate.onnx has none to say")
    assert embedded_by(none, none).startswith("--photos need an image encoder")
