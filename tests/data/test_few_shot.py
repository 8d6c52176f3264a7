"""Draws are nested, seeded and recorded."""

import itertools
import shutil

import pytest

from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet, check_held_out, draw

PROMPT = "a photo of a {name}"


@pytest.fixture(scope="module")
def digits():
    return open_source("digits").dataset()


def test_smaller_draws_are_inside_larger_ones(digits):
    draws = [draw(digits, n, 0, PROMPT) for n in (1, 2, 4, 8, 16)]
    for small, large in itertools.pairwise(draws):
        assert all(
            large_keys[: small.n_shots] == keys for keys, large_keys in zip(small.shots, large.shots, strict=True)
        )


def test_shots_come_from_the_pool_of_their_class(digits):
    labels = {photo.key: photo.label for photo in digits.pool}
    few_shot = draw(digits, 16, 3, PROMPT)
    assert all(labels[photo.key] == photo.label for photo in few_shot.photos)
    assert len({photo.key for photo in few_shot.all_photos}) == len(few_shot.all_photos)


def test_seed_decides(digits):
    assert draw(digits, 4, 0, PROMPT) == draw(digits, 4, 0, PROMPT)
    assert draw(digits, 4, 0, PROMPT).shots != draw(digits, 4, 1, PROMPT).shots


def test_json_round_trip(digits):
    few_shot = draw(digits, 2, 0, PROMPT)
    assert FewShotSet.from_json(few_shot.to_json()) == few_shot
    assert few_shot.prompts[7] == "a photo of a digit seven"


def test_left_over_photos_become_validation_and_test(photo_folder):
    dataset = open_source(str(photo_folder)).dataset()
    few_shot = draw(dataset, 4, 0, PROMPT)
    assert len(few_shot.val) == len(few_shot.test) == 3
    assert draw(dataset, 6, 0, PROMPT).test == ()


def test_too_many_shots(photo_folder):
    with pytest.raises(ValueError, match="class 'cat' has 6 photos: data.n_shots asks for 7"):
        draw(open_source(str(photo_folder)).dataset(), 7, 0, PROMPT)


@pytest.mark.parametrize(("count", "sizes"), [(2, [2, 3]), (3, [3, 3, 4]), (5, [4] * 5), (9, [4] * 5)])
def test_folds_leave_every_shot_out_once(digits, count, sizes):
    few_shot = draw(digits, 5, 0, PROMPT)
    folds = few_shot.folds(count)
    assert [fold.n_shots for fold in folds] == sizes
    assert sorted(photo.key for fold in folds for photo in fold.val) == sorted(p.key for p in few_shot.photos)
    for fold in folds:
        assert {len(keys) for keys in fold.shots} == {fold.n_shots}
        assert set(fold.photos) | set(fold.val) == set(few_shot.photos)
        assert not set(fold.photos) & set(fold.val)
        assert fold.test == few_shot.test


def test_one_shot_cannot_be_left_out(digits):
    assert draw(digits, 1, 0, PROMPT).folds(4) == ()
    assert draw(digits, 4, 0, PROMPT).folds(1) == ()


def test_copies_of_shots_do_not_validate_or_test(photo_folder, digits):
    source = open_source(str(photo_folder))
    few_shot = draw(source.dataset(), 4, 0, PROMPT)
    check_held_out(source, few_shot)
    check_held_out(open_source("digits"), draw(digits, 4, 0, PROMPT))
    for part, photos in (("validation", few_shot.val), ("test", few_shot.test)):
        kept = (photo_folder / photos[0].key).read_bytes()
        shutil.copy(photo_folder / few_shot.shots[0][0], photo_folder / photos[0].key)
        with pytest.raises(ValueError, match=f"{part} photo '{photos[0].key}' is a copy of the training photo"):
            check_held_out(source, few_shot)
        (photo_folder / photos[0].key).write_bytes(kept)
