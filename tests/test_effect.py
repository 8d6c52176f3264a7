"""The embedded backbone shows what the method is for, with a wide margin and a fraction of the recipe's budget."""

from datadream import recipes
from datadream.experiment import Experiment


def test_drawn_images_alone_teach_clip_digits_it_did_not_know(local_ray, tmp_path):
    changes = {
        "adapt.steps_per_class": 20,
        "generate.images_per_class": 30,
        "classify.steps": 80,
        "classify.eval_every": 40,
        "classify.settings": ["zero-shot", "synthetic"],
        "cluster.workers": 2,
    }
    records = Experiment(recipes.digits(method="datadream-dset", **changes), str(tmp_path)).run()
    top1 = {record["setting"]: record["top1"] for record in records}
    assert 50 < top1["zero-shot"] < 80
    assert top1["synthetic"] > top1["zero-shot"] + 7
