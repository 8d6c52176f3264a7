"""Features are plain open_clip's, committed under their name."""

import open_clip
import pytest
import torch

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.generate.select.features import PROMPTS, FeatureEncoder, feature_units, read_features, shots_name
from datadream.methods import METHODS
from datadream.methods.chunks import split_into_chunks
from datadream.run.store import RunStore
from datadream.runtime.unit import pending
from tests.generate.candidates import commit_chunk
from tests.tiny_clip import save_tiny_clip


def test_features_are_those_of_plain_open_clip(tmp_path):
    clip = f"local-dir:{save_tiny_clip(tmp_path / 'clip')}"
    changes = {"classify.model": clip, "generate.images_per_class": 3, "generate.chunk_size": 2}
    config = recipes.digits(method="zero-shot", **changes)
    source = open_source("digits")
    few_shot = draw(source.dataset(), 2, 0, config.data.prompt)
    store = RunStore(str(tmp_path / "run"))
    chunks = split_into_chunks(store.url, METHODS["zero-shot"](few_shot, config).images, 2)
    generated = [source.read(photo.key) for photo in few_shot.test[:2]]
    commit_chunk(chunks[0], generated)

    encoder = FeatureEncoder(config, torch.device("cpu"))
    units = feature_units(store.url, few_shot, chunks[:1])
    for unit in units:
        encoder.commit(unit)

    model, _, preprocess = open_clip.create_model_and_transforms(clip)
    model.eval()
    with torch.no_grad():
        shots = model.encode_image(torch.stack([preprocess(source.read(key)) for key in few_shot.shots[4]]))
        images = model.encode_image(torch.stack([preprocess(image) for image in generated]))
        prompts = model.encode_text(open_clip.get_tokenizer(clip)(few_shot.prompts))
    for name, plain in ((shots_name(4), shots), (chunks[0].chunk_id, images), (PROMPTS, prompts)):
        ours = torch.from_numpy(read_features(store, name))
        torch.testing.assert_close(ours, torch.nn.functional.normalize(plain, dim=-1), rtol=1e-5, atol=1e-6)
    assert [unit.size for unit in units] == [0] * 11 + [2], "only candidates count as progress"
    assert store.markers("features") == {unit.payload.name for unit in units}
    assert not pending(units)


def test_a_chunk_that_is_gone_is_named(tmp_path):
    config = recipes.digits(**{"classify.model": f"local-dir:{save_tiny_clip(tmp_path / 'clip')}"})
    few_shot = draw(open_source("digits").dataset(), 1, 0, config.data.prompt)
    chunks = split_into_chunks(str(tmp_path), METHODS["zero-shot"](few_shot, config).images, 50)
    encoder = FeatureEncoder(config, torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match=r"chunks/00000-000000\.parquet"):
        encoder.commit(feature_units(str(tmp_path), few_shot, chunks[:1])[-1])
