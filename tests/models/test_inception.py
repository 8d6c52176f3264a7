"""The network of the original FID, where torch-fidelity is installed, with random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from datadream.models.features import image_features
from datadream.models.inception import check_inception, load_inception


def test_features_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    weights = str(tmp_path / "weights.pth")
    with monkeypatch.context() as patch:  # it has no way to be made without weights
        patch.setattr(module, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), weights)
    check_inception(weights)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), dtype=np.uint8)
    prepare, encode = load_inception(weights, "cpu")
    ours = image_features([lambda row=row: Image.fromarray(pixels[row]) for row in (0, 1)], prepare, encode, "cpu")
    (plain,) = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert ours.shape == (2, 2048)
    torch.testing.assert_close(torch.from_numpy(ours), plain)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("datadream.models.inception.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'torch-fidelity"):
        check_inception(None)
    monkeypatch.setattr("datadream.models.inception.find_spec", lambda name: True)
    with pytest.raises(FileNotFoundError, match="no file of Inception weights at '/nowhere'"):
        check_inception("/nowhere")


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return print, ("it ran",)


def test_weights_that_would_run_code_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datadream.models.inception.find_spec", lambda name: True)
    torch.save(Code(), tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("code.pth", "text.pth"):
        with pytest.raises(ValueError, match="holds no weights, or more than weights"):
            check_inception(str(tmp_path / name))
    assert capsys.readouterr().out == ""
