"""Rehearsal: models write text in the style of each dataset, and a later model is held to what it predicts in it.

No text of an old dataset is read or kept: what a model has learned is in what it
writes (LAMOL, arXiv:1909.03329; self-synthesized rehearsal, arXiv:2403.01244)
and in how it predicts it (learning without forgetting, arXiv:1606.09282). The
model in training goes on with that text in its own words, so that it is held to its
old predictions where it would begin to go astray (on-policy distillation,
arXiv:2306.13649).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from k1.arguments import Arguments
from k1.data.batches import batches_of_blocks, shuffled
from k1.data.loader import TokenizedDataset
from k1.data.tokenizer import end_of_document
from k1.errors import K1Error
from k1.model import static_cache
from k1.parallel import copy_from_main_process
from k1.presets import Preset
from k1.sparse.batches import Batch, beginnings, evaluation_mode
from k1.sparse.eigenbasis import folded_copy

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
    given = beginning_of(arguments.seq_length)
    blocks = next(batches_of_blocks(dataset.blocks["train"], arguments.rehearsal_sequences, arguments.stage_seed))
    new, end = arguments.seq_length - given, end_of_document(tokenizer)
    return go_on_from(blocks[:, :given], folded_copy(model), new, arguments.stage_seed, end, earlier)


def go_on_from(
    given: Tensor, model: PreTrainedModel, new_tokens: int, seed: int, end: int | None, earlier: Tensor | None
) -> Tensor:
    """The `new_tokens` tokens that `model` writes after each row of `given`, seeded, after the rows of `earlier`."""
    written = [
        sample_tokens(model, rows, new_tokens, seed + SEEDS_PER_STAGE * number, end)[:, given.shape[1] :]
        for number, rows in enumerate(given.to(model.device).split(ROWS))
    ]
    sequences = torch.cat(written)
    copy_from_main_process(sequences)
    return torch.cat([*([] if earlier is None else [earlier]), sequences.to("cpu", torch.int32)])


@dataclass
class Rehearsal:
    """The text that is rehearsed during a stage, and the model whose predictions in it are kept.

    `teacher` is the model as it was before the stage, frozen; `written` what it and the
    models before it wrote, token ids, see `write_rehearsal`; `end` the end-of-document
    token, where known. Each forward pass rehearses `rows` sequences of `length` tokens,
    and a step has `passes_per_step` of them; every `interval` steps the sequences are
    written anew, with the `seed`. `sequences`, token ids (rows, length), is what is
    rehearsed: what the model in training makes of `written`, see `rewrite`.
    """

    teacher: PreTrainedModel
    written: Tensor
    end: int | None
    rows: int
    length: int
    interval: int
    passes_per_step: int
    seed: int
    sequences: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))

    @property
    def passes(self) -> int:
        """Forward passes in which the same sequences are rehearsed, each its part of them."""
        return self.interval * self.passes_per_step

    def is_due(self, step: int) -> bool:
        """Whether the sequences are written anew before `step`, the first one included."""
        return (step - 1) % self.interval == 0

    @torch.no_grad()
    def rewrite(self, model: PreTrainedModel, step: int) -> None:
        """Let the `model` in training write the sequences of the next `interval` steps.

        Each begins with a quarter of `length` from anywhere in a sequence of
        `written`; the rest is sampled from the model, seeded.
        """
        seed = self.seed + SEEDS_PER_STAGE * step
        generator = torch.Generator().manual_seed(seed)
        rows, given = self.rows * self.passes, beginning_of(self.length)
        chosen = torch.randint(len(self.written), (rows, 1), generator=generator)
        starts = torch.randint(self.written.shape[1] - given + 1, (rows, 1), generator=generator)
        texts = self.written[chosen, starts + torch.arange(given)].long().to(model.device)
        # The weights L Theta R^T are multiplied out once, not again at every token.
        with evaluation_mode(model), parametrize.cached():
            self.sequences = sample_tokens(model, texts, self.length - given, seed, self.end)
        # Under autocast the rounded weights, made here without gradients, would be taken for training.
        torch.clear_autocast_cache()
        copy_from_main_process(self.sequences)

    def discard(self) -> None:
        """Forget the sequences, so that `loss` has them written anew at the next step, whichever it is."""
        self.sequences = torch.empty(0, 0, dtype=torch.long)

    def loss(self, model: PreTrainedModel, step: int) -> Tensor:
        """Mean divergence, in nats per token, of `model` from the teacher in the sequences of `step`, from 1 on.

        It has them written anew where that is due. Its gradient is to be added, times a weight, to that on new text.
        """
        if self.is_due(step) or not len(self.sequences):
            self.rewrite(model, step)
        # A Trainer moves the model to its device after the teacher was made.
        self.teacher.to(model.device)
        size = self.rows * self.passes_per_step
        first = size * ((step - 1) % self.interval)
        tokens = self.sequences[first : first + size]
        return divergence_from(self.teacher, tokens, model(input_ids=tokens).logits).mean()

    def restore(self, sequences: Tensor) -> None:
        """Go on with the `sequences` of a training that was stopped; raises `ValueError` where they do not fit."""
        shape = (self.rows * self.passes, self.length)
        in_vocabulary = (0 <= sequences) & (sequences < self.teacher.config.vocab_size)
        if sequences.shape != shape or sequences.dtype != torch.long or not in_vocabulary.all():
            raise ValueError("other rehearsed sequences")
        self.sequences = sequences.to(self.teacher.device)

    def batches(self, skip: int = 0) -> Iterator[list[int]]:
        """The numbers of the sequences of each forward pass, without end; the first `skip` passes are left out."""
        for number in count(skip):
            first = self.rows * (number % self.passes)
            yield list(range(first, first + self.rows))


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
    return checked(
        Rehearsal(
            teacher=folded_copy(model),
            written=written,
            end=end_of_document(tokenizer),
            rows=arguments.rehearsed_rows,
            length=arguments.seq_length,
            interval=arguments.rehearsal_interval,
            passes_per_step=arguments.gradient_accumulation_steps,
            seed=arguments.stage_seed,
        )
    )


@torch.no_grad()
def rehearsal_of(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    sequences: int = Preset.rehearsal_sequences,
    length: int = 128,
    rows: int = 4,
    interval: int = Preset.rehearsal_interval,
    seed: int = 0,
    earlier: Tensor | None = None,
) -> Rehearsal:
    """Let `model` write what it rehearses while it learns something new, with a copy of it as the teacher.

    Like `write_rehearsal` and `begin_rehearsal`, for any causal language model:
    it goes on from `sequences` beginnings in `batches` of text that it knows (see
    `k1.sparse.batches`), and only what it wrote is kept, after what was written
    before the last tasks (`earlier`, the `written` of their rehearsal). A training
    step rehearses `rows` sequences of `length` tokens, see `Rehearsal`. Raises
    `K1Error` for numbers that cannot be, and where no text is long enough.
    """
    given = beginning_of(length)
    if length < 2 or min(sequences, rows, interval) < 1:
        raise K1Error("a rehearsal needs a length of at least 2 tokens, and 1 sequence, 1 row and 1 step or more")
    if length > (getattr(model.config, "max_position_embeddings", None) or length):
        raise K1Error(f"length {length} is more than the {model.config.max_position_embeddings} positions of the model")
    if earlier is not None and (earlier.dim() != 2 or earlier.shape[1] != length - given):
        raise K1Error(f"what was written earlier is not of length {length}; give the same length to every rehearsal")
    found, teacher = beginnings(batches, given, length), folded_copy(model)
    chosen = next(shuffled(len(found), sequences, seed))
    written = go_on_from(found[chosen], teacher, length - given, seed, None, earlier)
    return checked(Rehearsal(teacher, written, None, rows, length, interval, passes_per_step=1, seed=seed))


def checked(rehearsal: Rehearsal) -> Rehearsal:
    """`rehearsal`; raises `K1Error` where the predictions of its teacher are not finite."""
    teacher = rehearsal.teacher
    if not torch.isfinite(teacher(input_ids=rehearsal.written[:1].long().to(teacher.device)).logits).all():
        raise K1Error("the model that should rehearse is not finite: it diverged; train its stage again")
    return rehearsal


def sample_tokens(model: PreTrainedModel, prompts: Tensor, new_tokens: int, seed: int, end: int | None) -> Tensor:
    """Continue `prompts`, (rows, length) token ids, by `new_tokens`, sampled with a seed; returns both together.

    A row goes on beyond the token `end`, into the next document. What a model that
    diverged predicts is not noticed here, but in the loss.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=end, eos_token_id=None,
        use_cache=True, remove_invalid_values=True, disable_compile=True,
    )  # fmt: skip
    sampling = InverseTransformSampling(torch.Generator().manual_seed(seed))
    with no_settings_of_its_own(model):
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=config,
            logits_processor=LogitsProcessorList([sampling]),
            past_key_values=static_cache(model, prompts.shape[1] + new_tokens),
        )


