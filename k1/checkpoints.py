"""The files of a stage: its checkpoint, and while it is trained a resume file; read without running code from them."""

import json
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data.initial import load_pretrained
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.experiment import ARM_FILES, FILES, SCRIPTS, arm_of
from k1.files import content_digest, read_content, write_content
from k1.model import build_model, library_versions
from k1.parallel import is_main_process, require_identical

FORMAT, RESUME_FORMAT = 8, 4
SECONDS_BETWEEN_SAVES = 60
REMEDY = "train the stage that writes it again with --overwrite"
START_ANEW = "add --overwrite to start anew"

# Dataset -> split -> scores, see `k1.training.evaluation.evaluate`.
Evaluation = dict[str, dict[str, dict[str, float]]]


@dataclass
class Checkpoint:
    """Everything that is known at the end of a stage; the fields are the keys of the file.

    `evaluations[i]` is row i of the accuracy matrix: what the model after stage
    i + 1 scores on each dataset so far and, if stage i + 2 has begun, on the
    next one (for forward transfer, on test text alone), as dataset -> split -> metrics.
    `initial_evaluation` has the scores on test text of the initial model: an untrained one,
    or the pretrained one that `start` describes. `history` has the entries of this stage,
    none if stage 1 had no steps. `written` is text by the model after each stage so far,
    (sequences, length) token ids, which later stages rehearse, and `predicted_forgetting`
    by how much the loss on what was written of each earlier dataset rose in this stage, in
    nats per token (see `k1.rehearsal.Rehearsal`); both are empty without rehearsal.
    `arguments` are those of `k1.config.Arguments`. `sha256` is the digest of all else,
    once written.
    """

    method: str
    stage: int
    model_config: dict
    model: dict[str, Tensor]
    tokenizer: str
    arguments: dict
    seed: int
    datasets: list[dict]
    evaluations: list[Evaluation]
    initial_evaluation: Evaluation
    history: list[dict]
    written: list[Tensor] = field(default_factory=list)
    predicted_forgetting: list[float] = field(default_factory=list)
    start: dict | None = None
    versions: dict[str, str] = field(default_factory=library_versions)
    format: int = FORMAT
    sha256: str = ""

    @property
    def arm(self) -> str:
        """The arm of the experiment, a key of `k1.experiment.ARMS`; of stage 1, which two arms share, the method."""
        return self.method if self.stage == 1 else arm_of(self.method, self.arguments["rehearsal"] > 0)


KEYS = [item.name for item in fields(Checkpoint)]


