"""How much each parameter matters to a dataset: the diagonal of the empirical Fisher information."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from k1.arguments import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.parallel import sum_over_processes
from k1.sparse.batches import Batch, evaluation_mode, losses
from k1.sparse.selection import Tensors

# The scale of the importance, and with it of lambda, depends on this.
SEQUENCES_PER_BATCH = 8
# Two to three digits, at half the memory: a sample of the text tells no more.
PRECISION = torch.bfloat16


def sample_batches(dataset: TokenizedDataset, arguments: Arguments) -> list[Tensor]:
    """Token ids, (8, length) each, of the training text that a dataset's bases and importance are measured on."""
    batches = batches_of_blocks(dataset.blocks["train"], SEQUENCES_PER_BATCH, arguments.stage_seed)
    return [batch.to(arguments.device) for batch in islice(batches, arguments.importance_batches)]


def fisher_information(model: nn.Module, batches: Iterable[Batch]) -> Tensors:
    """Mean over `batches` of the squared gradient of the loss with respect to each parameter.

    A batch is token ids, (batch, length), or a dictionary as a data loader gives
    it (see `k1.sparse.batches`); the loss is in nats per token, so
    the result is in squared nats per token and unit of the parameter. It is the
    empirical Fisher information of EWC (arXiv:1612.00796), of mini-batches
    instead of samples. Returns parameter name -> tensor of its shape, zero where
    the loss does not depend on it. Raises `K1Error` when a gradient is not finite or there is no batch.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = torch.zeros(())
    model.zero_grad()
    with evaluation_mode(model):
        for loss in losses(model, batches):
            loss.backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    total[name] += parameter.grad.square()
            model.zero_grad()
            count += 1
    sum_over_processes(count, *total.values())
    if not all(torch.isfinite(value).all() for value in total.values()):
        raise K1Error(
            "training diverged: a gradient is not finite, so no importance; lower --learning_rate, with --overwrite"
        )
    return {name: (value / int(count)).to(PRECISION) for name, value in total.items()}


def add_importance(old: Tensors, new: Tensors) -> Tensors:
    """Omega over one more dataset: the sum of both, parameter by parameter."""
    return {name: old[name].to(value.device) + value for name, value in new.items()}
