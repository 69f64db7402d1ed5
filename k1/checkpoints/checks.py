"""What is checked before a checkpoint is used."""

import torch
from torch import Tensor

from k1.arguments import Arguments
from k1.checkpoints.contents import Checkpoint
from k1.data.tokenizer import load_tokenizer, vocabulary_size
from k1.errors import K1Error
from k1.files import conforms
from k1.model import empty_model
from k1.presets import FILES


def inconsistency(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the values of a checkpoint whose fields have the right types; None if nothing is."""
    if checkpoint.method not in FILES:
        return "unknown method"
    if not conforms(checkpoint.arguments, Arguments):
        return "incomplete arguments"
    if not all(tensor.isfinite().all() for tensor in checkpoint.model.values()):
        return "a weight is not finite"
    names = [record["name"] for record in checkpoint.datasets]
    if not checkpoint.stage == len(set(names)) == len(names) == len(checkpoint.evaluations):
        return "datasets and evaluations do not match the stage"
    rows = [*zip(checkpoint.evaluations, range(2, len(names) + 2)), (checkpoint.initial_evaluation, len(names))]
    # Of the next dataset and of the initial model test text alone is measured.
    has_test = all("test" in row.get(name, {}) for row, count in rows for name in names[:count])
    if not has_test or not all("validation" in row[name] for row, count in rows[:-1] for name in names[: count - 1]):
        return "an evaluation is missing"
    is_untrained = checkpoint.start is not None and checkpoint.stage == 1 and checkpoint.arguments["max_steps"] == 0
    if not checkpoint.history and not is_untrained:
        return "no history"
    try:
        tokens = vocabulary_size(load_tokenizer(checkpoint.tokenizer))
    except K1Error:
        return "the tokenizer cannot be read"
    known = checkpoint.model_config.get("vocab_size")
    if not isinstance(known, int) or tokens > known:
        return "more tokens than the model knows"
    is_text = all(
        text.dtype == torch.int32 and text.dim() == 2 and ((0 <= text) & (text < known)).all()
        for text in checkpoint.written
    )
    return None if is_text else "what it wrote is no text"


def require_shapes(config: dict, state: dict[str, Tensor]) -> None:
    """Raise `ValueError` if a model of `config` has other weights than `state`, before memory is taken for it."""
    for name, tensor in empty_model(config, len(state)).state_dict().items():
        found = state.get(name)
        if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name} is missing or of another shape")