def stage_checkpoint(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    dataset: TokenizedDataset,
    arguments: Arguments,
    *,
    untrained: Evaluation,
    before: Evaluation,
    after: Evaluation,
    previous: Checkpoint | None = None,
    start: dict | None = None,
    **found: Any,
) -> Checkpoint:
    """The checkpoint of a stage that has just been trained.

    `untrained`, `before` and `after` are evaluations of the model with its initial weights and before and after this
    stage, and `found` has its `history`, `written` and `predicted_forgetting`; `previous` is the checkpoint that the
    stage continued, None for stage 1; `start` is the pretrained model of stage 1, None for fresh weights.
    """
    evaluations = [dict(row) for row in previous.evaluations] if previous else []
    if evaluations:
        evaluations[-1].update(before)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    require_identical("weights", weights)
    return Checkpoint(
        method=arguments.method,
        stage=arguments.stage,
        model_config=json.loads(model.config.to_json_string(use_diff=False)),
        model=weights,
        tokenizer=tokenizer.to_str(),
        arguments=arguments.as_dict(),
        seed=arguments.seed,
        datasets=[*(previous.datasets if previous else []), dataset.record()],
        evaluations=[*evaluations, after],
        initial_evaluation={**(previous.initial_evaluation if previous else {}), **untrained},
        start=previous.start if previous else start,
        **found,
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` so that `path` holds the old file or the whole new one, never a part.

    Of several processes the main one writes. Raises `K1Error` when the disk does
    not take it; the old file is then intact.
    """
    if is_main_process():
        checkpoint.sha256 = write_content(path, {name: getattr(checkpoint, name) for name in KEYS if name != "sha256"})


def require_file(path: Path, method: str | None = None) -> None:
    """Raise `K1Error`, naming the script that writes it (of `method`, if given), if `path` does not exist."""
    if not path.exists():
        scripts = SCRIPTS[method] if method else [script for arm in FILES for script in SCRIPTS[arm]]
        hint = next(
            (SCRIPTS[arm][files.index(path.name)] for arm, files in ARM_FILES.items() if path.name in files),
            f"one of {', '.join(dict.fromkeys(scripts))}",
        )
        raise K1Error(f"{path} does not exist; run {hint} first")


def load_checkpoint(path: Path, method: str | None = None, stage: int | None = None) -> Checkpoint:
    """Read the checkpoint at `path`.

    Raises `K1Error`, one line, when it is missing (naming the script that writes
    it), damaged, not a checkpoint, of another format version, of another method
    than `method` or of another stage than `stage` (if one is asked for).
    """
    require_file(path, method)
    content = read_content(path, "checkpoint", FORMAT, REMEDY)
    if missing := [name for name in KEYS if name not in content]:
        raise K1Error(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    checkpoint = Checkpoint(**{name: content[name] for name in KEYS})
    if not all(tensor.isfinite().all() for tensor in checkpoint.model.values()):
        raise K1Error(f"{path} is not a valid checkpoint (a weight is not finite); {REMEDY}")
    if method not in (None, checkpoint.method):
        raise K1Error(f"{path} is a checkpoint of method '{checkpoint.method}', not '{method}'; name another file")
    if stage not in (None, checkpoint.stage):
        raise K1Error(f"{path} is a checkpoint of stage {checkpoint.stage}, not {stage}; name another file")
    return checkpoint


def restore_model(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """The model of `checkpoint` on `device`; raises `K1Error` if weights and configuration do not fit."""
    model = build_model(checkpoint.model_config, checkpoint.seed, device)
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise K1Error(f"the checkpoint's weights do not fit its model configuration ({reason}); {REMEDY}")
    return model


def restore_initial_model(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """The model that stage 1 of the run started from; raises `K1Error` if a pretrained one is no longer there."""
    start = checkpoint.start
    if start is None:
        return build_model(checkpoint.model_config, checkpoint.seed, device)
    initial = load_pretrained(start["name"], checkpoint.seed, start["revision"])
    if initial.start != start:
        raise K1Error(
            f"{start['name']} is no longer the model that stage 1 started from, with SHA-256 {start['sha256'][:12]}; "
            "bring the old one back or train all stages again with --overwrite"
        )
    return initial.build(device)


def identity_of(arguments: Arguments, dataset: TokenizedDataset) -> dict:
    """What must be the same for what was trained to be taken, finished or not: settings, text, library versions."""
    return {"arguments": arguments.as_dict(), "dataset": dataset.record(), "versions": library_versions()}


def first_difference(old: dict, new: dict) -> str | None:
    """The first setting in which two identities differ, as "max_steps 600, not 300"; None if they agree."""
    for name, now in new.items():
        was = old.get(name)
        if isinstance(now, dict):
            if inner := first_difference(was or {}, now):
                return inner
        elif was != now:
            return f"{name} {was!s:.60}, not {now!s:.60}"
    return None


def load_finished_stage(
    path: Path,
    dataset: TokenizedDataset,
    arguments: Arguments,
    start: dict | None = None,
    previous: Checkpoint | None = None,
) -> Checkpoint:
    """The checkpoint of a stage that is finished: by an earlier run of the script, or by another arm.

    Raises `K1Error`, naming the first difference, when the stage had other settings or text, or continued another
    stage than `previous` or another pretrained model than `start`.
    """
    checkpoint = load_checkpoint(path, arguments.method, arguments.stage)
    found: dict[str, Any] = {
        "arguments": checkpoint.arguments, "dataset": checkpoint.datasets[-1], "versions": checkpoint.versions,
        "pretrained model": checkpoint.start and checkpoint.start["sha256"],
    }  # fmt: skip
    wanted = identity_of(arguments, dataset) | {"pretrained model": start and start["sha256"]}
    if previous:
        known = previous.evaluations[-1]
        then = {name: scores for name, scores in checkpoint.evaluations[-2].items() if name in known}
        found["stage before"], wanted["stage before"] = content_digest(then)[:12], content_digest(known)[:12]
    if difference := first_difference(found, wanted):
        raise K1Error(f"{path} exists already and has {difference}; {START_ANEW}")
    return checkpoint


class ResumeFile:
    """The file beside a script's last checkpoint, at `output`, that holds its training while it runs.

    It is written every `save_steps` steps, by default (None) about every 60
    seconds, and removed when the checkpoint of the stage is written. Only the
    main process writes. Raises `K1Error` if an old one is damaged or of another
    format version, unless `overwrite` says to replace what cannot be resumed.
    """

    def __init__(self, output: Path, save_steps: int | None = None, overwrite: bool = False) -> None:
        self.path = output.with_suffix(".resume.pt")
        self._save_steps, self._overwrite = save_steps, overwrite
        self._last_save = time.monotonic()
        self._old: dict | None = None
        if self.path.exists():
            try:
                self._old = read_content(self.path, "resume file", RESUME_FORMAT, START_ANEW)
            except K1Error:
                if not overwrite:
                    raise

    def take(self, identity: dict) -> dict | None:
        """The saved state of the training that `identity` describes, None if there is no old file that may be used.

        Raises `K1Error`, naming the first difference, when the file is of another training and is not to be replaced.
        What is saved from now on is of this training.
        """
        self._identity = identity
        difference = self._old and first_difference(self._old["identity"], identity)
        if difference and not self._overwrite:
            raise K1Error(f"{self.path} holds the begun training with {difference}; {START_ANEW}")
        old, self._old = self._old, None
        if old is None or difference:
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

    def save(self, state: dict) -> None:
        """Write the state of the training; a disk that does not take it is only a warning, as training can go on."""
        if is_main_process():
            try:
                write_content(self.path, {"format": RESUME_FORMAT, "identity": self._identity, **state})
            except K1Error as error:
                print(f"warning: {error}; the training continues without", file=sys.stderr)
            self._last_save = time.monotonic()

    def remove(self, arguments: Arguments) -> None:
        """Remove the file of a training that has ended or is given up; an old one of others than `arguments` stays."""
        if self._old is None or self._old["identity"]["arguments"] == arguments.as_dict():
            self._old = None
            if is_main_process():
                self.path.unlink(missing_ok=True)
