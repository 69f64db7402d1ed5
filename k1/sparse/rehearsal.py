"""Rehearsal: models write text in the style of each dataset, and a later model is held to what it predicts in it.

No text of an old dataset is read or kept: what a model has learned is in what it
writes (LAMOL, arXiv:1909.03329; self-synthesized rehearsal, arXiv:2403.01244)
and in how it predicts it (learning without forgetting, arXiv:1606.09282). The
model in training goes on with that text in its own words, so that it is held to its
old predictions where it would begin to go astray (on-policy distillation,
arXiv:2306.13649).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from k1.arguments import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.data.tokenizer import end_of_document
from k1.errors import K1Error
from k1.model import seeded
from k1.parallel import copy_from_main_process
from k1.sparse.eigenbasis import folded_copy

# generate() has advice on stderr for library users.
logging.set_verbosity_error()

ROWS = 128  # written side by side
# Keeps the seeds of one stage's sequences apart from those of other stages.
SEEDS_PER_STAGE = 1_000_003


def beginning_of(seq_length: int) -> int:
    """How many tokens of a sequence that is written are given: a quarter."""
    return max(1, seq_length // 4)


@torch.no_grad()
def write_rehearsal(
    model: PreTrainedModel,
    dataset: TokenizedDataset,
    tokenizer: Tokenizer,
    arguments: Arguments,
    earlier: Tensor | None = None,
) -> Tensor:
    """What later stages rehearse, written by `model` at the end of the stage that learned `dataset`.

    The model goes on from `arguments.rehearsal_sequences` beginnings in the training text,
    a quarter of `seq_length` each, and only what it wrote is kept: token ids,
    (sequences, three quarters of `seq_length`), int32, after those of the stages before
    (`earlier`), so that every dataset has its part.
    """
    length = arguments.seq_length
    given = beginning_of(length)
    blocks = next(batches_of_blocks(dataset.blocks["train"], arguments.rehearsal_sequences, arguments.stage_seed))
    end, plain = end_of_document(tokenizer), folded_copy(model)
    written = [
        sample_tokens(plain, rows, length - given, arguments.stage_seed + SEEDS_PER_STAGE * number, end)[:, given:]
        for number, rows in enumerate(blocks[:, :given].to(model.device).split(ROWS))
    ]
    sequences = torch.cat(written)
    copy_from_main_process(sequences)
    return torch.cat([*([] if earlier is None else [earlier]), sequences.to("cpu", torch.int32)])


@dataclass
class Rehearsal:
    """The text that is rehearsed during a stage, and the model whose predictions in it are kept.

    `teacher` is the model as it was before the stage, frozen; `written` what it and the
    models before it wrote, see `write_rehearsal`; `end` the end-of-document token.
    `sequences`, token ids (rows, seq_length), is what is rehearsed: what the model in
    training makes of it, see `rewrite`.
    """

    teacher: PreTrainedModel
    written: Tensor
    end: int
    arguments: Arguments
    sequences: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))

    @property
    def passes(self) -> int:
        """Forward passes in which the same sequences are rehearsed, each its part of them."""
        return self.arguments.rehearsal_interval * self.arguments.gradient_accumulation_steps

    def is_due(self, step: int) -> bool:
        """Whether the sequences are written anew before `step`, the first one included."""
        return (step - 1) % self.arguments.rehearsal_interval == 0

    @torch.no_grad()
    def rewrite(self, model: PreTrainedModel, step: int) -> None:
        """Let the `model` in training write the sequences of the next `rehearsal_interval` steps.

        Each begins with a quarter of `seq_length` from anywhere in a sequence of
        `written`; the rest is sampled from the model, seeded.
        """
        seed = self.arguments.stage_seed + SEEDS_PER_STAGE * step
        generator = torch.Generator().manual_seed(seed)
        rows, given = self.arguments.rehearsed_rows * self.passes, beginning_of(self.arguments.seq_length)
        chosen = torch.randint(len(self.written), (rows, 1), generator=generator)
        starts = torch.randint(self.written.shape[1] - given + 1, (rows, 1), generator=generator)
        beginnings = self.written[chosen, starts + torch.arange(given)].long().to(model.device)
        model.eval()
        # The weights L Theta R^T are multiplied out once, not again at every token.
        with parametrize.cached():
            self.sequences = sample_tokens(model, beginnings, self.arguments.seq_length - given, seed, self.end)
        model.train()
        copy_from_main_process(self.sequences)

    def restore(self, sequences: Tensor) -> None:
        """Go on with the `sequences` of a training that was stopped; raises `ValueError` where they do not fit."""
        shape = (self.arguments.rehearsed_rows * self.passes, self.arguments.seq_length)
        in_vocabulary = (0 <= sequences) & (sequences < self.teacher.config.vocab_size)
        if sequences.shape != shape or sequences.dtype != torch.long or not in_vocabulary.all():
            raise ValueError("other rehearsed sequences")
        self.sequences = sequences.to(self.teacher.device)

    @torch.no_grad()
    def logits(self, rows: list[int]) -> Tensor:
        """The teacher's logits in the sequences `rows` at all positions but the last, (rows, positions, vocabulary)."""
        return self.teacher(input_ids=self.sequences[rows]).logits[:, :-1]

    def batches(self, skip: int = 0) -> Iterator[list[int]]:
        """The numbers of the sequences of each forward pass, without end; the first `skip` passes are left out."""
        size = self.arguments.rehearsed_rows
        for number in count(skip):
            first = size * (number % self.passes)
            yield list(range(first, first + size))


def begin_rehearsal(
    model: PreTrainedModel, written: Tensor | None, tokenizer: Tokenizer, arguments: Arguments
) -> Rehearsal | None:
    """What `model` rehearses during the stage of `arguments`, with a copy of it as the teacher; None where nothing.

    `written` is that of the checkpoint before. Raises `K1Error` where it is none, or the predictions are not finite.
    """
    if not arguments.rehearsed_rows:
        return None
    if written is None or not len(written) or written.shape[1] < beginning_of(arguments.seq_length):
        raise K1Error("the checkpoint before has no text to rehearse; train its stage again, or add --rehearsal 0")
    teacher = folded_copy(model)
    if not torch.isfinite(teacher(input_ids=written[:1].long().to(model.device)).logits).all():
        raise K1Error("the model that should rehearse is not finite: it diverged; train its stage again")
    return Rehearsal(teacher, written, end_of_document(tokenizer), arguments)


def sample_tokens(model: PreTrainedModel, prompts: Tensor, new_tokens: int, seed: int, end: int) -> Tensor:
    """Continue `prompts`, (rows, length) token ids, by `new_tokens`, sampled with a seed; returns both together.

    A row goes on beyond the token `end`, into the next document. What a model that
    diverged predicts is not noticed here, but in the loss.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=end, eos_token_id=None,
        use_cache=True, remove_invalid_values=True,
    )  # fmt: skip
    with seeded(seed, prompts.device):
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence, in nats, of the distribution of `target` from that of `logits`, at each position.

    KL(`logits` || `target`), which weighs most what a model has come to say and would not
    have said before (arXiv:2306.08543). Both are (sequences, length, vocabulary), the result is (sequences, length).
    """
    predicted, wanted = (torch.log_softmax(values.float(), dim=-1) for values in (logits, target))
    return functional.kl_div(wanted, predicted, reduction="none", log_target=True).sum(-1)
