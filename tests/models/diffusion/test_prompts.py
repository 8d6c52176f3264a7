"""Prompts that the generator's text encoder would cut, or could not tell apart, are named."""

import pytest

from datadream import recipes
from datadream.models.diffusion.prompts import check_templates, check_texts

TINY = recipes.digits().diffusion.model  # reads 24 tokens


def test_templates_that_fit_every_class_pass():
    check_templates(TINY, None, ["a photo of a {name}", "{name}"], ["cat", "dog"])


def test_a_template_that_is_too_long_with_a_class_is_named():
    template = "a photo of a {name}" + " on a plate"
    check_templates(TINY, None, [template], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"with class 'tiger .*' it has \d\d tokens, and the text encoder reads 24"):
        check_templates(TINY, None, ["{name}", template], ["cat", "tiger " * 5])


@pytest.mark.parametrize("other", ["Cat", "cat ", " cat"])
def test_classes_that_are_the_same_under_a_template_are_named(other):
    with pytest.raises(ValueError, match=f"'a {{name}}': classes 'cat' and '{other}' are the same"):
        check_templates(TINY, None, ["a {name}"], ["dog", "cat", other])


def test_texts_that_are_cut_are_warned_of(caplog):
    check_texts(TINY, None, ["a cat", "a dog on a plate"])
    assert not caplog.records
    check_texts(TINY, None, ["a cat", "a dog, and another one" * 5])
    (record,) = caplog.records
    assert record.getMessage().startswith("1 of 2 captions and descriptions are longer than the 24 tokens")
