"""Memory: that of this process at its peak, and that of the tensors which a training keeps."""

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn

from k1.errors import K1Error

STATUS = Path("/proc/self/status")
SAMPLING_SECONDS = 0.01


def resident_bytes(field: str = "VmRSS") -> int:
    """A `field` of /proc/self/status in bytes: VmRSS memory now, VmHWM at its peak, RssAnon without mapped files.

    Raises `K1Error` where there is no such file.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError as error:
        raise K1Error(f"{STATUS} cannot be read ({error.strerror}); memory is measured on Linux only") from error
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def settled_bytes() -> int:
    """As `resident_bytes`, after freed memory is handed back; the peak begins anew, where the system allows it."""
    # `configure_torch` has the C library keep it for later tensors, which would then seem to need none.
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return resident_bytes()


class AnonymousPeak:
    """Context that follows the memory of this process without mapped files, which the system takes back at will.

    `bytes` is how far it rose above where it began.
    """

    def __enter__(self) -> "AnonymousPeak":
        settled_bytes()
        self.bytes, self._before = 0, resident_bytes("RssAnon")
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def _follow(self) -> None:
        while not self._has_ended.wait(SAMPLING_SECONDS):
            self.bytes = max(self.bytes, resident_bytes("RssAnon") - self._before)

    def __exit__(self, *_) -> None:
        self._has_ended.set()
        self._thread.join()


def tensors_within(root: object) -> Iterator[Tensor]:
    """Every tensor that containers and attributes lead to from `root`, but not those inside of modules."""
    stack, seen = [root], set()
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, type | ModuleType | FunctionType | MethodType | nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            stack += value
        elif hasattr(value, "__dict__"):
            stack += vars(value).values()


def kept_bytes(
    model: nn.Module, optimizer: torch.optim.Optimizer, teacher: nn.Module | None = None
) -> dict[str, int]:
    """Bytes of the tensors of a training by what they are for, each memory counted once.

    `weights`, `gradients` (as they are now), `bases` (the buffers of the model),
    `importance` (what a `SparseAdamW` weighs parameters by), `teacher`, the model
    whose predictions are rehearsed, and `optimizer`, the rest of what `optimizer` holds.
    """
    evidence = getattr(optimizer, "evidence", None)
    parameters = list(model.parameters())
    kinds = {
        "weights": parameters,
        "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
        "bases": list(model.buffers()),
        "importance": tensors_within(evidence and [evidence.importance, evidence.responsibility]),
        "teacher": [*teacher.parameters(), *teacher.buffers()] if teacher else [],
        "optimizer": tensors_within(optimizer),
    }
    counted, sizes = set(), dict.fromkeys(kinds, 0)
    for kind, tensors in kinds.items():
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage.data_ptr() not in counted:
                counted.add(storage.data_ptr())
                sizes[kind] += storage.nbytes()
    return sizes
