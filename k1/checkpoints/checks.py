"""What is checked before a checkpoint is used."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from k1.arguments import Arguments
from k1.checkpoints.contents import Checkpoint
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from k1.files import conforms
from k1.presets import FILES

# Settings of a model configuration that make transformers load code, or compute otherwise.
CODE_SETTINGS = {"auto_map", "quantization_config", "attn_implementation", "_attn_implementation"}


def inconsistency(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the values of a checkpoint whose fields have the right types; None where nothing is."""
    if checkpoint.method not in FILES:
        return "unknown method"
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
    known, written = checkpoint.model_config.get("vocab_size", 0), checkpoint.written
    if tokens > known:
        return "more tokens than the model knows"
    is_text = written.dtype == torch.int32 and written.dim() == 2 and ((0 <= written) & (written < known)).all()
    return None if is_text else "what it wrote is no text"


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
