"""The optimizer of a stage and its learning rates."""

import torch
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from k1.config import Arguments
from k1.sparse import sparse_updates

# Near zero, float32 rounds most updates away, and a step would change far fewer parameters than were chosen.
FINAL_LEARNING_RATE_SHARE = 0.1


def build_optimizer(model: PreTrainedModel, arguments: Arguments) -> torch.optim.AdamW:
    """AdamW over all parameters, with the sparse updates of `arguments`; weight decay acts on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if parameter.dim() >= 2],
            "weight_decay": arguments.weight_decay,
        },
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=True)
    if arguments.update_fraction < 1:
        sparse_updates(optimizer, arguments.update_fraction, arguments.stage_seed, arguments.policy)
    return optimizer


def warmup_and_cosine(optimizer: torch.optim.Optimizer, warmup_steps: int, max_steps: int, done: int = 0):
    """Linear warm-up, then cosine decay to a tenth of the peak, over `max_steps` steps of which some are `done`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    # transformers' schedule begins with a step at zero; starting at its second point skips that.
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup_steps + 1, max_steps + 1, last_epoch=done, min_lr_rate=FINAL_LEARNING_RATE_SHARE
    )
