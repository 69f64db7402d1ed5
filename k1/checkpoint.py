"""Checkpoints: one `.pt` file a stage, and what is checked before one is used."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, get_type_hints

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from k1.config import Arguments
from k1.data import TokenizedDataset
from k1.eigenbasis import fold_eigenbasis, restore_eigenbasis
from k1.errors import K1Error
from k1.files import lock, remove_leftovers
from k1.model import build_model, library_versions
from k1.parallel import is_main_process, require_identical
from k1.resume import START_ANEW, HistoryEntry, ResumeFile, first_difference, resume_path
from k1.schema import conforms
from k1.tensor_file import read_content, write_content
from k1.tokenizer import load_tokenizer

FORMAT = 3
# Settings of a model configuration that make transformers load code, or compute otherwise.
CODE_SETTINGS = {"auto_map", "quantization_config", "attn_implementation", "_attn_implementation"}
MISFIT_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
REMEDY = "train the stage that writes it again with --overwrite"
FILES = {
    "k1": ("k1_dataset1.pt", "k1_dataset2.pt", "k1_final.pt"),
    "baseline": ("baseline_dataset1.pt", "baseline_dataset2.pt", "baseline_final.pt"),
}
SCRIPTS = {
    "k1": ("train_k1_dataset1.py", "train_k1_dataset2.py", "train_k1_dataset3.py"),
    "baseline": ("train_baseline_all.py",) * 3,
}


class DatasetRecord(TypedDict):
    """What a checkpoint keeps of a dataset, see `k1.data.TokenizedDataset`."""

    name: str
    source: str
    fingerprint: str
    tokens: dict[str, int]
    prompts: list[str]
    max_documents: int


class Scores(TypedDict):
    """What `k1.evaluate.evaluate` measures on one split."""

    loss: float
    perplexity: float
    accuracy: float
    tokens: int


Evaluation = dict[str, dict[str, Scores]]


@dataclass
class Checkpoint:
    """Everything that is known at the end of a stage; the fields are the keys of the file.

    `evaluations[i]` is row i of the accuracy matrix: what the model after stage
    i + 1 scores on each dataset so far and, where stage i + 2 has begun, on the
    next one (for forward transfer), as dataset -> split -> metrics.
    `initial_evaluation` is the same for the untrained model. `history` has the
    entries of this stage. `importance` is Omega, the Fisher information of all
    datasets so far by parameter name; the baseline, which does not look at it,
    has none. The bases of K-1 are buffers in `model`. `arguments` are those of
    `k1.config.Arguments`. `sha256` is the digest of all else, once written.
    """

    method: str
    stage: int
    model_config: dict
    model: dict[str, Tensor]
    tokenizer: str
    arguments: dict
    seed: int
    datasets: list[DatasetRecord]
    evaluations: list[Evaluation]
    initial_evaluation: Evaluation
    history: list[HistoryEntry]
    importance: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=library_versions)
    format: int = FORMAT
    sha256: str = ""


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
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    importance = {name: tensor.cpu() for name, tensor in (importance or {}).items()}
    require_identical("weights and importance", {"model": weights, "importance": importance})
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
        history=history,
        importance=importance,
    )


def output_path(models_dir: Path, method: str, stage: int, overwrite: bool) -> Path:
    """Where the checkpoint of a stage goes; makes the folder and locks the path for this process.

    Raises `K1Error` if the file exists, no begun training is about to replace it
    and `overwrite` is false, if another process is writing it, or if the folder
    cannot be written, so that a script ends before it trains.
    """
    path = models_dir / FILES[method][stage - 1]
    if not is_main_process():
        return path
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=models_dir):
            pass
    except OSError as error:
        raise K1Error(f"cannot write checkpoints into {models_dir} ({error.strerror}); choose another --models_dir")
    lock(path)
    remove_leftovers(path)
    last = models_dir / FILES[method][-1] if method == "baseline" else path
    if path.exists() and not overwrite and not resume_path(last).exists():
        raise K1Error(f"{path} exists already; add --overwrite to train this stage again")
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
    content = read_content(path, "checkpoint", FORMAT, REMEDY)
    fields = get_type_hints(Checkpoint)
    missing = [name for name in fields if name not in content]
    if missing:
        raise K1Error(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    wrong = [name for name, kind in fields.items() if not conforms(content[name], kind)]
    checkpoint = Checkpoint(**{name: content[name] for name in fields})
    problem = f"{', '.join(wrong)} of another type" if wrong else inconsistency(checkpoint)
    if problem:
        raise K1Error(f"{path} is not a valid checkpoint ({problem}); {REMEDY}")
    if checkpoint.method != method:
        raise K1Error(f"{path} is a checkpoint of method '{checkpoint.method}', not '{method}'; name another file")
    if stage is not None and checkpoint.stage != stage:
        raise K1Error(f"{path} is a checkpoint of stage {checkpoint.stage}, not {stage}; name another file")
    return checkpoint


def load_finished_stage(
    path: Path, dataset: TokenizedDataset, arguments: Arguments, resume_file: ResumeFile
) -> tuple[Checkpoint, PreTrainedModel]:
    """The checkpoint and model of a stage that a script finished before it was stopped in a later one.

    Raises `K1Error`, naming the first difference, when the stage had other settings or other text.
    """
    checkpoint = load_checkpoint(path, arguments.method, arguments.stage)
    found = {"arguments": checkpoint.arguments, "dataset": checkpoint.datasets[-1], "versions": checkpoint.versions}
    wanted = {"arguments": arguments.as_dict(), "dataset": dataset.record(), "versions": library_versions()}
    if difference := first_difference(found, wanted):
        raise K1Error(f"{path}, from which {resume_file.path} goes on, has {difference}; {START_ANEW}")
    return checkpoint, restore_model(checkpoint, arguments.device)


def inconsistency(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the values of a checkpoint whose fields have the right types; None where nothing is."""
    if not conforms(checkpoint.arguments, Arguments):
        return "incomplete arguments"
    for part in ("model", "importance"):
        if not all(tensor.isfinite().all() for tensor in getattr(checkpoint, part).values()):
            return f"a value in {part} is not finite"
    names = [record["name"] for record in checkpoint.datasets]
    if not checkpoint.stage == len(set(names)) == len(names) == len(checkpoint.evaluations):
        return "datasets and evaluations do not match the stage"
    rows = [*zip(checkpoint.evaluations, range(2, len(names) + 2)), (checkpoint.initial_evaluation, len(names))]
    if not all({"validation", "test"} <= row.get(name, {}).keys() for row, count in rows for name in names[:count]):
        return "an evaluation is missing"
    if not checkpoint.history:
        return "no history"
    try:
        tokens = load_tokenizer(checkpoint.tokenizer).get_vocab_size()
    except K1Error:
        return "the tokenizer cannot be read"
    return None if tokens <= checkpoint.model_config.get("vocab_size", 0) else "more tokens than the model knows"


