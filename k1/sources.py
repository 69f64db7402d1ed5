"""Where the text comes from: a preset, a dataset on the Hugging Face hub, or a local path."""

import functools
import glob
import hashlib
import inspect
import os
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetsError
from huggingface_hub.utils import RepositoryNotFoundError, httpx

from k1 import corpora
from k1.cache import cached
from k1.corpora import BUNDLED_CORPORA, bundled_documents, bundled_version
from k1.errors import K1Error

SPLITS = ("train", "validation", "test")
STREAMED_DOCUMENTS = 20_000
SECTION_CHARACTERS = 4_000
FEW_DOCUMENTS = 20
PROBE_SECONDS = 4

FORMATS = {
    ".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".json.gz": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text", ".md": "text", ".rst": "text", ".tex": "text", ".py": "text",
}  # fmt: skip

# What the libraries raise on bad data, and on a bad connection or a missing dataset.
DATA_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zlib.error, pa.ArrowException, DatasetsError)
HUB_ERRORS = (*DATA_ERRORS, KeyError, httpx.HTTPError, httpx.InvalidURL)

# They also log it, with each retry and each use of a cached copy; one line from here is enough.
datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)
huggingface_hub.utils.disable_progress_bars()
huggingface_hub.utils.logging.set_verbosity(huggingface_hub.utils.logging.CRITICAL)

warned: set[str] = set()  # presets whose fallback to the stand-in has been reported


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


@functools.cache
def scratch_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="k1-documents-")  # removed when the process ends


def write_splits(splits: dict[str, Iterable[str]], max_documents: int | None) -> dict[str, datasets.Dataset]:
    """Write the documents of each split to an Arrow file, so that they need not fit in memory."""
    written = {}
    for split, documents in splits.items():
        documents = (document for document in documents if document and not document.isspace())
        dataset = write_dataset(islice(documents, max_documents if split == "train" else None))
        if len(dataset) > 0:
            written[split] = dataset
    return written


def write_dataset(documents: Iterator[str]) -> datasets.Dataset:
    schema = pa.schema({"text": pa.string()})
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=scratch_folder().name)
    with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(documents, 100)):
            writer.write_table(pa.table({"text": batch}, schema))
    return datasets.Dataset.from_file(path)


def choose_column(features: datasets.Features, where: object) -> str:
    """The column "text", else "content", else the only one that holds text."""

    def holds_text(name: str) -> bool:
        return getattr(features[name], "dtype", None) in ("string", "large_string", "string_view")

    names = [name for name in ("text", "content") if name in features][:1] or list(filter(holds_text, features))
    if len(names) != 1:
        raise K1Error(f'{where}: columns are {", ".join(features)}; rename the one with the documents to "text"')
    if not holds_text(names[0]) and features[names[0]] != datasets.Value("null"):
        raise K1Error(f'{where}: column "{names[0]}" holds no text but {features[names[0]]}; put the documents there')
    return names[0]


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


def rows(dataset: datasets.Dataset | datasets.IterableDataset, columns: tuple[str, ...]) -> Iterator[str]:
    for batch in dataset.select_columns(list(columns)).iter(batch_size=100):
        for parts in zip(*(batch[column] for column in columns)):
            # A single column stays as it is: code may start with an indent.
            yield parts[0] or "" if len(parts) == 1 else "\n\n".join(part.strip() for part in parts if part)


def probe_hub(dataset_id: str) -> str | None:
    """Why the hub cannot serve the dataset, or None if it can; takes at most `PROBE_SECONDS`."""
    endpoint = datasets.config.HF_ENDPOINT
    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE)"
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


def cause(error: BaseException) -> BaseException:
    """The error behind a `DatasetGenerationError`, which itself says nothing."""
    return error.__cause__ or error if isinstance(error, DatasetGenerationError) else error


def reason(error: BaseException) -> str:
    return " ".join(str(cause(error)).split())[:300] or type(cause(error)).__name__


