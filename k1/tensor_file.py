"""Files of plain values and tensors (`.pt`): written atomically with a SHA-256, read without running code from them."""

import hashlib
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from k1.errors import K1Error
from k1.files import write_atomically

MAX_DEPTH = 16
MAX_VALUES = 1_000_000


def content_digest(content: object) -> str:
    """SHA-256, as hexadecimal digits, of values and tensors nested in dictionaries, lists and tuples.

    Raises `ValueError` for anything else, for tensors that claim more elements
    than they hold, and for nesting without end.
    """
    digest = hashlib.sha256()
    count = 0

    def add(value: object, depth: int) -> None:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError("it is nested too deeply")
        if type(value) is Tensor:
            if value.layout is not torch.strided or value.is_meta:
                raise ValueError("it holds a tensor of an unknown kind")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("it holds a tensor that is larger than its data")
            digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)}\n".encode())
            for key, item in value.items():
                add(key, depth + 1)
                add(item, depth + 1)
        elif isinstance(value, list | tuple):
            digest.update(f"list {len(value)}\n".encode())
            for item in value:
                add(item, depth + 1)
        elif value is None or type(value) in (bool, int, float, str):
            digest.update(f"{type(value).__name__} {value!r}\n".encode("utf-8", "surrogatepass"))
        else:
            raise ValueError(f"it holds a value of type {type(value).__name__}")

    add(content, 0)
    return digest.hexdigest()


def write_content(path: Path, content: dict) -> str:
    """Write `content` (see `content_digest`) to `path`, with its SHA-256 as the key `sha256`; returns that.

    Raises `K1Error` when the disk does not take it; an old file at `path` is then intact.
    """
    sha256 = content_digest(content)
    write_atomically(path, lambda file: torch.save({**content, "sha256": sha256}, file))
    return sha256


def read_content(path: Path, kind: str, format_version: int, remedy: str) -> dict:
    """Read what `write_content` wrote: a `kind` ("checkpoint") whose key `format` is `format_version`.

    Nothing in the file is run, and no more memory is used than the file is long.
    Raises `K1Error`, one line that ends with `remedy`, when the file cannot be
    read, is damaged, or is of another kind or format version.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise K1Error(f"cannot read {path} ({error.strerror}); check the file and its permissions")
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what torch.load raises depends on where the damage is
        raise K1Error(f"{path} is damaged or is not a {kind}; {remedy}")
    if not isinstance(content, dict) or "format" not in content:
        raise K1Error(f"{path} is not a k1 {kind}; {remedy}")
    found = content["format"] if type(content["format"]) is int else "unknown"
    if found != format_version:
        raise K1Error(f"{path} has format version {found!s:.20}, this code reads version {format_version}; {remedy}")
    sha256 = content.pop("sha256", None)
    try:
        is_intact = content_digest(content) == sha256
    except (ValueError, RuntimeError, RecursionError) as error:
        raise K1Error(f"{path} is damaged: {error}; {remedy}")
    if not is_intact:
        raise K1Error(f"{path} is damaged: its content does not have the SHA-256 that it names; {remedy}")
    return {**content, "sha256": sha256}


def check_archive(path: Path) -> None:
    """Raise `ValueError` where `path` is not a plain ZIP archive as `torch.save` writes it, or would unpack to more."""
    # torch.load also takes older forms, which let a file ask for any amount of memory.
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or ".." in entry.filename for entry in entries):
        raise ValueError("the archive is compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("the archive claims more data than the file has")
