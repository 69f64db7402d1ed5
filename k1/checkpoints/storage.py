"""Checkpoints as files: one `.pt` a stage, written whole, read without running code from it."""

import dataclasses
import tempfile
from pathlib import Path

from transformers import PreTrainedModel

from k1.checkpoints.contents import FORMAT, Checkpoint
from k1.config import Arguments, Flags
from k1.data.initial import load_pretrained
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.experiment import ARM_FILES, FILES, SCRIPTS
from k1.files import content_digest, lock, read_content, remove_leftovers, write_content
from k1.model import build_model, library_versions
from k1.parallel import is_main_process
from k1.training.resume import START_ANEW, first_difference

REMEDY = "train the stage that writes it again with --overwrite"


def is_shared(arm: str, path: Path) -> bool:
    """Whether `path` is there already because another arm of the experiment has the same stage, and has trained it."""
    return arm == "baseline_rehearsal" and path.name in FILES["baseline"] and path.exists()


def output_path(flags: Flags, stage: int) -> Path:
    """Where the checkpoint of a stage goes; makes the folder and locks the path for this process.

    A checkpoint that the arm shares with another (see `is_shared`) is left alone.
    Raises `K1Error` if another process is writing the file, or if the folder cannot be written, so that a script
    ends before it trains.
    """
    models_dir, arm, path = flags.models_dir, flags.arm, flags.checkpoint(stage)
    if not is_main_process() or is_shared(arm, path):
        return path
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=models_dir):
            pass
    except OSError as error:
        raise K1Error(f"cannot write checkpoints into {models_dir} ({error.strerror}); choose another --models_dir")
    lock(path)
    remove_leftovers(path)
    return path


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` so that `path` holds the old file or the whole new one, never a part.

    Of several processes the main one writes. Raises `K1Error` when the disk does
    not take it; the old file is then intact.
    """
    if is_main_process():
        content = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint)}
        del content["sha256"]
        checkpoint.sha256 = write_content(path, content)


def require_file(path: Path, method: str | None = None) -> None:
    """Raise `K1Error`, naming the script that writes it (of `method`, where given), if `path` does not exist."""
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
    fields = [field.name for field in dataclasses.fields(Checkpoint)]
    missing = [name for name in fields if name not in content]
    if missing:
        raise K1Error(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    checkpoint = Checkpoint(**{name: content[name] for name in fields})
    if not all(tensor.isfinite().all() for tensor in checkpoint.model.values()):
        raise K1Error(f"{path} is not a valid checkpoint (a weight is not finite); {REMEDY}")
    if method is not None and checkpoint.method != method:
        raise K1Error(f"{path} is a checkpoint of method '{checkpoint.method}', not '{method}'; name another file")
    if stage is not None and checkpoint.stage != stage:
        raise K1Error(f"{path} is a checkpoint of stage {checkpoint.stage}, not {stage}; name another file")
    return checkpoint


def load_finished_stage(
    path: Path,
    dataset: TokenizedDataset,
    arguments: Arguments,
    arm: str,
    start: dict | None = None,
    previous: Checkpoint | None = None,
) -> tuple[Checkpoint, PreTrainedModel]:
    """The checkpoint and model of a stage that is finished: by an earlier run of the script, or by another arm.

    Raises `K1Error`, naming the first difference, when the stage had other settings or text, or continued another
    stage than `previous` or another pretrained model than `start`.
    """
    checkpoint = load_checkpoint(path, arguments.method, arguments.stage)
    found = {"arguments": checkpoint.arguments, "dataset": checkpoint.datasets[-1], "versions": checkpoint.versions}
    wanted = {"arguments": arguments.as_dict(), "dataset": dataset.record(), "versions": library_versions()}
    for side, model in ((found, checkpoint.start), (wanted, start)):
        side["pretrained model"] = model and model["sha256"]
    if previous:
        known = previous.evaluations[-1]
        then = {name: scores for name, scores in checkpoint.evaluations[-2].items() if name in known}
        found["stage before"], wanted["stage before"] = content_digest(then)[:12], content_digest(known)[:12]
    if difference := first_difference(found, wanted):
        first = f"run {SCRIPTS['baseline'][0]} with --overwrite first, or choose another --models_dir"
        remedy = first if is_shared(arm, path) else START_ANEW
        raise K1Error(f"{path} exists already and has {difference}; {remedy}")
    return checkpoint, restore_model(checkpoint, arguments.device)


def restore_initial_model(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """The model that stage 1 of the run started from; raises `K1Error` if a pretrained one is no longer there."""
    start = checkpoint.start
    if start is None:
        return build_model(checkpoint.model_config, checkpoint.seed, device)
    initial = load_pretrained(start["name"], checkpoint.seed, start["revision"])
    if initial.start != start:
        raise K1Error(
            f"{start['name']} is no longer the model that stage 1 started from (SHA-256 "
            f"{initial.start['sha256'][:12]}, not {start['sha256'][:12]}); bring the old one back or train all "
            "stages again with --overwrite"
        )
    return initial.build(device)


def restore_model(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """The model of `checkpoint` on `device`; raises `K1Error` if weights and configuration do not fit."""
    try:
        model = build_model(checkpoint.model_config, checkpoint.seed)
        model.load_state_dict(checkpoint.model)
    except Exception as error:  # what it is depends on what does not fit
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise K1Error(f"the checkpoint's weights do not fit its model configuration ({reason}); {REMEDY}")
    return model.to(device)
