"""Model ids resolve, and wrong ones are told without loading anything."""

import json

import pytest

from datadream.models.source import check_pipeline, resolve


def test_package_ids_resolve_inside_the_package():
    assert resolve("package://datadream/models").endswith("datadream/models")
    assert resolve("owner/name") == "owner/name"
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere'"):
        resolve("package://datadream/nowhere")
    with pytest.raises(FileNotFoundError, match="no installed package 'nosuch'"):
        resolve("package://nosuch/x")


def test_pipelines_are_recognised(pipeline_folder, tmp_path):
    check_pipeline(str(pipeline_folder), None)
    with pytest.raises(ValueError, match="no diffusers pipeline: it has no model_index.json"):
        check_pipeline(str(tmp_path), None)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="is a FluxPipeline"):
        check_pipeline(str(tmp_path), None)
