"""Loss, perplexity and accuracy on held-out text."""

import math
from itertools import islice

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data.batches import batches_in_order
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.parallel import process_count, process_rank, sum_over_processes
from k1.training.trainer import next_token_loss

SPLITS = ("validation", "test")


def evaluate(
    model: PreTrainedModel,
    datasets: list[TokenizedDataset],
    arguments: Arguments,
    splits: tuple[str, ...] = SPLITS,
) -> dict:
    """Evaluate `model` on the validation and test text, or other `splits`, of each of `datasets`.

    Returns dataset name -> split -> `loss` (nats per token), `perplexity` (its
    exponential), `accuracy` (share of tokens that were the model's first choice)
    and `tokens` (number of predicted tokens). Of a long split the first
    `arguments.evaluation_tokens` tokens are read. In a block each token but the
    first is predicted from the ones before it.
    """
    return {
        dataset.name: {split: evaluate_blocks(model, dataset.blocks[split], arguments) for split in splits}
        for dataset in datasets
    }


@torch.no_grad()
def evaluate_blocks(model: PreTrainedModel, blocks: Dataset, arguments: Arguments) -> dict:
    """Loss, perplexity, accuracy and number of predicted tokens over `blocks`; see `evaluate`.

    Raises `K1Error` when the loss is not finite.
    """
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64)  # loss, correct predictions, predictions
    batches = batches_in_order(blocks, arguments.seq_length, arguments.evaluation_tokens)
    for input_ids in islice(batches, process_rank(), None, process_count()):
        input_ids = input_ids.to(model.device)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            logits = model(input_ids=input_ids).logits.float()
        loss, targets = next_token_loss(logits, input_ids).item(), input_ids[:, 1:]
        correct = int((logits.argmax(-1)[:, :-1] == targets).sum())
        totals += torch.tensor([loss, correct, targets.numel()], dtype=torch.float64)
    sum_over_processes(totals)
    loss, correct, tokens = totals.tolist()
    mean = loss / tokens
    if not math.isfinite(mean):
        raise K1Error(
            "the loss on held-out text is not finite: training diverged; lower --learning_rate, with --overwrite"
        )
    return {
        "loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
        "accuracy": correct / tokens,
        "tokens": int(tokens),
    }