def local_splits(path: Path) -> dict[str, Iterable[str]]:
    if os.path.isfile(path / "dataset_dict.json") or os.path.isfile(path / "state.json"):
        return saved_splits(path)
    files = [path] if path.is_file() else folder_files(path)
    formats = {file_format(file): file for file in reversed(files)}
    if len(formats) > 1:
        examples = ", ".join(f"{kind} ({file.name})" for kind, file in sorted(formats.items()))
        raise K1Error(f"{path}: the folder mixes formats: {examples}; keep one format in a folder")
    documents = chain.from_iterable(map(file_documents, files))
    if "text" in formats:
        documents = (document for document in documents if not document.isspace())
        first = list(islice(documents, FEW_DOCUMENTS))
        # A few long texts must give enough documents to split into train, validation and test.
        if len(first) < FEW_DOCUMENTS:
            first = chain.from_iterable(map(cut_into_sections, first))
        documents = chain(first, documents)
    return {"train": documents}


def saved_splits(path: Path) -> dict[str, Iterable[str]]:
    """The splits of a folder written by `save_to_disk`."""
    try:
        saved = datasets.load_from_disk(str(path))
    except (*DATA_ERRORS, KeyError, TypeError) as error:
        raise K1Error(f"{path}: cannot be read as a saved dataset: {reason(error)}; save it again") from error
    if isinstance(saved, datasets.Dataset):
        saved = {"train": saved}
    if "train" not in saved:
        raise K1Error(f"{path}: there is no split train; it has {', '.join(saved)}; rename one to train")
    column = choose_column(saved["train"].features, path)
    return {name: rows(saved[name], (column,)) for name in SPLITS if name in saved}


def folder_files(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise K1Error(f"{error.filename}: cannot be listed: {error.strerror}; make it readable") from error

    if not folder.is_dir():
        raise K1Error(f"{folder}: neither a file nor a folder; use a path to text")
    files = []
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = sorted(filter(os.path.isfile, files))
    if not files:
        raise K1Error(f"{folder}: there is no file to read in this folder; put text files in it")
    return files


def file_format(path: Path) -> str:
    return next((kind for suffix, kind in FORMATS.items() if path.name.lower().endswith(suffix)), "text")


def file_documents(path: Path) -> Iterator[str]:
    """The documents of one file; bad data ends as a `K1Error` that names the file."""
    kind = file_format(path)
    try:
        if path.stat().st_size > 0:
            yield from read_text(path) if kind == "text" else read_table(path, kind)
    except DATA_ERRORS as error:
        if isinstance(error.__cause__, StopIteration) or "corresponds to no data" in str(error):
            return  # how `datasets` says that a file has no rows
        match cause(error):
            case PermissionError():
                problem = "permission denied; make the file readable"
            case UnicodeDecodeError() as bad:
                where = f" at byte {bad.start}" if kind == "text" else ""
                problem = f"not valid UTF-8: {bad.reason}{where}; save it as UTF-8"
            case _:
                problem = f"cannot be read as {kind}: {reason(error)}; mend or remove the file"
        raise K1Error(f"{path}: {problem}") from error


def read_text(path: Path) -> Iterator[str]:
    yield path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")


def read_table(path: Path, kind: str) -> Iterator[str]:
    options = {
        "json": {"parse_agent_traces": False},
        "csv": {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "keep_default_na": False, "na_values": [""]},
        "parquet": {},
    }
    # A cache of its own for each reading: a changed file is always read anew.
    with tempfile.TemporaryDirectory() as cache:
        # Escaped, as the name is taken for a pattern.
        data_files = {"train": glob.escape(str(path.absolute()))}
        loaded = datasets.load_dataset(kind, data_files=data_files, cache_dir=cache, **options[kind])
        for table in loaded.values():
            yield from rows(table, (choose_column(table.features, path),))


def cut_into_sections(text: str) -> Iterator[str]:
    """Cut at blank lines into sections of whole paragraphs, about `SECTION_CHARACTERS` long."""
    pieces = re.split(r"(\n(?:[ \t]*\n)+)", text)  # paragraph, blank lines, paragraph, ...
    section = pieces[0]
    for blank, paragraph in zip(pieces[1::2], pieces[2::2]):
        if section and len(section) + len(paragraph) > SECTION_CHARACTERS:
            yield section
            section = paragraph
        else:
            section += blank + paragraph
    yield section
