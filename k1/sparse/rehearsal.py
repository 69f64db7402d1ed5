"""Rehearsal: a model writes text before and while it learns a new dataset, and is held to what it predicted before.

No text of an old dataset is read: what a model has learned is in what it writes
(LAMOL, arXiv:1909.03329; self-synthesized rehearsal, arXiv:2403.01244) and in
how it predicts it (learning without forgetting, arXiv:1606.09282). The model in
training goes on with that text in its own words, so that it is held to its old
predictions where it would begin to go astray (on-policy distillation,
arXiv:2306.13649).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from k1.arguments import Arguments
from k1.data.batches import shuffled
from k1.data.tokenizer import END_OF_DOCUMENT
from k1.errors import K1Error
from k1.parallel import copy_from_main_process
from k1.sparse.eigenbasis import folded_copy

# generate() has advice on stderr for library users.
logging.set_verbosity_error()

DOCUMENTS = 128  # written side by side
# Keeps the seeds of one stage's sequences apart from those of other stages.
SEEDS_PER_STAGE = 1_000_003
# Of a rewritten sequence this part is the teacher's.
BEGINNING = 1 / 4


@dataclass
class Rehearsal:
    """Text that is rehearsed during a stage, and the model whose predictions in it are kept.

    `teacher` is the model as it was before the stage, frozen; `written` is what it
    wrote, token ids (count, length); `end` the end-of-document token. `sequences`,
    (rows, length), is what is rehearsed: the same or, with
    `arguments.rehearsal_interval`, what the model in training makes of it, see
    `rewrite`.
    """

    teacher: PreTrainedModel
    written: Tensor
    end: int
    arguments: Arguments
    sequences: Tensor

    def is_due(self, step: int) -> bool:
        """Whether the sequences are written anew before `step`, the first one included."""
        interval = self.arguments.rehearsal_interval
        return interval > 0 and (step - 1) % interval == 0

    @torch.no_grad()
    def rewrite(self, model: PreTrainedModel, step: int) -> None:
        """Let the `model` in training write the sequences of the next `rehearsal_interval` steps.

        Each begins with a quarter of a sequence that the teacher wrote, from anywhere
        in it; the rest is sampled from the model, seeded.
        """
        seed = self.arguments.stage_seed + SEEDS_PER_STAGE * step
        generator = torch.Generator().manual_seed(seed)
        rows, length = self._rows_of_interval, self.written.shape[1]
        kept = max(1, int(BEGINNING * length))
        chosen = torch.randint(len(self.written), (rows, 1), generator=generator)
        starts = torch.randint(length - kept + 1, (rows, 1), generator=generator)
        beginnings = self.written[chosen.to(self.written.device), (starts + torch.arange(kept)).to(self.written.device)]
        model.eval()
        # The weights L Theta R^T are multiplied out once, not again at every token.
        with parametrize.cached():
            self.sequences = sample_tokens(model, beginnings, length - kept, seed, self.end)
        model.train()
        copy_from_main_process(self.sequences)

    @property
    def _rows_of_interval(self) -> int:
        arguments = self.arguments
        return arguments.rehearsed_rows * arguments.gradient_accumulation_steps * arguments.rehearsal_interval

    @torch.no_grad()
    def logits(self, rows: list[int]) -> Tensor:
        """What the teacher predicts in the sequences `rows` at every position but the last, (rows, length - 1, vocabulary)."""
        return self.teacher(input_ids=self.sequences[rows]).logits[:, :-1]

    def restore(self, sequences: Tensor) -> None:
        """Go on with the `sequences` of a training that was stopped; raises `ValueError` where they do not fit."""
        shape = (self._rows_of_interval or len(self.written), self.written.shape[1])
        in_vocabulary = (0 <= sequences) & (sequences < self.teacher.config.vocab_size)
        if sequences.shape != shape or sequences.dtype != self.written.dtype or not in_vocabulary.all():
            raise ValueError("other rehearsed sequences")
        self.sequences = sequences.to(self.written.device)

    def batches(self, skip: int = 0) -> Iterator[list[int]]:
        """The numbers of the sequences of each forward pass, without end; the first `skip` passes are left out.

        In order where they are written anew, else shuffled, see `k1.data.batches.shuffled`.
        """
        size = self.arguments.rehearsed_rows
        if not self.arguments.rehearsal_interval:
            return shuffled(len(self.sequences), size, self.arguments.stage_seed, skip)
        passes = self._rows_of_interval // size
        return (list(range(size * (number % passes), size * (number % passes + 1))) for number in count(skip))


@torch.no_grad()
def write_rehearsal(model: PreTrainedModel, tokenizer: Tokenizer, arguments: Arguments) -> Rehearsal | None:
    """Let `model` write what it rehearses during the stage of `arguments`; None where that is nothing.

    `arguments.rehearsal_sequences` sequences of `seq_length` tokens, see
    `write_sequences`; a copy of the model is kept as the teacher. Of several processes all
    take the sequences of the main one. Raises `K1Error` where the predictions are not finite.
    """
    if not arguments.rehearsed_rows:
        return None
    teacher = folded_copy(model)
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    written = write_sequences(teacher, end, arguments)
    copy_from_main_process(written)
    if not torch.isfinite(teacher(input_ids=written[:1]).logits).all():
        raise K1Error("the model that should rehearse is not finite: it diverged; train its stage again")
    return Rehearsal(teacher, written, end, arguments, sequences=written)


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

    A row goes on beyond the token `end`, into the next document. What a model that
    diverged predicts is not noticed here, but in the loss.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=end, eos_token_id=None,
        use_cache=True, remove_invalid_values=True,
    )  # fmt: skip
    devices = [prompts.device] if prompts.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence, in nats, of the distribution of `target` from that of `logits`, at each position.

    KL(`logits` || `target`), which weighs most what a model has come to say and would not
    have said before (arXiv:2306.08543). Both are (sequences, length, vocabulary), the result is (sequences, length).
    """
    predicted, wanted = (torch.log_softmax(values.float(), dim=-1) for values in (logits, target))
    return functional.kl_div(wanted, predicted, reduction="none", log_target=True).sum(-1)
