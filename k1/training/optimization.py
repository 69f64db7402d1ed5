"""The optimizer of a stage, its learning rates, and the share of the stage's change that is kept."""

import torch
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from k1.arguments import Arguments
from k1.sparse.optimizer import SparseAdamW
from k1.sparse.selection import Tensors

# Near zero, float32 rounds most updates away, and a step would change far fewer parameters than were selected.
FINAL_LEARNING_RATE_SHARE = 0.1


def build_optimizer(
    model: PreTrainedModel,
    arguments: Arguments,
    importance: Tensors | None = None,
    responsibility: Tensors | None = None,
) -> SparseAdamW:
    """AdamW over all parameters; weight decay acts on matrices only, not on normalisations."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in trained if parameter.dim() >= 2]
    vectors = [(name, parameter) for name, parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return SparseAdamW(
        [group for group in groups if group["params"]],
        selection=arguments.selection,
        update_fraction=arguments.update_fraction,
        seed=arguments.stage_seed,
        importance=importance and {name: value.to(arguments.device) for name, value in importance.items()},
        responsibility=responsibility,
        gain_floor=arguments.gain_floor,
        consolidation=arguments.consolidation,
        lr=arguments.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def warmup_and_cosine(optimizer: torch.optim.Optimizer, warmup_steps: int, max_steps: int, done: int = 0):
    """Linear warm-up, then cosine decay to a tenth of the peak, over `max_steps` steps of which some are `done`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    # transformers' schedule begins with a step at zero; starting at its second point skips that.
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup_steps + 1, max_steps + 1, last_epoch=done, min_lr_rate=FINAL_LEARNING_RATE_SHARE
    )


@torch.no_grad()
def interpolate(model: PreTrainedModel, start: Tensors, share: float) -> None:
    """Keep `share` of the change since `start`, in place: weight-space ensembling (WiSE-FT, arXiv:2109.01903).

    A parameter that did not change keeps its bits.
    """
    for name, value in start.items():
        model.get_parameter(name).lerp_(value, 1 - share)
