"""Few-shot sets are nested, seeded and recorded."""

import itertools
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datadream.data.datasets import Dataset, Digits, ImageFolder, Photo, open_source
from datadream.data.few_shot import FewShotSet, check_photos, sample_shots

PROMPT = "a photo of a {name}"


@pytest.fixture(scope="module")
def digits():
    return open_source("digits").dataset()


def test_smaller_sets_are_inside_larger_ones(digits):
    few_shots = [sample_shots(digits, n, 0, PROMPT) for n in (1, 2, 4, 8, 16)]
    for small, large in itertools.pairwise(few_shots):
        assert all(
            large_keys[: small.n_shots] == keys for keys, large_keys in zip(small.shots, large.shots, strict=True)
        )


def test_shots_come_from_the_pool_of_their_class(digits):
    labels = {photo.key: photo.label for photo in digits.pool}
    few_shot = sample_shots(digits, 16, 3, PROMPT)
    assert all(labels[photo.key] == photo.label for photo in few_shot.photos)
    assert len({photo.key for photo in few_shot.all_photos}) == len(few_shot.all_photos)


def test_seed_decides(digits):
    assert sample_shots(digits, 4, 0, PROMPT) == sample_shots(digits, 4, 0, PROMPT)
    assert sample_shots(digits, 4, 0, PROMPT).shots != sample_shots(digits, 4, 1, PROMPT).shots


def test_json_round_trip(digits):
    few_shot = sample_shots(digits, 2, 0, PROMPT)
    assert FewShotSet.from_json(few_shot.to_json()) == few_shot
    assert few_shot.prompts[7] == "a photo of a digit seven"


def classes_of(*sizes: int, **parts) -> Dataset:
    """A data set of classes of these sizes, without validation and test part unless given."""
    names = tuple(f"class {label}" for label in range(len(sizes)))
    pool = tuple(Photo(f"{label}/{number}", label) for label, size in enumerate(sizes) for number in range(size))
    return Dataset(names, pool, **{"val": (), "test": ()} | parts, flippable=True)


def per_class(photos: tuple[Photo, ...]) -> Counter:
    return Counter(photo.label for photo in photos)


def test_without_a_test_part_held_out_photos_depend_on_neither_shots_nor_seed():
    dataset = classes_of(32, 40, 33)
    few_shots = [sample_shots(dataset, n_shots, seed, PROMPT) for n_shots in (1, 2, 4, 8, 16) for seed in (0, 1, 2)]
    assert {(few_shot.val, few_shot.test) for few_shot in few_shots} == {(few_shots[0].val, few_shots[0].test)}
    assert per_class(few_shots[0].test) == {0: 8, 1: 10, 2: 8}
    assert per_class(few_shots[0].val) == {0: 8, 1: 10, 2: 9}
    held_out = {*few_shots[0].val, *few_shots[0].test}
    assert held_out.isdisjoint(photo for few_shot in few_shots for photo in few_shot.photos)
    assert len({few_shot.shots for few_shot in few_shots}) == len(few_shots)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 17, 20])
