"""Where the text comes from: a preset, a dataset on the Hugging Face hub, or a local path."""

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import datasets
import pyarrow as pa

from k1.data import corpora
from k1.data.cache import SPLITS, stored
from k1.data.corpora import BUNDLED_CORPORA, bundled_documents, bundled_version
from k1.data.local_files import local_splits, with_text
from k1.data.messages import refusals, say_once
from k1.data.readers import COMPRESSIONS, FORMATS, rows
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


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub; the `columns` of a row, joined by a blank line, are its text."""

    id: str
    config: str | None = None
    columns: tuple[str, ...] = ()  # empty: that of `choose_text`
    is_streamed: bool = False  # too large to download whole
    rows_to_documents: Callable[[Iterable[str]], Iterable[str]] = iter

    def splits(self, max_documents: int) -> dict[str, datasets.Dataset]:
        """Load the splits, or the copies that `datasets` keeps; raises what that does, `ValueError` without train."""
        # The prefix keeps a folder of the same name in the working directory out.
        loaded = datasets.load_dataset(f"hf://datasets/{self.id}", self.config, streaming=self.is_streamed)
        if "train" not in loaded:
            raise ValueError(f"it has no split train, only {', '.join(loaded)}")
        splits = {}
        for split in ("train",) if self.is_streamed else SPLITS:
            if split in loaded:
                documents = self.rows_to_documents(text or "" for text in rows(loaded[split], self.id, self.columns))
                most = max_documents if split == "train" else None
                splits[split] = stored("text", pa.string(), with_text(documents, self.id, most))
        return splits


PRESETS = {
    "wikitext": HubSource("Salesforce/wikitext", "wikitext-2-raw-v1", ("text",), False, wikitext_articles),
    "code": HubSource("codeparrot/codeparrot-clean-valid", columns=("content",)),
    "science": HubSource("CShorten/ML-ArXiv-Papers", columns=("title", "abstract")),
    "openwebtext": HubSource("Skylion007/openwebtext", columns=("text",), is_streamed=True),
    "math": HubSource("open-web-math/open-web-math", columns=("text",), is_streamed=True),
    "stories": HubSource("roneneldan/TinyStories", columns=("text",), is_streamed=True),
}


def load_documents(
    dataset_name: str, data_source: str = "auto", max_documents: int = 20_000
) -> tuple[dict[str, datasets.Dataset], str]:
    """Load the documents of a preset, a local file or folder, or a hub dataset `owner/name[:config]`.

    Returns `(documents, source)`. `documents` has the split "train" and, if the
    source has its own, "validation" and "test", each with the one column "text": one
    row a document, none blank. `source` is "hub", "bundled" or "local". `data_source`
    is "hub" (or its local cache), "bundled" (a preset's stand-in), or "auto": the hub,
    else the stand-in with a warning on stderr; local paths ignore it. `max_documents`
    limits the training documents.

    Raises `K1Error` for an unknown name or missing path, for text that cannot be had
    from the hub, and for a file that is unreadable, malformed or without text.
    """
    if dataset_name in PRESETS:
        splits, source = hub_or_bundled(dataset_name, PRESETS[dataset_name], data_source, max_documents)
    elif os.path.exists(path := os.path.expanduser(dataset_name)):
        splits, source = local_splits(Path(path), max_documents), "local"
    elif dataset_name.startswith((".", "~", "/")) or dataset_name.lower().endswith((*FORMATS, *COMPRESSIONS)):
        raise K1Error(f"{dataset_name}: no such file or folder; check the path")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", dataset_name):
        name, _, config = dataset_name.partition(":")
        splits, source = hub_or_bundled(dataset_name, HubSource(name, config or None), data_source, max_documents)
    else:
        raise K1Error(
            f'unknown dataset "{dataset_name}": no such path exists; use one of the presets '
            f"{', '.join(PRESETS)}, a path, or a hub id of the form owner/name"
        )
    splits = {split: documents for split, documents in splits.items() if len(documents)}
    if "train" not in splits:
        raise K1Error(f"{dataset_name}: there is no non-empty document in it; use a source with text")
    return splits, source


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
    name: str, hub: HubSource, data_source: str, max_documents: int
) -> tuple[dict[str, datasets.Dataset], str]:
    """Load a dataset from the hub, or the bundled text if that is asked for or, with "auto", if the hub fails."""
    has_bundled = name in BUNDLED_CORPORA
    if data_source != "bundled":
        advice = f"mend this or use {'--data_source bundled' if has_bundled else 'a local path'}"
        try:
            with refusals(f"{name} cannot be loaded from the hub", advice):
                return hub.splits(max_documents), "hub"
        except K1Error as error:
            if data_source == "hub" or not has_bundled:
                raise
            say_once(f"warning: the bundled text is used, as {error}")
    elif not has_bundled:
        raise K1Error(f"{name} has no bundled text; use --data_source hub or a local path")
    # Read from its package once and then from the cache.
    identity = hashlib.sha256(f"{name}, {bundled_version(name)}, {inspect.getsource(corpora)}".encode()).hexdigest()
    documents = stored("text", pa.string(), bundled_documents(name), f"documents-{name}-{identity[:16]}")
    return {"train": documents.select(range(min(max_documents, len(documents))))}, "bundled"
