"""Datasets on the Hugging Face hub, or their cached copies, with bounded waiting and checked downloads."""

import functools
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import datasets
import huggingface_hub
from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, hf_raise_for_status, httpx

from k1.data.cache import SPLITS, write_splits
from k1.data.readers import DATA_ERRORS, choose_column, reason, rows

STREAMED_DOCUMENTS = 20_000
PROBE_SECONDS = 4
ANSWER_SECONDS = 10  # for one try of a request, or between two pieces of its answer
SILENCE_SECONDS = 40  # for all tries together, without anything new
# An answer may take SILENCE_SECONDS in all, and a second more for each so many bytes that it has brought.
SLOWEST_BYTES = 10_000


class HubError(Exception):
    """A dataset could be had neither from the hub nor from its local cache; the message is the reason."""


# What the libraries raise on a bad connection or a missing dataset.
HUB_ERRORS = (*DATA_ERRORS, KeyError, HubError, httpx.HTTPError, httpx.InvalidURL)
# They also log it, with each retry and each use of a cached copy; one line from here is enough.
for library in (datasets, huggingface_hub.utils):
    library.disable_progress_bars()
    library.logging.set_verbosity(library.logging.CRITICAL)
# They retry in two layers; one is enough.
for setting in [name for name in vars(datasets.config) if name.startswith("STREAMING_")]:
    setattr(datasets.config, setting, 1 if setting.endswith("MAX_RETRIES") else 0)
# Xet brings a client of its own, whose retries take minutes.
huggingface_hub.constants.HF_HUB_DISABLE_XET = True
silent: dict[str, str] = {}  # how endpoints did not answer; asking again for each dataset would add up


class HubClient(httpx.Client):
    """The HTTP client of the libraries, which raises `HubError` when it has to wait for too long.

    That is `SILENCE_SECONDS` without anything new, where the libraries would go on for minutes: new is a complete
    answer, or else what follows one to another request. Or it is a server that trickles: see `SLOWEST_BYTES`.
    """

    asked: set[tuple] = set()  # by all clients, as the libraries replace theirs after a failed connection
    news = 0.0  # when something new came last
    problem: str | None = None  # of the last request

    def send(self, request: httpx.Request, *, stream: bool = False, **options) -> httpx.Response:
        state, now = HubClient, time.monotonic()
        question = request.method, request.url, request.headers.get("range")
        if state.problem is None and question not in state.asked:
            state.news = now
        state.asked.add(question)
        left = min(ANSWER_SECONDS, state.news + SILENCE_SECONDS - now)
        if left <= 0:
            give_up(state.problem or f"the data breaks off, at {request.url}")
        limits = request.extensions["timeout"]
        request.extensions["timeout"] = {step: min(limits[step] or left, left) for step in limits}
        try:
            response = in_time(functools.partial(super().send, request, stream=True, **options), left)
            response.stream = Pieces(response.stream, request.url)
            if not stream:
                response.read()
        except httpx.TransportError as error:
            state.problem = f"{reason(error)}, at {request.url}"
            raise
        is_problem = response.is_error and response.status_code != 404  # optional files may be missing
        state.problem = f"{response.status_code} {response.reason_phrase}, at {request.url}" if is_problem else None
        if response.status_code == 429:
            hf_raise_for_status(response)  # the libraries would wait as long as the hub asks them to
        if not is_problem and not stream:
            state.news = time.monotonic()
        return response


class Pieces(httpx.SyncByteStream):
    """The body of an answer from `url`, piece by piece; raises `HubError` where it trickles, see `SLOWEST_BYTES`."""

    def __init__(self, body: httpx.SyncByteStream, url: httpx.URL) -> None:
        self.body, self.url = body, url

    def __iter__(self) -> Iterator[bytes]:
        deadline = time.monotonic() + SILENCE_SECONDS
        for piece in self.body:
            came = time.monotonic()
            deadline += len(piece) / SLOWEST_BYTES
            if came > deadline:
                give_up(f"the data trickles, at {self.url}")
            yield piece
            # What the reader does with a piece is not the server's time.
            deadline += time.monotonic() - came

    def close(self) -> None:
        self.body.close()


def give_up(problem: str) -> NoReturn:
    """Raises `HubError`, and for what is asked of this endpoint later, too."""
    silent[datasets.config.HF_ENDPOINT] = HubClient.problem = problem
    raise HubError(problem)


def in_time(send: Callable[[], httpx.Response], seconds: float) -> httpx.Response:
    """What `send` returns or raises; a `ReadTimeout` if it takes longer: the client's own are for each step of it.

    So a name that is not resolved, headers that trickle and redirects are bounded as well.
    """
    answer: Future[httpx.Response] = Future()

    def run() -> None:
        try:
            answer.set_result(send())
        except BaseException as error:  # whatever it is, it is raised where the answer is waited for
            answer.set_exception(error)

    # An executor would wait for the thread when the process ends.
    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        raise httpx.ReadTimeout("timed out") from error


huggingface_hub.set_client_factory(
    functools.partial(HubClient, event_hooks=huggingface_hub.get_session().event_hooks, follow_redirects=True)
)


class CheckedDownloads(datasets.DownloadManager):
    """Downloads that are compared with what the hub states of them, see `forget_damaged`."""

    def download(self, url_or_urls: object) -> object:
        downloaded = super().download(url_or_urls)
        forget_damaged({url: Path(path) for url, path in self.downloaded_paths.items()})
        return downloaded