def test_more_shots_than_half_of_a_class_take_validation_photos_first(size, caplog):
    few_shots = [sample_shots(classes_of(size, 40), n_shots, 5, PROMPT) for n_shots in range(1, size + 1)]
    own = [[[photo for photo in part if photo.label == 0] for part in (each.val, each.test)] for each in few_shots]
    for few_shot in few_shots:
        assert len({photo.key for photo in few_shot.all_photos}) == len(few_shot.all_photos)
    for (val, test), (next_val, next_test), few_shot in zip(own, own[1:], few_shots[1:], strict=False):
        assert next_val in (val, val[1:])
        assert next_test in (test, test[1:])
        assert next_test == test or (
            not val and f"{few_shot.n_shots} shots take test photos of 1 class" in caplog.text
        )
    for small, large in itertools.pairwise(few_shots):
        assert [keys[: small.n_shots] for keys in large.shots] == list(small.shots)
    assert per_class(few_shots[0].test)[0] == (max(1, size // 4) if size > 1 else 0)
    assert own[-1] == [[], []]


def test_a_validation_part_leaves_the_other_half_to_the_test():
    val = (Photo("val/0", 0), Photo("val/1", 1))
    few_shots = [
        sample_shots(classes_of(20, 20, val=val), n_shots, seed, PROMPT) for n_shots in (1, 10) for seed in (0, 1)
    ]
    assert {few_shot.val for few_shot in few_shots} == {val}
    assert len({few_shot.test for few_shot in few_shots}) == 1
    assert per_class(few_shots[0].test) == {0: 10, 1: 10}


def test_a_test_part_leaves_the_whole_pool_to_the_shots():
    dataset = classes_of(6, 6, test=(Photo("test/0", 0),))
    few_shots = [sample_shots(dataset, 3, seed, PROMPT) for seed in range(20)]
    assert {photo for few_shot in few_shots for photo in few_shot.photos} == set(dataset.pool)
    assert {(few_shot.val, few_shot.test) for few_shot in few_shots} == {((), dataset.test)}
    assert sample_shots(Digits().dataset(), 2, 0, PROMPT).shots[0] == ("digits/1059", "digits/1445")


@pytest.mark.parametrize(("n_shots", "n_val"), [(1, 1), (3, 3), (16, 4)])
def test_a_large_validation_part_may_be_limited_as_shots_are(digits, n_shots, n_val):
    few_shots = [sample_shots(replace(digits, few_val=4), n_shots, seed, PROMPT) for seed in (0, 1)]
    assert few_shots[0].val == few_shots[1].val
    assert set(few_shots[0].val) < set(digits.val)
    assert per_class(few_shots[0].val) == dict.fromkeys(range(10), n_val)
    assert few_shots[0].test == digits.test


def test_too_many_shots(photo_folder):
    with pytest.raises(ValueError, match="class 'cat' has 6 photos: data.n_shots asks for 7"):
        sample_shots(open_source(str(photo_folder)).dataset(), 7, 0, PROMPT)


@pytest.mark.parametrize(("count", "sizes"), [(2, [2, 3]), (3, [3, 3, 4]), (5, [4] * 5), (9, [4] * 5)])
def test_folds_leave_every_shot_out_once(digits, count, sizes):
    few_shot = sample_shots(digits, 5, 0, PROMPT)
    folds = few_shot.folds(count)
    assert [fold.n_shots for fold in folds] == sizes
    assert sorted(photo.key for fold in folds for photo in fold.val) == sorted(p.key for p in few_shot.photos)
    for fold in folds:
        assert {len(keys) for keys in fold.shots} == {fold.n_shots}
        assert set(fold.photos) | set(fold.val) == set(few_shot.photos)
        assert not set(fold.photos) & set(fold.val)
        assert fold.test == few_shot.test


def test_one_shot_cannot_be_left_out(digits):
    assert sample_shots(digits, 1, 0, PROMPT).folds(4) == ()
    assert sample_shots(digits, 4, 0, PROMPT).folds(1) == ()


def test_copies_of_shots_do_not_validate_or_test(photo_folder, digits):
    source = open_source(str(photo_folder))
    few_shot = sample_shots(source.dataset(), 4, 0, PROMPT)
    check_photos(source, [few_shot])
    check_photos(Digits(), [sample_shots(digits, 4, 0, PROMPT)])
    for part, photos in (("validation", few_shot.val), ("test", few_shot.test)):
        kept = (photo_folder / photos[0].key).read_bytes()
        shutil.copy(photo_folder / few_shot.shots[0][0], photo_folder / photos[0].key)
        with pytest.raises(ValueError, match=f"{part} photo '{photos[0].key}' is a copy of the training photo"):
            check_photos(source, [few_shot])
        (photo_folder / photos[0].key).write_bytes(kept)


def test_a_table_reads_each_photo_once(photo_folder, monkeypatch):
    reads = Counter()
    read = ImageFolder._file
    monkeypatch.setattr(ImageFolder, "_file", lambda self, key: reads.update([key]) or read(self, key))
    source = open_source(str(photo_folder))
    dataset = source.dataset()
    few_shots = [sample_shots(dataset, n_shots, seed, PROMPT) for n_shots in (1, 2, 4, 6) for seed in (0, 1)]
    check_photos(source, few_shots, dataset.pool)
    assert reads == {photo.key: 1 for photo in dataset.pool}


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"not an image", "cannot be decoded"), (b"cut", "cannot be decoded")]
)
def test_a_broken_photo_is_named_whether_it_is_sampled_or_not(photo_folder, content, reason):
    source = open_source(str(photo_folder))
    dataset = source.dataset()
    few_shot = sample_shots(dataset, 1, 0, PROMPT)
    unused = next(photo.key for photo in dataset.pool if photo not in few_shot.all_photos)
    for key, others in ((few_shot.shots[1][0], ()), (few_shot.test[0].key, ()), (unused, dataset.pool)):
        path = photo_folder / key
        kept = path.read_bytes()
        path.write_bytes(kept[:200] if content == b"cut" else content)
        with pytest.raises(ValueError, match=rf"image '.*{key}' {reason}"):
            check_photos(source, [few_shot], others)
        path.write_bytes(kept)


