"""Of which images the terms are made, and of which they are kept."""

from __future__ import annotations

import gc

import pytest

from trt_sam.runtime.decoders.kept import MANY_PROMPTS, MOST_KEPT, KeptTerms


class Image:
    """Stands for an OrtValue: known by being the same object."""


class Terms(KeptTerms[str]):
    """Counts what is made."""

    def __init__(self, **settings: int) -> None:
        self.made = 0
        super().__init__(self._count, **settings)

    def _count(self, image: object) -> str:
        self.made += 1
        return f"terms of {id(image)}"


def test_they_are_made_at_the_second_call_and_kept() -> None:
    terms, image = Terms(), Image()
    assert terms.for_call(image, 1) is None
    assert [terms.for_call(image, 1) for _ in range(3)] == [f"terms of {id(image)}"] * 3
    assert terms.made == 1


@pytest.mark.parametrize(("prompts", "made"), [(MANY_PROMPTS, 1), (MANY_PROMPTS - 1, 0)])
def test_a_call_of_several_prompts_pays_for_them_at_once(prompts: int, made: int) -> None:
    terms, image = Terms(), Image()
    assert (terms.for_call(image, prompts) is not None) == bool(made)
    assert (terms.made, len(terms)) == (made, made)


def test_users_who_click_by_turns_never_drive_each_others_terms_out() -> None:
    """Terms for one click cost three clicks: made anew at each turn, they would make all of them slower."""
    terms, images = Terms(), [Image() for _ in range(3 * MOST_KEPT)]
    for _ in range(10):
        for image in images[: 2 * MOST_KEPT]:
            terms.for_call(image, 1)
    assert terms.made == MOST_KEPT
    assert len(terms) == MOST_KEPT
    # One that many prompts are asked on has its terms all the same, as they pay at once.
    assert terms.for_call(images[-1], 64) is not None
    assert len(terms) == MOST_KEPT


def test_an_image_that_is_not_used_any_more_makes_room() -> None:
    terms = Terms(most=1)
    first, second = Image(), Image()
    for _ in range(2):
        terms.for_call(first, 1)
    calls = 0
    while terms.for_call(second, 1) is None:
        calls += 1
        assert calls < 100
    assert calls > 20
    assert (terms.made, len(terms)) == (2, 1)
    assert terms.for_call(first, 1) is None


def test_what_was_made_of_an_image_goes_with_it() -> None:
    terms, image = Terms(), Image()
    terms.for_call(image, 64)
    assert len(terms) == 1
    del image
    gc.collect()
    assert len(terms) == 0