def forget_damaged(files: dict[str, Path]) -> None:
    """Remove those of `files`, by name, that are damaged in the hub's cache, and raise `HubError` if there are any."""
    if damaged := [name for name in files if is_damaged(files[name].resolve())]:
        for name in damaged:
            files[name].resolve().unlink(missing_ok=True)
        raise HubError(f"wrong checksum of {damaged[0]}, so it was damaged on its way")


def is_damaged(file: Path) -> bool:
    """Whether a file in the hub's cache is not what its name says, which is the ETag that the hub states.

    That is the SHA-256 of a large file, and Git's SHA-1 of a small one, which covers its size, too.
    """
    git_header = b"blob %d\0" % file.stat().st_size
    digests = {64: hashlib.sha256(), 40: hashlib.sha1(git_header, usedforsecurity=False)}
    if file.parent.name != "blobs" or len(file.name) not in digests:
        return False
    with open(file, "rb") as content:
        return hashlib.file_digest(content, lambda: digests[len(file.name)]).hexdigest() != file.name


@contextmanager
def checked_cache(repository: str, kind: str = "dataset") -> Iterator[None]:
    """Check what the hub's cache of a repository gains within the context, whether or not it can be made use of."""
    folder = Path(
        huggingface_hub.constants.HF_HUB_CACHE,
        huggingface_hub.file_download.repo_folder_name(repo_id=repository, repo_type=kind),
        "snapshots",
    )

    def files() -> set[Path]:
        return {path for path in folder.rglob("*") if path.is_file()}

    before = files()
    try:
        yield
    finally:
        forget_damaged({path.name: path for path in files() - before})


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub; the `columns` of a row, joined by a blank line, are its text."""

    id: str
    config: str | None = None
    columns: tuple[str, ...] = ()  # empty: chosen by `choose_column`
    streamed: bool = False  # too large to download whole
    rows_to_documents: Callable[[Iterable[str]], Iterable[str]] = iter


def hub_splits(source: HubSource, max_documents: int | None) -> dict[str, datasets.Dataset]:
    """The splits from the hub, else from its local cache."""
    HubClient.asked, HubClient.news, HubClient.problem = set(), time.monotonic(), None
    problem = probe_hub(source.id)
    if problem is None:
        try:
            return read_hub(source, max_documents)
        except HUB_ERRORS as error:
            if isinstance(error, ValueError) and not source.columns:
                raise HubError(reason(error)) from error  # no cached copy of another configuration
            # After a damaged file the libraries ask elsewhere, which may have a problem of its own.
            problem = (None if isinstance(error, HubError) else HubClient.problem) or reason(error)
    try:
        with offline():
            return read_hub(source, max_documents)
    except HUB_ERRORS as error:
        raise HubError(f"{problem.rstrip('.')}, and there is no cached copy") from error


def read_hub(source: HubSource, max_documents: int | None) -> dict[str, datasets.Dataset]:
    # The hf:// prefix keeps a folder of the same name in the working directory out.
    with checked_cache(source.id):  # the README, which says what the files are
        builder = datasets.load_dataset_builder(f"hf://datasets/{source.id}", source.config)
    is_new = not os.path.exists(builder.cache_dir)
    if source.streamed:
        # It is read in parts, which cannot be checked: what the hub states is of whole files.
        loaded, max_documents = {"train": builder.as_streaming_dataset("train")}, max_documents or STREAMED_DOCUMENTS
    else:
        downloads = CheckedDownloads(builder.dataset_name, base_path=builder.base_path)
        builder.download_and_prepare(dl_manager=downloads)
        loaded = builder.as_dataset()
    if "train" not in loaded:
        raise HubError(f"{source.id} has no split train; it has {', '.join(loaded)}")
    columns = source.columns or (choose_column(loaded["train"].features, source.id),)
    splits = {name: source.rows_to_documents(rows(loaded[name], columns)) for name in SPLITS if name in loaded}
    try:
        return write_splits(splits, max_documents)
    except (KeyError, ValueError):
        if is_new:  # without the columns it would hide an older copy that has them
            shutil.rmtree(builder.cache_dir, ignore_errors=True)
        raise


def probe_hub(repository: str, kind: str = "dataset") -> str | None:
    """Why the hub cannot serve the dataset or model, or None if it can; takes at most `PROBE_SECONDS`."""
    endpoint = datasets.config.HF_ENDPOINT
    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE)"
    if endpoint in silent:
        return silent[endpoint]
    errors: list[Exception | None] = []

    def probe() -> None:
        try:
            api = huggingface_hub.HfApi(endpoint=endpoint)
            api.repo_info(repository, repo_type=kind, timeout=PROBE_SECONDS)
            errors.append(None)
        except Exception as error:  # whatever it is, the caller's thread reports it
            errors.append(error)

    # A thread bounds the whole request: the client's timeout covers neither DNS nor a slow trickle.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if not errors or isinstance(errors[0], httpx.TimeoutException):
        return silent.setdefault(endpoint, f"no answer from {endpoint} within {PROBE_SECONDS} s")
    if isinstance(errors[0], RepositoryNotFoundError) and not isinstance(errors[0], GatedRepoError):
        return f"{endpoint} has no public {kind} {repository}"
    if isinstance(errors[0], httpx.NetworkError):
        return f"no connection to {endpoint} ({reason(errors[0])})"
    return HubClient.problem or reason(errors[0]) if errors[0] else None


@contextmanager
def offline() -> Iterator[None]:
    """Make `datasets` take its cached copy at once, without the hub client's retries."""
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