def test_a_shot_in_another_size_and_container_among_the_test_photos_is_told(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for part, name in ((part, name) for part in ("train", "test") for name in ("a", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(tmp_path / part / name / "0.png")
    shot = Image.open(tmp_path / "train" / "a" / "0.png")
    shot.resize((200, 150)).save(tmp_path / "test" / "b" / "1.jpg", quality=70)
    source = open_source(str(tmp_path))
    check_photos(source, [sample_shots(source.dataset(), 1, 0, PROMPT)])
    assert "1 validation or test photos look like shots, such as 'test/b/1.jpg' like 'train/a/0.png'" in caplog.text


def test_a_photo_that_is_two_shots_is_told(photo_folder, caplog):
    source = open_source(str(photo_folder))
    (cat, *_), (dog, other_dog, *_), _ = sample_shots(source.dataset(), 2, 0, PROMPT).shots
    shutil.copy(photo_folder / cat, photo_folder / dog)
    check_photos(source, [sample_shots(source.dataset(), 2, 0, PROMPT)])
    assert f"1 shots of two classes look alike, such as '{dog}' like '{cat}'" in caplog.text
    assert "one of their labels is wrong" in caplog.text
    shutil.copy(photo_folder / other_dog, photo_folder / dog)
    caplog.clear()
    check_photos(source, [sample_shots(source.dataset(), 2, 0, PROMPT)])
    assert f"1 shots look like other shots of their class, such as '{other_dog}' like '{dog}'" in caplog.text


COPIES = [("jpg", 1.0, {"quality": 70}), ("webp", 2.0, {"quality": 60}), ("gif", 0.4, {}), ("bmp", 1.3, {})]


@pytest.mark.parametrize(("suffix", "scale", "options"), COPIES)
@pytest.mark.parametrize(
    ("part", "other", "what"),
    [
        ("val", "train", "validation or test photos look like shots"),
        ("test", "train", "validation or test photos look like shots"),
        ("test", "val", "test photos look like validation photos"),
    ],
)
def test_copies_between_parts_are_named_in_every_container_and_size(
    tmp_path, caplog, part, other, what, suffix, scale, options
):
    rng = np.random.default_rng(0)
    for folder, name in itertools.product(("train", "val", "test"), ("a", "b")):
        (tmp_path / folder / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(tmp_path / folder / name / "0.png")
    source = open_source(str(tmp_path))
    check_photos(source, [sample_shots(source.dataset(), 1, 0, PROMPT)])
    assert not caplog.text
    copied = Image.open(tmp_path / other / "a" / "0.png").resize((round(160 * scale), round(120 * scale)))
    copied.save(tmp_path / part / "b" / f"1.{suffix}", **options)
    few_shot = sample_shots(source.dataset(), 1, 0, PROMPT)
    check_photos(source, [few_shot, few_shot])
    assert len(caplog.records) == 1
    assert f"1 {what}, such as '{part}/b/1.{suffix}' like '{other}/a/0.png': if these are copies" in caplog.text


def test_a_test_photo_that_is_a_validation_photo_is_told(photo_folder, caplog):
    source = open_source(str(photo_folder))
    few_shot = sample_shots(source.dataset(), 2, 0, PROMPT)
    shutil.copy(photo_folder / few_shot.val[0].key, photo_folder / few_shot.test[1].key)
    check_photos(source, [few_shot])
    assert f"'{few_shot.test[1].key}' like '{few_shot.val[0].key}'" in caplog.text
    assert "the choice of weights flatters" in caplog.text
