"""What the workers of a joined cluster need to reach the stores and the Hub: the driver's own variables for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the driver of a job, whose workers have what the job's runtime_env says."""
S3 = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
# No variable that names a file of keys: workers have other files.
GOOGLE = ("GCSFS_DEFAULT_PROJECT", "STORAGE_EMULATOR_HOST")
AZURE = tuple(
    f"AZURE_STORAGE_{name}"
    for name in (
        "ACCOUNT_NAME",
        "ACCOUNT_KEY",
        "CONNECTION_STRING",
        "SAS_TOKEN",
        "CLIENT_ID",
        "CLIENT_SECRET",
        "TENANT_ID",
    )
)
HUB = ("HF_TOKEN", "HF_ENDPOINT")
VARIABLES = {
    **dict.fromkeys(("s3", "s3a"), S3),
    **dict.fromkeys(("gs", "gcs"), GOOGLE),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), AZURE),
    "hf": HUB,
}
"""By the scheme of a URL: variables that s3fs, gcsfs, adlfs and huggingface_hub read."""


def credentials(locations: Iterable[str]) -> dict[str, str]:
    """The variables that these locations (URLs, paths, ids of the Hub) are reached with, as far as they are set.

    Ray shows a job's variables to whoever reads its dashboard or its nodes' logs, so nothing goes that is not needed:
    nothing for a local path, and nothing in a job.
    """
    if OF_A_JOB in os.environ:
        return {}
    wanted: set[str] = set()
    for location in locations:
        if os.path.isabs(location) or Path(location).exists():
            continue
        # fsspec chains URLs, such as simplecache::s3://bucket/photos.
        schemes = {link.partition("://")[0] for link in location.split("::") if "://" in link}
        # What has a slash and is neither a URL nor a path is an id of the Hub.
        schemes |= {"hf"} if not schemes and "/" in location else set()
        wanted.update(*(VARIABLES.get(scheme, ()) for scheme in schemes))
    return {name: os.environ[name] for name in sorted(wanted) if name in os.environ}
