"""Checkpoints: one `.pt` file a stage, written atomically, read without running code from it."""

import dataclasses
import json
import platform
import tempfile
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data import TokenizedDataset
from k1.eigenbasis import fold_eigenbasis, restore_eigenbasis
from k1.errors import K1Error
from k1.files import write_atomically
from k1.model import build_model

FORMAT = 2
FILES = {
    "k1": ("k1_dataset1.pt", "k1_dataset2.pt", "k1_final.pt"),
    "baseline": ("baseline_dataset1.pt", "baseline_dataset2.pt", "baseline_final.pt"),
}
SCRIPTS = {
    "k1": ("train_k1_dataset1.py", "train_k1_dataset2.py", "train_k1_dataset3.py"),
    "baseline": ("train_baseline_all.py",) * 3,
}


@dataclass
class Checkpoint:
    """Everything that is known at the end of a stage; the fields are the keys of the file.

    `evaluations[i]` is row i of the accuracy matrix: what the model after stage
    i + 1 scores on each dataset so far and, where stage i + 2 has begun, on the
    next one (for forward transfer), as dataset -> split -> metrics.
    `initial_evaluation` is the same for the untrained model. `history` has the
    entries of this stage (see `k1.train.train`). `importance` is Omega, the
    Fisher information of all datasets so far by parameter name; the baseline,
    which does not look at it, has none. The bases of K-1 are buffers in `model`.
    """

    method: str
    stage: int
    model_config: dict
    model: dict[str, Tensor]
    tokenizer: str
    arguments: dict
    seed: int
    datasets: list[dict]
    evaluations: list[dict]
    initial_evaluation: dict
    history: list[dict]
    importance: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "numpy")},
        }
    )
    format: int = FORMAT


def stage_checkpoint(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    dataset: TokenizedDataset,
    arguments: Arguments,
    *,
    untrained: dict,
    before: dict,
    after: dict,
    history: list[dict],
    importance: dict[str, Tensor] | None = None,
    previous: Checkpoint | None = None,
) -> Checkpoint:
    """The checkpoint of a stage that has just been trained.

    `untrained`, `before` and `after` are evaluations (see `k1.evaluate.evaluate`)
    of the model with its initial weights and before and after this stage;
    `importance` is that of all datasets so far (see `k1.importance`);
    `previous` is the checkpoint that the stage continued, None for stage 1.
    """
    evaluations = [dict(row) for row in previous.evaluations] if previous else []
    if evaluations:
        evaluations[-1].update(before)
    return Checkpoint(
        method=arguments.method,
        stage=arguments.stage,
        model_config=json.loads(model.config.to_json_string(use_diff=False)),
        model={name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        tokenizer=tokenizer.to_str(),
        arguments=arguments.as_dict(),
        seed=arguments.seed,
        datasets=[*(previous.datasets if previous else []), dataset.record()],
        evaluations=[*evaluations, after],
        initial_evaluation={**(previous.initial_evaluation if previous else {}), **untrained},
        history=history,
        importance={name: tensor.cpu() for name, tensor in (importance or {}).items()},
    )


def output_path(models_dir: Path, method: str, stage: int, overwrite: bool) -> Path:
    """Where the checkpoint of a stage goes; makes the folder.

    Raises `K1Error` if the file exists and `overwrite` is false, or if the folder
    cannot be written, so that a script ends before it trains.
    """
    path = models_dir / FILES[method][stage - 1]
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=models_dir):
            pass
    except OSError as error:
        raise K1Error(f"cannot write checkpoints into {models_dir} ({error.strerror}); choose another --models_dir")
    if path.exists() and not overwrite:
        raise K1Error(f"{path} exists already; add --overwrite to train this stage again")
    return path


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` so that `path` holds the old file or the whole new one, never a part.

    Raises `K1Error` when the disk does not take it; the old file is then intact.
    """
    content = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint)}
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, method: str, stage: int | None = None) -> Checkpoint:
    """Read the checkpoint at `path`.

    Raises `K1Error`, one line, when it is missing (naming the script that writes
    it), damaged, not a checkpoint, of another format version, of another method
    than `method` or of another stage than `stage` (where one is asked for).
    """
    if not path.exists():
        hint = next(
            (SCRIPTS[method][index] for index, file in enumerate(FILES[method]) if file == path.name),
            f"one of {', '.join(dict.fromkeys(SCRIPTS[method]))}",
        )
        raise K1Error(f"{path} does not exist; run {hint} first")
    try:
        path.open("rb").close()
    except OSError as error:
        raise K1Error(f"cannot read {path} ({error.strerror}); check the file and its permissions")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what torch.load raises depends on where the damage is
        raise K1Error(f"{path} is damaged or is not a checkpoint; train the stage that writes it again")
    if not isinstance(content, dict) or "format" not in content:
        raise K1Error(f"{path} is not a k1 checkpoint; train the stage that writes it again")
    if content["format"] != FORMAT:
        raise K1Error(
            f"{path} has format version {content['format']}, this code reads version {FORMAT}; "
            f"train the stage that writes it again with --overwrite"
        )
    missing = [item.name for item in dataclasses.fields(Checkpoint) if item.name not in content]
    if missing:
        raise K1Error(f"{path} lacks {', '.join(missing)}; train the stage that writes it again")
    checkpoint = Checkpoint(**{item.name: content[item.name] for item in dataclasses.fields(Checkpoint)})
    if checkpoint.method != method:
        raise K1Error(f"{path} is a checkpoint of method '{checkpoint.method}', not '{method}'; name another file")
    if stage is not None and checkpoint.stage != stage:
        raise K1Error(f"{path} is a checkpoint of stage {checkpoint.stage}, not {stage}; name another file")
    return checkpoint


def restore_model(checkpoint: Checkpoint, device: str, fold: bool = False) -> PreTrainedModel:
    """The model of `checkpoint` on `device`, in its eigenbasis or, with `fold`, multiplied out for fast generation.

    Raises `K1Error` where weights and configuration do not fit.
    """
    try:
        model = build_model(checkpoint.model_config, checkpoint.seed)
        restore_eigenbasis(model, checkpoint.model)
        model.load_state_dict(checkpoint.model)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise K1Error(f"the checkpoint's weights do not fit its model configuration ({reason}); train it again")
    if fold:
        fold_eigenbasis(model)
    return model.to(device)
