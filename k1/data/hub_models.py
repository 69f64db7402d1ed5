"""Models on the Hugging Face hub, or their cached copies: waiting is bounded as in `k1.data.hub`."""

import time
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub

from k1.data.hub import HUB_ERRORS, HubClient, HubError, checked_cache, probe_hub
from k1.data.readers import reason
from k1.errors import K1Error

# No file that could hold code.
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model*.safetensors*")


def download_model(name: str, revision: str | None = None) -> Path:
    """The folder of the model `name` (`owner/name`) at `revision`, by default the newest, in the hub's cache.

    The name of the folder is the commit. Raises `K1Error` where neither the hub nor its local cache has the model.
    """
    HubClient.asked, HubClient.news, HubClient.problem = set(), time.monotonic(), None
    download = partial(huggingface_hub.snapshot_download, allow_patterns=FILES, endpoint=datasets.config.HF_ENDPOINT)
    problem = probe_hub(name, "model")
    if problem is None:
        try:
            with checked_cache(name, "model"):
                # One at a time, so that the limits on waiting are those of one download.
                return Path(download(name, revision=revision, max_workers=1))
        except HUB_ERRORS as error:
            problem = (None if isinstance(error, HubError) else HubClient.problem) or reason(error)
    try:
        return Path(download(name, revision=revision, local_files_only=True))
    except HUB_ERRORS:
        raise K1Error(
            f"the model {name} cannot be had: {problem.rstrip('.')}, and there is no cached copy; name another model, "
            f"or a folder that exists"
        )
