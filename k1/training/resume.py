"""The resume file: from which a training that was stopped resumes, to end with the same bits as one that was not."""

import sys
import time
from pathlib import Path

from torch import Tensor

from k1.config import Arguments
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.files import content_digest, read_content, write_content
from k1.model import library_versions
from k1.parallel import is_main_process, process_count

FORMAT = 3
SECONDS_BETWEEN_SAVES = 60
START_ANEW = "add --overwrite to start anew"


def resume_path(output: Path) -> Path:
    """Where the resume file of a training that ends with the checkpoint `output` is kept."""
    return output.with_suffix(".resume.pt")


class ResumeFile:
    """The file beside a script's last checkpoint that holds its training while it runs.

    It is written every `save_steps` steps, by default (None) about every 60
    seconds, and removed when the script has written its last checkpoint. Only the
    main process writes. Raises `K1Error` if an old one is damaged or of another
    format version, unless `overwrite` says to replace what cannot be resumed.
    """

    def __init__(self, output: Path, save_steps: int | None = None, overwrite: bool = False) -> None:
        self.path = resume_path(output)
        self._save_steps = save_steps
        self._last_save = time.monotonic()
        self._old: dict | None = None
        self._has_warned = False
        self._overwrite = overwrite
        if self.path.exists():
            try:
                self._old = read_content(self.path, "resume file", FORMAT, START_ANEW)
            except K1Error:
                if not overwrite:
                    raise

    @property
    def stage(self) -> int:
        """The stage that the old file was in; 0 without one."""
        return self._old["identity"]["arguments"]["stage"] if self._old else 0

    def take(self, identity: dict) -> dict | None:
        """The saved state of the training that `identity` describes, None if there is no old file that may be used.

        Raises `K1Error`, naming the first difference, when the file is of another training and is not to be replaced.
        """
        if self._old is None:
            return None
        difference = first_difference(self._old["identity"], identity)
        if difference and not self._overwrite:
            raise K1Error(f"{self.path} holds the begun training with {difference}; {START_ANEW}")
        old, self._old = self._old, None
        if difference:
            return None
        if is_main_process():
            steps = identity["arguments"]["max_steps"]
            print(f"resuming from {self.path}, step {old['step']} of {steps}", file=sys.stderr)
        return old

    def is_due(self, step: int) -> bool:
        """Whether the training should be saved after `step`."""
        if self._save_steps is not None:
            return step % self._save_steps == 0
        return time.monotonic() - self._last_save >= SECONDS_BETWEEN_SAVES

    def save(self, identity: dict, **state) -> None:
        """Write the state of the training; a disk that does not take it is only a warning, as training can go on."""
        if not is_main_process():
            return
        try:
            write_content(self.path, {"format": FORMAT, "identity": identity, **state})
        except K1Error as error:
            if not self._has_warned:
                print(f"warning: {error}; the training continues without", file=sys.stderr)
                self._has_warned = True
        self._last_save = time.monotonic()

    def remove(self) -> None:
        """Remove the file; the training it holds has ended or is given up."""
        if is_main_process():
            self.path.unlink(missing_ok=True)


def identity_of(arguments: Arguments, dataset: TokenizedDataset, start: dict[str, dict[str, Tensor]]) -> dict:
    """What must be the same for a training to go on: settings, text, library versions, processes, starting state.

    `start` names the tensors that the stage starts from: the model's and what it rehearses.
    """
    return {
        "arguments": arguments.as_dict(),
        "dataset": dataset.record(),
        "versions": library_versions(),
        "processes": process_count(),
        "starting state": content_digest(
            {name: {key: value.cpu() for key, value in tensors.items()} for name, tensors in start.items()}
        ),
    }


def first_difference(old: dict, new: dict) -> str | None:
    """The first setting in which two identities differ, as "max_steps 600, not 300"; None if they agree."""
    for name in new:
        was, now = old.get(name), new[name]
        if isinstance(now, dict):
            inner = first_difference(was if isinstance(was, dict) else {}, now)
            if inner:
                return inner
        elif was != now:
            return f"{name} {was!s:.60}, not {now!s:.60}"
    return None
