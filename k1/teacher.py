"""The teacher: a model as it is before it learns something new, without a second one in memory if that can be."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from k1.errors import K1Error
from k1.sparse import require_whole


def unwrapped(model: Any) -> Any:
    """`model` without what DistributedDataParallel and torch.compile put around it."""
    while (inner := model._modules.get("module", model._modules.get("_orig_mod"))) is not None:
        model = inner
    return model


def config_of(model: PreTrainedModel) -> PretrainedConfig:
    """The configuration of a causal language model; raises `K1Error` for any other model."""
    can_generate = getattr(model, "can_generate", lambda: False)()
    if not can_generate or model.config.is_encoder_decoder:
        name = type(model).__name__
        raise K1Error(f"rehearsal is for causal language models of transformers, not {name}; sparse updates fit any")
    return model.config.get_text_config()


def teacher_of(
    model: PreTrainedModel, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> PreTrainedModel:
    """A frozen copy of `model`; of one that trains a fresh adapter of peft alone itself, as it is there without it.

    Raises `K1Error` for a model in pieces, an adapter that is a prompt, and the `dtype` or `device` of no copy;
    and for weights that would get no gradient after the model has predicted.
    """
    require_whole(model.parameters())
    if getattr(model, "is_loaded_in_4bit", False) and model.device.type == "cpu":
        raise K1Error(
            "bitsandbytes on a CPU has no gradients once a model has predicted; use a GPU, or quantize with torchao"
        )
    if hasattr(model, "disable_adapter"):
        if model.active_peft_config.is_prompt_learning:  # type: ignore[union-attr]
            raise K1Error("rehearsal does not fit an adapter that is a prompt; choose another, such as LoRA")
        if is_adapter_alone(model):
            if dtype or device:
                raise K1Error("the teacher is the model with its adapter off, no copy: leave out its dtype and device")
            return model
    # Made as and where it should be, it is never whole beside the model first.
    copies = {
        id(kept): torch.nn.Parameter(kept.detach().to(device or kept.device, dtype or kept.dtype, copy=True))
        for kept in model.parameters()
        if dtype or device
    }
    teacher = copy.deepcopy(model, copies)
    # `generate` asks for its cache; to predict needs none.
    teacher.config.get_text_config().use_cache = False
    return (teacher.to(device) if device else teacher).eval().requires_grad_(False)  # type: ignore[arg-type]


@torch.no_grad()
def is_adapter_alone(model: Any) -> bool:
    """Whether a `model` of peft predicts the same with its adapter as without, and trains nothing else."""
    tokens = torch.arange(min(16, config_of(model).vocab_size), device=model.device)[None]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with in_mode(model, training=False):
        ours = model(input_ids=tokens).logits
        with without_adapter(model):
            is_fresh = torch.allclose(ours, model(input_ids=tokens).logits, rtol=1e-3, atol=1e-3)
            # What the adapter has is switched off there; biases or norms that train beside it are not.
            return is_fresh and not any(parameter.requires_grad for parameter in trained)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Context in which a `model` of peft is the one below its adapter, in evaluation mode."""
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with in_mode(model, training=False), model.disable_adapter():
            yield
    finally:
        # peft lets all of an adapter train afterwards, also what was frozen.
        for parameter, is_trained in trained.items():
            parameter.requires_grad_(is_trained)


@contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Context in which `model` is in training, or evaluation, mode; afterwards each part is in the mode it was in."""
    before = {part: part.training for part in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for part, was_training in before.items():
            part.training = was_training
        # Under autocast the weights that were rounded here without gradients would be taken for training.
        torch.clear_autocast_cache()


@contextmanager
def casts_kept(model: PreTrainedModel) -> Iterator[None]:
    """Context in which autocast casts each weight of `model` once, and not for every token.

    It keeps the casts of what needs a gradient alone; here frozen weights seem to. `in_mode` forgets them.
    """
    is_autocast = torch.is_autocast_enabled(model.device.type)
    weights = [weight for weight in model.parameters() if weight.is_floating_point() and not weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(is_autocast)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
