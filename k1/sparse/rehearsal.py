"""Rehearsal: a model writes text before it learns a new dataset, and is held to its own predictions on it.

No text of an old dataset is read: what a model has learned is in what it writes
(LAMOL, arXiv:1909.03329; self-synthesized rehearsal, arXiv:2403.01244) and in
how it predicts it (learning without forgetting, arXiv:1606.09282).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from k1.arguments import Arguments
from k1.data.batches import shuffled
from k1.data.tokenizer import end_of_document
from k1.errors import K1Error
from k1.parallel import copy_from_main_process
from k1.sparse.selection import Tensors

# generate() has advice on stderr for library users.
logging.set_verbosity_error()

DOCUMENTS = 128  # written side by side
# Keeps the seeds of one stage's sequences apart from those of other stages.
SEEDS_PER_STAGE = 1_000_003
ROWS = 32  # predicted at a time


@dataclass(frozen=True)
class Rehearsal:
    """Text that a model wrote, and what it predicts in it, in a compact form.

    `sequences` are token ids, (count, length); `states` the inputs of the model's
    output layer at every position but the last, (count, length - 1, width), and
    `weight`, (vocabulary, width), and `bias` the output layer as it was. So a
    prediction takes 4 x width bytes a token instead of 4 x vocabulary.
    """

    sequences: Tensor
    states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def logits(self, rows: list[int]) -> Tensor:
        """What the model predicted in the sequences `rows`, (rows, length - 1, vocabulary)."""
        return functional.linear(self.states[rows], self.weight, self.bias)

    def batches(self, size: int, seed: int, skip: int = 0) -> Iterator[list[int]]:
        """Numbers of sequences, `size` at a time without end, see `k1.data.batches.shuffled`."""
        return shuffled(len(self.sequences), size, seed, skip)

    def tensors(self) -> Tensors:
        """All of it by name."""
        found = {"sequences": self.sequences, "states": self.states, "weight": self.weight}
        return found if self.bias is None else {**found, "bias": self.bias}


@torch.no_grad()
def write_rehearsal(model: PreTrainedModel, tokenizer: Tokenizer, arguments: Arguments) -> Rehearsal | None:
    """Let `model` write what it rehearses during the stage of `arguments`; None where that is nothing.

    `arguments.rehearsal_sequences` sequences of `seq_length` tokens, see
    `write_sequences`. Of several processes all take those of the main one. Raises `K1Error`
    where the predictions are not finite, or not those of the output layer alone.
    """
    if not arguments.rehearsed_rows:
        return None
    model.eval()
    # The weights L Theta R^T are multiplied out once, not again at every token.
    with parametrize.cached():
        sequences = write_sequences(model, end_of_document(tokenizer), arguments)
        copy_from_main_process(sequences)
        states = output_layer_inputs(model, sequences)
        copy_from_main_process(states)
        if not torch.isfinite(states).all():
            raise K1Error("the model that should rehearse is not finite: it diverged; train its stage again")
        output = model.get_output_embeddings()
        bias = getattr(output, "bias", None)
        rehearsal = Rehearsal(sequences, states, output.weight.detach().clone(), bias if bias is None else bias.clone())
        logits = model(input_ids=sequences[:1]).logits[:, :-1]
    if not torch.allclose(rehearsal.logits([0]), logits, rtol=1e-3, atol=1e-3):
        raise K1Error("the model changes what its output layer gives, which rehearsal does not know; use --rehearsal 0")
    return rehearsal


def write_sequences(model: PreTrainedModel, end: int, arguments: Arguments) -> Tensor:
    """Sequences, (count, length) token ids, sampled from the whole distribution of `model` (temperature 1), seeded.

    128 documents are begun after the end-of-document token `end` and written side
    by side. A document goes on in the next sequence, which sees only the last token
    of the one before it, as the blocks of training text begin anywhere in a document.
    """
    count, length = arguments.rehearsal_sequences, arguments.seq_length
    last = torch.full((min(DOCUMENTS, count), 1), end, device=model.device)
    written: list[Tensor] = []
    while len(written) * DOCUMENTS < count:
        last = last[: count - len(written) * DOCUMENTS]
        seed = arguments.stage_seed + SEEDS_PER_STAGE * len(written)
        # Without the token that it goes on from: a model would learn to tell rehearsed text by its first token.
        written.append(sample_tokens(model, last, length, seed, end)[:, 1:])
        last = written[-1][:, -1:]
    return torch.cat(written)


def sample_tokens(model: PreTrainedModel, prompts: Tensor, new_tokens: int, seed: int, end: int) -> Tensor:
    """Continue `prompts`, (rows, length) token ids, by `new_tokens`, sampled with a seed; returns both together.

    A row goes on beyond the token `end`, into the next document.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=end, eos_token_id=None,
        use_cache=True,
    )  # fmt: skip
    devices = [prompts.device] if prompts.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)


def output_layer_inputs(model: PreTrainedModel, sequences: Tensor) -> Tensor:
    """The inputs of the output layer at every position but the last of `sequences`, (count, length - 1, width)."""
    states = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda layer, inputs: states.append(inputs[0][:, :-1].float())
    )
    try:
        for rows in sequences.split(ROWS):
            model(input_ids=rows)
    finally:
        hook.remove()
    return torch.cat(states)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence, in nats, of the distribution of `logits` from that of `target`, at each position.

    Both are (sequences, length, vocabulary), the result is (sequences, length).
    """
    predicted, wanted = (torch.log_softmax(values.float(), dim=-1) for values in (logits, target))
    return functional.kl_div(predicted, wanted, reduction="none", log_target=True).sum(-1)
