"""Where the text comes from: a preset, a dataset on the Hugging Face hub, or a local path."""

import functools
import hashlib
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
from huggingface_hub.utils import RepositoryNotFoundError, httpx

from k1 import corpora
from k1.cache import cached, write_dataset
from k1.corpora import BUNDLED_CORPORA, bundled_documents, bundled_version
from k1.errors import K1Error
from k1.local_files import DATA_ERRORS, FORMATS, SPLITS, choose_column, local_splits, reason, rows

STREAMED_DOCUMENTS = 20_000
PROBE_SECONDS = 4

# What the libraries raise on a bad connection or a missing dataset.
HUB_ERRORS = (*DATA_ERRORS, KeyError, httpx.HTTPError, httpx.InvalidURL)

# They also log it, with each retry and each use of a cached copy; one line from here is enough.
datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)
huggingface_hub.utils.disable_progress_bars()
huggingface_hub.utils.logging.set_verbosity(huggingface_hub.utils.logging.CRITICAL)

warned: set[str] = set()  # presets whose fallback to the stand-in has been reported
silent: set[str] = set()  # endpoints that did not answer; asking again for each dataset would add up


class HubError(Exception):
    """A dataset could be had neither from the hub nor from its local cache; the message is the reason."""


def wikitext_articles(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of WikiText into articles; ` = Title = ` starts one, and headings are left out."""
    article: list[str] = []
    for line in map(str.strip, lines):
        heading = line.startswith("= ") and line.endswith(" =")
        if heading and not line.startswith("= ="):
            yield "\n".join(article)
            article = []
        elif line and not heading:
            article.append(line)
    yield "\n".join(article)


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub; the `columns` of a row, joined by a blank line, are its text."""

    id: str
    config: str | None = None
    columns: tuple[str, ...] = ()  # empty: chosen by `choose_column`
    streamed: bool = False  # too large to download whole
    rows_to_documents: Callable[[Iterable[str]], Iterable[str]] = iter


PRESETS = {
    "wikitext": HubSource("Salesforce/wikitext", "wikitext-2-raw-v1", ("text",), False, wikitext_articles),
    "code": HubSource("codeparrot/codeparrot-clean-valid", columns=("content",)),
    "science": HubSource("CShorten/ML-ArXiv-Papers", columns=("title", "abstract")),
    "openwebtext": HubSource("Skylion007/openwebtext", columns=("text",), streamed=True),
    "math": HubSource("open-web-math/open-web-math", columns=("text",), streamed=True),
    "stories": HubSource("roneneldan/TinyStories", columns=("text",), streamed=True),
}


def load_documents(
    dataset_name: str, data_source: str = "auto", max_documents: int | None = None
) -> tuple[datasets.DatasetDict, str]:
    """Load the documents of a preset, a local file or folder, or a hub dataset `owner/name[:config]`.

    Returns `(documents, source)`. `documents` has the split "train" and, where the
    source has its own, "validation" and "test", each with the one column "text": one
    row a document, none blank. `source` is "hub", "bundled" or "local". `data_source`
    is "hub" (or its local cache), "bundled" (a preset's stand-in), or "auto": the hub,
    else the stand-in with a warning on stderr; local paths ignore it. `max_documents`
    limits the training documents; a streamed preset gives 20,000 if it is None.

    Raises `K1Error` for an unknown name or missing path, for text that cannot be had
    from the hub, and for a file that is unreadable, malformed or without text.
    """
    if data_source not in ("auto", "hub", "bundled"):
        raise K1Error(f'data source "{data_source}" is unknown; use auto, hub or bundled')
    if max_documents is not None and max_documents < 1:
        raise K1Error(f"max_documents is {max_documents}; use 1 or more")

    if dataset_name in PRESETS:
        splits, source = hub_or_bundled(dataset_name, PRESETS[dataset_name], data_source, max_documents)
    elif os.path.exists(path := os.path.expanduser(dataset_name)):
        splits, source = write_splits(local_splits(Path(path)), max_documents), "local"
    elif dataset_name.startswith((".", "~", "/")) or dataset_name.lower().endswith(tuple(FORMATS)):
        raise K1Error(f"{dataset_name}: no such file or folder; check the path")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", dataset_name):
        splits, source = hub_or_bundled(dataset_name, HubSource(*dataset_name.split(":")), data_source, max_documents)
    else:
        raise K1Error(
            f'unknown dataset "{dataset_name}": no such path exists; use one of the presets '
            f"{', '.join(PRESETS)}, a path, or a hub id of the form owner/name"
        )
    if "train" not in splits:
        raise K1Error(f"{dataset_name}: there is no non-empty document in it; use a source with text")
    return datasets.DatasetDict(splits), source


def hub_or_bundled(
    name: str, hub: HubSource, data_source: str, max_documents: int | None
) -> tuple[dict[str, datasets.Dataset], str]:
    if data_source != "bundled":
        try:
            return hub_splits(hub, max_documents), "hub"
        except HubError as error:
            if data_source == "hub" or name not in BUNDLED_CORPORA:
                advice = "use --data_source bundled" if name in BUNDLED_CORPORA else "use a local path"
                raise K1Error(f"{name} cannot be loaded from the hub: {error}; mend this or {advice}") from error
            if name not in warned:
                print(f"warning: {name}: using the bundled stand-in text, as the hub failed: {error}", file=sys.stderr)
                warned.add(name)
    elif name not in BUNDLED_CORPORA:
        raise K1Error(f"{name} has no bundled text; use --data_source hub or a local path")
    documents = bundled_corpus(name)
    return {"train": documents.select(range(min(max_documents or len(documents), len(documents))))}, "bundled"


def bundled_corpus(name: str) -> datasets.Dataset:
    """A bundled corpus, read from its package once and then from the cache."""
    identity = f"{name}, {bundled_version(name)}, {inspect.getsource(corpora)}"
    key = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    build = functools.partial(write_splits, {"train": bundled_documents(name)}, None)
    return cached("documents", key, lambda: datasets.DatasetDict(build()))["train"]


def write_splits(splits: dict[str, Iterable[str]], max_documents: int | None) -> dict[str, datasets.Dataset]:
    """Write the documents of each split to an Arrow file, so that they need not fit in memory."""
    written = {}
    for split, documents in splits.items():
        documents = (document for document in documents if document and not document.isspace())
        dataset = write_dataset("text", pa.string(), islice(documents, max_documents if split == "train" else None))
        if len(dataset) > 0:
            written[split] = dataset
    return written


def hub_splits(source: HubSource, max_documents: int | None) -> dict[str, datasets.Dataset]:
    unreachable = probe_hub(source.id)
    try:
        with offline() if unreachable else nullcontext():
            # The hf:// prefix keeps a folder of the same name in the working directory out.
            loaded = datasets.load_dataset(
                f"hf://datasets/{source.id}",
                source.config,
                split="train" if source.streamed else None,
                streaming=source.streamed,
            )
        if source.streamed:
            loaded, max_documents = {"train": loaded}, max_documents or STREAMED_DOCUMENTS
        if "train" not in loaded:
            raise K1Error(f"{source.id} has no split train; it has {', '.join(loaded)}")
        columns = source.columns or (choose_column(loaded["train"].features, source.id),)
        return write_splits(
            {name: source.rows_to_documents(rows(loaded[name], columns)) for name in SPLITS if name in loaded},
            max_documents,
        )
    except HUB_ERRORS as error:
        raise HubError(f"{unreachable}, and there is no cached copy" if unreachable else reason(error)) from error


def probe_hub(dataset_id: str) -> str | None:
    """Why the hub cannot serve the dataset, or None if it can; takes at most `PROBE_SECONDS`."""
    endpoint = datasets.config.HF_ENDPOINT
    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE)"
    if endpoint in silent:
        return f"no answer from {endpoint} within {PROBE_SECONDS} s"
    errors: list[Exception | None] = []

    def probe() -> None:
        try:
            huggingface_hub.HfApi(endpoint=endpoint).dataset_info(dataset_id, timeout=PROBE_SECONDS)
            errors.append(None)
        except Exception as error:  # whatever it is, the caller's thread reports it
            errors.append(error)

    # A thread bounds the whole request: the client's timeout covers neither DNS nor a slow trickle.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if not errors or isinstance(errors[0], httpx.TimeoutException):
        silent.add(endpoint)
        return f"no answer from {endpoint} within {PROBE_SECONDS} s"
    if isinstance(errors[0], RepositoryNotFoundError):
        return f"{endpoint} has no public dataset {dataset_id}"
    if isinstance(errors[0], httpx.NetworkError):
        return f"no connection to {endpoint} ({reason(errors[0])})"
    return reason(errors[0]) if errors[0] else None


@contextmanager
def offline() -> Iterator[None]:
    """Make `datasets` take its cached copy at once, without the hub client's retries."""
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