def restore_model(checkpoint: Checkpoint, device: str, fold: bool = False) -> PreTrainedModel:
    """The model of `checkpoint` on `device`, in its eigenbasis or, with `fold`, multiplied out for fast generation.

    Raises `K1Error` where weights, importance and configuration do not fit.
    """
    try:
        require_shapes(checkpoint.model_config, checkpoint.model)
        model = build_model(checkpoint.model_config, checkpoint.seed)
        restore_eigenbasis(model, checkpoint.model)
        model.load_state_dict(checkpoint.model)
        kinds = {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}
        found = {name: (omega.shape, omega.dtype) for name, omega in checkpoint.importance.items()}
        if found and found != kinds:
            raise ValueError("importance of other parameters")
    except (*MISFIT_ERRORS, StrictDataclassError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise K1Error(f"the checkpoint's weights do not fit its model configuration ({reason}); {REMEDY}")
    if fold:
        fold_eigenbasis(model)
    return model.to(device)


def require_shapes(config: dict, state: dict[str, Tensor]) -> None:
    """Raise `ValueError` where a model of `config` has other weights than `state`, before memory is taken for it."""
    parsed = AutoConfig.for_model(**config)
    if not CODE_SETTINGS.isdisjoint(config) or parsed.num_hidden_layers > len(state):
        raise ValueError("a configuration that no training script writes")
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(parsed).state_dict()
    for name, tensor in expected.items():
        module, _, last = name.rpartition(".")
        found = state.get(name, state.get(f"{module}.parametrizations.{last}.original"))
        if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name} is missing or of another shape")
        for side, length in zip(("left", "right"), tensor.shape):
            basis = state.get(f"{module}.parametrizations.{last}.0.{side}", tensor.new_empty(length, length))
            if (basis.shape, basis.dtype) != ((length, length), tensor.dtype):
                raise ValueError(f"a basis of {name} is of another shape")
