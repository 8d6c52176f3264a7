"""A run's folder on every kind of file system."""

import pytest

from datadream.run.store import RunStore
from tests.object_store import s3_server


@pytest.fixture(scope="package")
def bucket():
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path) -> RunStore:
    if request.param == "s3":
        return RunStore(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/run")
    return RunStore(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run")
