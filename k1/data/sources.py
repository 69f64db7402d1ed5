"""Where the text comes from: a preset, a dataset on the Hugging Face hub, or a local path."""

import functools
import hashlib
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import datasets

from k1.data import corpora, docstrings, wiki_markup
from k1.data.cache import cached, write_splits
from k1.data.corpora import BUNDLED_CORPORA, bundled_documents, bundled_version
from k1.data.hub import HubError, HubSource, hub_splits
from k1.data.local_files import local_splits
from k1.data.messages import say_once
from k1.data.readers import COMPRESSIONS, FORMATS
from k1.errors import K1Error


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

    Returns `(documents, source)`. `documents` has the split "train" and, if the
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
        splits, source = local_splits(Path(path), max_documents), "local"
    elif dataset_name.startswith((".", "~", "/")) or dataset_name.lower().endswith((*FORMATS, *COMPRESSIONS)):
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


def dataset_labels(names: Iterable[str]) -> list[str]:
    """How datasets are called in tables: a local one by the end of its path, as far back as it differs from all others.

    A file name may hold line breaks and what no text may; the replacement character stands for them.
    """
    parts = {name: Path(name).parts for name in names}
    labels = []
    for name, own in parts.items():
        label = name
        if Path(name).is_absolute():
            others = [found for other, found in parts.items() if other != name]
            length = next(n for n in count(1) if all(found[-n:] != own[-n:] for found in others))
            label = str(Path(*own[-length:]))
        labels.append("".join(character if character.isprintable() else "\ufffd" for character in label))
    return labels


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
            say_once(f"warning: {name}: using the bundled stand-in text, as the hub failed: {error}")
    elif name not in BUNDLED_CORPORA:
        raise K1Error(f"{name} has no bundled text; use --data_source hub or a local path")
    documents = bundled_corpus(name)
    return {"train": documents.select(range(min(max_documents or len(documents), len(documents))))}, "bundled"


def bundled_corpus(name: str) -> datasets.Dataset:
    """A bundled corpus, read from its package once and then from the cache."""
    code = "".join(map(inspect.getsource, (corpora, wiki_markup, docstrings)))
    identity = f"{name}, {bundled_version(name)}, {code}"
    key = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    build = functools.partial(write_splits, {"train": bundled_documents(name)}, None)
    return cached("documents", key, lambda: datasets.DatasetDict(build()))["train"]