class InverseTransformSampling(LogitsProcessor):
    """Draws the next token of each row and lets no other through, so that a greedy `generate` samples.

    `torch.multinomial`, by which `generate` samples, draws a random number for every
    token of the vocabulary; this draws one for every row, from `generator`, and
    finds it in the cumulative distribution. That is done on the CPU: elsewhere a
    cumulative sum does not repeat its bits.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = torch.softmax(scores.float(), dim=-1).cpu().cumsum(-1)
        drawn = torch.rand(len(scores), 1, generator=self.generator) * cumulative[:, -1:]
        # Rounded up to the whole sum, it would be after the last token.
        chosen = torch.searchsorted(cumulative, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen.to(scores.device), 0.0)


@contextmanager
def no_settings_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Context in which `generate` does as it is told: a pretrained model's own settings would fill what is None.

    It is also quiet: generate() has advice on stderr for other uses.
    """
    own, verbosity = model.generation_config, logging.get_verbosity()
    model.generation_config = GenerationConfig()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        model.generation_config = own
        logging.set_verbosity(verbosity)


def divergence_from(teacher: PreTrainedModel, tokens: Tensor, logits: Tensor) -> Tensor:
    """Divergence of `logits` from the teacher's in `tokens`, in nats; (rows, length - 1), without the last position."""
    with torch.no_grad():
        target = teacher(input_ids=tokens).logits
    return divergence(logits, target)[:, :-1]


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence, in nats, of the distribution of `target` from that of `logits`, at each position.

    KL(`logits` || `target`), which weighs most what a model has come to say and would not
    have said before (arXiv:2306.08543). Both are (sequences, length, vocabulary), the result is (sequences, length).
    """
    predicted, wanted = (torch.log_softmax(values.float(), dim=-1) for values in (logits, target))
    return functional.kl_div(wanted, predicted, reduction="none", log_target=True).sum(-1)
