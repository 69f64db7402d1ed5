"""What TensorBoard shows of a training. It is written beside it: no figure and no bit of a model depends on it."""

import functools
import importlib.util
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from k1.config import Flags
from k1.data.sources import dataset_labels
from k1.errors import K1Error
from k1.parallel import is_main_process

# Of an entry of the history, see `k1.training.history`.
SCALARS = ("loss", "divergence", "learning_rate", "updated_fraction", "tokens_per_second")
SCORES = ("loss", "perplexity", "accuracy")


class EventLog:
    """The events of the stage that ends with the checkpoint `output`, in the folder of its name in `--logging_dir`.

    Without `--report_to tensorboard` nothing is written, and of several processes
    the main one writes. A log that cannot be written on is a warning, and training
    goes on without. Raises `K1Error` if the package tensorboard is missing or
    the folder cannot be written, so that a script ends before it trains.
    """

    def __init__(self, flags: Flags, output: Path) -> None:
        self.folder = flags.logging_dir / output.stem
        self._is_on = flags.report_to == "tensorboard" and is_main_process()
        self._writer = None
        if not self._is_on:
            return
        if importlib.util.find_spec("tensorboard") is None:
            raise K1Error("--report_to tensorboard needs a package that is missing; run: pip install tensorboard")
        try:
            flags.logging_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=flags.logging_dir):
                pass
        except OSError as error:
            place = flags.logging_dir
            raise K1Error(f"cannot write events into {place} ({error.strerror}); choose another --logging_dir")

    def begin(self, done: int) -> None:
        """Go on after the step `done`, 0 at a new beginning; what was written of later steps counts no more."""

        def open_writer() -> None:
            # Step 0 is never written, so that of a new beginning nothing old is left.
            self._writer = summary_writer(self.folder, done + 1 if done else 0)
            self._writer.flush()

        self._guarded(open_writer)

    def add_entry(self, entry: dict) -> None:
        """Write an entry of the history, at its step."""

        def write() -> None:
            for name in SCALARS:
                self._writer.add_scalar(f"training/{name}", entry[name], entry["step"])
            # At once, as a process can be killed at any moment.
            self._writer.flush()

        self._guarded(write)

    def add_evaluations(self, before: dict, after: dict, max_steps: int) -> None:
        """Write the evaluations before and after the stage (see `k1.evaluate`), at the steps 0 and `max_steps`.

        They are a run of their own in the folder `evaluation`, which takes the place of an earlier one.
        """

        def write() -> None:
            writer = summary_writer(self.folder / "evaluation", 0)
            labels = dict(zip(after, dataset_labels(after)))
            for step, evaluation in {0: before, max_steps: after}.items():
                for name, splits in evaluation.items():
                    for split, scores in splits.items():
                        for score in SCORES:
                            writer.add_scalar(f"{score}/{split}/{labels[name]}", scores[score], step)
            writer.close()
            if self._writer:
                self._writer.close()

        self._guarded(write)

    def _guarded(self, write: Callable[[], None]) -> None:
        if not self._is_on:
            return
        try:
            write()
        except OSError as error:
            what = f"cannot write events into {self.folder} ({error})"
            print(f"warning: {what}; the training continues without", file=sys.stderr)
            self._is_on = False


def summary_writer(folder: Path, purge_step: int):
    """A `SummaryWriter` into `folder`; events of `purge_step` and later that lie there already count no more."""
    from torch.utils.tensorboard import SummaryWriter

    threading.excepthook = functools.partial(without_writer_errors, threading.excepthook)
    return SummaryWriter(str(folder), purge_step=purge_step)


def without_writer_errors(hook: Callable, failure: threading.ExceptHookArgs) -> None:
    """`threading.excepthook` that leaves to `hook` all but an `OSError` of TensorBoard's thread, which hands it on."""
    is_handed_on = isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard")
    if not is_handed_on:
        hook(failure)
