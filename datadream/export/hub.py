"""Push a run's published dataset to the Hugging Face Hub: one shard in memory at a time, one commit at the end."""

from __future__ import annotations

import posixpath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from datadream.run.cell import images_store, where_cells_are
from datadream.run.config_record import recorded_config
from datadream.run.layout import CARD, DATASET, DatasetMarker, shard_file
from datadream.run.store import RunStore


def check_push(store: RunStore, repository: str) -> RunStore:
    """The run whose dataset it is: another one where this takes its images from there.

    Raises ValueError when nothing is published, or `repository` cannot be a name on the Hub; asks no server.
    """
    # Only where there is none: a config may be another version's, and is not needed for what lies here.
    config = None if store.exists(DATASET) else recorded_config(store)
    store = images_store(store, config) if config else store
    if not store.exists(DATASET):
        cells = where_cells_are(config) if config else ""
        raise ValueError(f"run {store.url!r} has no dataset to push: {DATASET} is missing. Run generate first.{cells}")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no name on the Hub: {_reason(error)} Give OWNER/NAME.") from None
    return store


def push_dataset(store: RunStore, repository: str, private: bool = True) -> str:
    """Upload shards and card to the dataset repository OWNER/NAME, made if it is not there; returns its URL.

    `private` decides for a new repository only; shards of another dataset are removed from one that is there. A push
    that was cut short is made again: what the Hub has is not sent twice. Raises ValueError as `check_push` does, or
    when the Hub refuses; RuntimeError when it cannot be reached.
    """
    store = check_push(store, repository)
    card, shards = posixpath.basename(CARD), DatasetMarker.from_json(store.read_json(DATASET)).shards
    api, additions = HfApi(), []
    try:
        url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        for name in (card, *shards):
            addition = CommitOperationAdd(name, store.read_bytes(shard_file(name)))
            # The Hub takes the bytes now and drops them from memory; the commit at the end names them all at once.
            api.preupload_lfs_files(url.repo_id, [addition], repo_type="dataset")
            additions.append(addition)
        # Shards of an earlier dataset go in the same commit: readers would take them for this one's.
        there = api.list_repo_files(url.repo_id, repo_type="dataset")
        stale = [name for name in there if name.startswith("data/") and name not in shards]
        commit = [*additions, *map(CommitOperationDelete, stale)]
        api.create_commit(url.repo_id, commit, commit_message="Publish the dataset", repo_type="dataset")
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ValueError(
            f"the Hub refuses {repository!r}: {_reason(error)} Give OWNER/NAME, and a token that may write there: "
            "`hf auth login`, or HF_TOKEN."
        ) from None
    except HTTPError as error:  # of which the Hub's refusals are a kind
        raise RuntimeError(f"the Hub cannot be reached: {error}") from None
    return str(url)


def _reason(error: Exception) -> str:
    """The Hub's own words, or its first line."""
    said = getattr(error, "server_message", None) or str(error).strip().splitlines()[0]
    return said.strip().rstrip(".") + "."
