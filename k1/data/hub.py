"""Datasets and models on the Hugging Face hub, or the copies of them that its libraries keep."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from k1.data.cache import SPLITS, write_splits
from k1.data.messages import quiet_libraries
from k1.data.readers import choose_text, reason, rows
from k1.errors import K1Error

STREAMED_DOCUMENTS = 20_000
# Of a model; none of them could hold code.
MODEL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model*.safetensors*",
)  # fmt: skip


class HubError(Exception):
    """A dataset could be had neither from the hub nor from its local cache; the message is the reason."""


class MissingPart(ValueError):
    """A dataset of the hub has no split train, or not the columns that are asked for."""


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub; the `columns` of a row, joined by a blank line, are its text."""

    id: str
    config: str | None = None
    columns: tuple[str, ...] = ()  # empty: chosen by `choose_text`
    streamed: bool = False  # too large to download whole
    rows_to_documents: Callable[[Iterable[str]], Iterable[str]] = iter


def hub_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise if there is no connection, no access or no such data."""
    # Not before it is needed, as older versions of huggingface_hub have another client.
    from huggingface_hub.utils import httpx

    return OSError, ValueError, RuntimeError, KeyError, httpx.HTTPError, DatasetsError, pa.ArrowException


def hub_splits(source: HubSource, max_documents: int | None) -> dict[str, datasets.Dataset]:
    """Load the splits from the hub, else from its local cache; raises `HubError` with the hub's reason."""
    try:
        # Asked once and first: the libraries would try each file six times.
        huggingface_hub.HfApi().dataset_info(source.id, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return read_hub(source, max_documents)
    except MissingPart as error:
        raise HubError(explain(error, f"dataset {source.id}")) from error
    except hub_errors() as error:
        problem = explain(error, f"dataset {source.id}")
    try:
        with offline():
            return read_hub(source, max_documents)
    except hub_errors() as error:
        raise HubError(problem) from error


def read_hub(source: HubSource, max_documents: int | None) -> dict[str, datasets.Dataset]:
    """Load the splits by `datasets`; raises what it raises, and `MissingPart` if split train or a column is missing."""
    with quiet_libraries():
        # The hf:// prefix keeps a folder of the same name in the working directory out.
        loaded = datasets.load_dataset(f"hf://datasets/{source.id}", source.config, streaming=source.streamed)
        if "train" not in loaded:
            raise MissingPart(f"it has no split train, only {', '.join(loaded)}")
        if source.streamed:
            loaded, max_documents = {"train": loaded["train"]}, max_documents or STREAMED_DOCUMENTS
        columns = source.columns or (choose_text(loaded["train"].features.arrow_schema, source.id),)
        found = loaded["train"].column_names
        if found and not set(columns) <= set(found):
            raise MissingPart(f"it has no column {' or '.join(columns)}, only {', '.join(found)}")
        splits = {name: source.rows_to_documents(rows(loaded[name], columns)) for name in SPLITS if name in loaded}
        return write_splits(splits, max_documents)


def download_model(name: str, revision: str | None = None) -> Path:
    """Return the folder of the model `name` (`owner/name`) at `revision`, by default the newest, in the hub's cache.

    The name of the folder is the commit. Raises `K1Error` if neither the hub nor its local cache has the model.
    """
    try:
        with quiet_libraries():
            return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES))
    except hub_errors() as error:
        problem = explain(error, f"model {name}")
        raise K1Error(f"the model {name} cannot be had: {problem}; mend this, or name a folder that exists") from error


def explain(error: BaseException, what: str) -> str:
    """Say in one line why `what` could not be had from the hub."""
    from huggingface_hub.utils import httpx

    causes = (error, error.__cause__)
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return "offline mode is on (HF_HUB_OFFLINE), and there is no cached copy"
    if any(isinstance(cause, httpx.TransportError) for cause in causes):
        return (
            f"the connection to {constants.ENDPOINT} failed ({reason(causes[1] or error)}), and there is no cached copy"
        )
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return f"there is no {what}, or it is private; check the name, or log in with: hf auth login"
    return reason(error).rstrip(".")


@contextmanager
def offline() -> Iterator[None]:
    """Let the libraries take their cached copies at once, without asking the hub; as before afterwards."""
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
