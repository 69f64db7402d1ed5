"""Rehearsal: a model writes text, and is held to what it predicted in it while it learns something new.

No text of an old dataset is read or kept: what a model has learned is in what it
writes (LAMOL, arXiv:1909.03329; self-synthesized rehearsal, arXiv:2403.01244)
and in how it predicts it (learning without forgetting, arXiv:1606.09282). The
model in training continues that text in its own words, so that it is held to its
old predictions where it would begin to go astray (on-policy distillation,
arXiv:2306.13649).
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from k1.errors import K1Error
from k1.known import beginnings, texts_of
from k1.model import static_cache
from k1.parallel import copy_from_main_process, process_rank
from k1.teacher import casts_kept, config_of, in_mode, teacher_of, unwrapped, without_adapter

REHEARSAL_WEIGHT = 1.0
LENGTH = 128  # tokens of a sequence, where the model has as many positions
ROWS = 128  # written side by side
# Keeps the seeds of one stage's sequences apart from those of other stages, and those of processes.
SEEDS_PER_STAGE = 1_000_003
STEPS_PER_PROCESS = 2**20
# Enough for a standard error of some thousandths of a nat.
MEASURED_SEQUENCES = 64
BISECTIONS = 6
POSITIONS_AT_ONCE = 128
# Of known text so many beginnings are read for each that is continued.
CHOICE = 10
# What DistributedDataParallel and torch.compile put before the names of parameters.
WRAPPERS = r"^((module|_orig_mod)\.)+"


class Rehearsal:
    """The text that a model rehearses while it learns something new, and the teacher whose predictions are kept.

    The teacher is `model` as it is now: a frozen copy, of `teacher_dtype` and on
    `teacher_device` if given, or, if it trains a fresh adapter of peft alone, the model itself
    with the adapter off. With `known`, text that the model knows (see `k1.known.texts_of`; the
    `tokenizer` is for texts and chats), it continues `sequences` beginnings of it, a quarter
    of `length` each, and only what it wrote is kept, after what was `written` before earlier
    tasks. With neither it begins with the token that begins a text.

    A training step rehearses `rows` sequences of `length` tokens in each of its
    `passes_per_step` forward passes. Each begins with a quarter of `length` from
    anywhere in what was written, and the model in training continues it, regenerated
    every `interval` steps, with the `seed`. `end` is the token that ends a document, if
    any. `written` has the token ids of each dataset learned so far, (sequences, at most three
    quarters of `length`), int32. Raises `K1Error` for a model that is no causal language model,
    numbers that cannot be, too little text, and if the predictions of the model are not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        known: Iterable | None = None,
        written: Sequence[Tensor] = (),
        *,
        tokenizer: object = None,
        sequences: int = 128,
        length: int | None = None,
        rows: int = 1,
        interval: int = 50,
        passes_per_step: int = 1,
        end: int | None = None,
        seed: int = 0,
        teacher_dtype: torch.dtype | None = None,
        teacher_device: torch.device | str | None = None,
    ) -> None:
        model = unwrapped(model)
        config = config_of(model)
        positions = getattr(config, "max_position_embeddings", None)
        length = min(LENGTH, positions or LENGTH) if length is None else length
        if length < 2 or min(sequences, rows, interval) < 1:
            raise K1Error("a rehearsal needs a length of at least 2 tokens, and 1 sequence, 1 row and 1 step or more")
        if length > (positions or length):
            raise K1Error(f"length {length} is more than the {positions} positions of the model")
        self.rows, self.length, self.interval, self.passes_per_step = rows, length, interval, passes_per_step
        self.end, self.seed, self.step = end, seed, 0
        self.given = max(1, length // 4)
        self._begin = first_token(getattr(config, "bos_token_id", None))
        if any(text.dim() != 2 or text.shape[1] < self.given for text in written):
            raise K1Error(f"what was written earlier is not of length {length}; give every rehearsal the same length")
        self.teacher = teacher_of(model, teacher_dtype, teacher_device)
        self._is_itself = self.teacher is model
        self._moves = teacher_device is None and not self._is_itself
        self.written = list(written)
        if known is not None or not self.written:
            texts = None if known is None else texts_of(known, tokenizer, seed)
            self.written.append(self._write(texts, sequences, positions or math.inf))
        self.discard()
        if not torch.isfinite(self._predicted(self.written[-1][:1].long())).all():
            raise K1Error("the model that should rehearse is not finite: it diverged; train its stage again")

    def as_teacher(self) -> AbstractContextManager[None]:
        """Context in which `teacher` is the model of the start; it always is, unless it is the model in training."""
        return without_adapter(self.teacher) if self._is_itself else nullcontext()

    @torch.no_grad()
    def _predicted(self, tokens: Tensor) -> Tensor:
        """The teacher's logits for `tokens`, (rows, length) ids, on their device."""
        with self.as_teacher():
            return self.teacher(input_ids=tokens.to(self.teacher.device)).logits.to(tokens.device)

    def _write(self, texts: Iterable[Tensor] | None, sequences: int, positions: float) -> Tensor:
        """What the teacher writes after `sequences` beginnings of `texts`, token ids on the CPU, int32."""
        if texts is None:
            if not len(self._begin):
                raise K1Error("the model has no token that begins a text; give it text that it knows")
            found = self._begin.expand(sequences, 1)
        else:
            end = first_token(getattr(config_of(self.teacher), "eos_token_id", None) if self.end is None else self.end)
            found = beginnings(texts, self.given, self.length, self._begin, end, CHOICE * sequences)
            found = with_beginning(self._begin, found)
            order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed))
            found = found[order.repeat(-(-sequences // len(found)))[:sequences]]
        new = int(min(self.length - self.given, positions - found.shape[1]))
        with self.as_teacher():
            written = self._continued(self.teacher, found.to(self.teacher.device), new, self.seed, ROWS)
        written = written[:, found.shape[1] :]
        copy_from_main_process(written)
        return written.to("cpu", torch.int32)

    def _continued(self, model: PreTrainedModel, begun: Tensor, new: int, seed: int, at_once: int) -> Tensor:
        """`begun`, (rows, length) token ids, and `new` tokens more, `at_once` rows side by side."""
        parts = [(seed + SEEDS_PER_STAGE * number, rows) for number, rows in enumerate(begun.split(at_once))]
        with in_mode(model, training=False), casts_kept(model):
            return torch.cat([sample_tokens(model, rows, new, drawn_by, self.end) for drawn_by, rows in parts])

    @property
    def passes(self) -> int:
        """Forward passes in which the same sequences are rehearsed, each its part of them."""
        return self.interval * self.passes_per_step

    def is_due(self, step: int) -> bool:
        """Whether the sequences are regenerated before `step`, the first one included."""
        return (step - 1) % self.interval == 0

    @torch.no_grad()
    def rewrite(self, model: PreTrainedModel, step: int, is_shared: bool = True) -> None:
        """Let the `model` in training write the `sequences` of the next `interval` steps, (rows x passes, length).

        Several processes have the same, written in one batch, or each its own if they are not `is_shared`.
        """
        seed = self.seed + SEEDS_PER_STAGE * (step if is_shared else step + STEPS_PER_PROCESS * process_rank())
        generator = torch.Generator().manual_seed(seed)
        rows = self.rows * self.passes
        # Of every dataset learned so far about as many.
        dataset = torch.randint(len(self.written), (rows,), generator=generator).tolist()
        texts = [self.written[number] for number in dataset]
        chosen = [int(torch.randint(len(text), (), generator=generator)) for text in texts]
        starts = [int(torch.randint(text.shape[1] - self.given + 1, (), generator=generator)) for text in texts]
        pieces = [text[row, at : at + self.given] for text, row, at in zip(texts, chosen, starts)]
        begun = with_beginning(self._begin, torch.stack(pieces).long())[:, : self.length - 1].to(model.device)
        at_once = len(begun) if is_shared else ROWS
        self.sequences = self._continued(model, begun, self.length - begun.shape[1], seed, at_once)
        if is_shared:
            copy_from_main_process(self.sequences)

    def discard(self) -> None:
        """Forget the sequences, so that `loss` has them regenerated at the next step, whichever it is."""
        self.sequences = torch.empty(0, 0, dtype=torch.long)

    def sequences_of(self, model: PreTrainedModel, step: int | None = None) -> Tensor:
        """The token ids, (rows, length), that `step` rehearses, from 1 on; without it the one after the last.

        `model` regenerates them if that is due. Of several processes each has its own.
        """
        self.step = step = self.step + 1 if step is None else step
        if self.is_due(step) or not len(self.sequences):
            self.rewrite(unwrapped(model), step, is_shared=False)
        size = self.rows * self.passes_per_step
        first = size * ((step - 1) % self.interval)
        return self.sequences[first : first + size]

    def divergence(self, model: PreTrainedModel, tokens: Tensor, from_teacher: bool = False) -> Tensor:
        """The divergence of `model` from the teacher in `tokens`, (rows, length) ids, see `divergence_from`."""
        logits = unwrapped(model)(input_ids=tokens).logits
        if self._moves:
            # A Trainer moves the model to its device after the teacher was made.
            self.teacher.to(tokens.device)  # type: ignore[arg-type]
        return Divergence.apply(logits, self._predicted(tokens), from_teacher)

    def loss(self, model: PreTrainedModel, step: int | None = None) -> Tensor:
        """Mean divergence, in nats per token, of `model` from the teacher in the sequences of `step`.

        Its gradient is to be added, times a weight, to that on new text. Without a `step`, from 1
        on, calls are counted.
        """
        tokens = self.sequences_of(model, step)
        return self.divergence(model, tokens) / tokens[:, 1:].numel()

    def restore(self, sequences: Tensor) -> None:
        """Resume with the `sequences` of a training that was stopped; raises `ValueError` if they do not fit."""
        if sequences.shape != (self.rows * self.passes, self.length) or sequences.dtype != torch.long:
            raise ValueError("other rehearsed sequences")
        self.sequences = sequences.to(self.teacher.device)

    def batches(self, skip: int = 0) -> Iterator[list[int]]:
        """The numbers of the sequences of each forward pass, without end; the first `skip` passes are left out."""
        for number in count(skip):
            first = self.rows * (number % self.passes)
            yield list(range(first, first + self.rows))

    @torch.no_grad()
    def predicted_forgetting(self, model: PreTrainedModel) -> list[float]:
        """KL(teacher || `model`) in what was written of each dataset, in nats per token.

        What the teacher wrote is a sample of what it predicts, so that this is by how much
        the loss of `model` on such text has risen: what forgetting of real text is
        expected to be, which the model cannot see.
        """
        model, found = unwrapped(model), []
        with in_mode(model, training=False):
            for text in self.written:
                tokens = with_beginning(self._begin, text[:MEASURED_SEQUENCES].long()).to(model.device)
                sums = [float(self.divergence(model, rows, from_teacher=True)) for rows in tokens.split(8)]
                found.append(sum(sums) / tokens[:, 1:].numel())
        return found

    @torch.no_grad()
    def keep_within(self, model: PreTrainedModel, start: dict[str, Tensor], budget: float) -> float:
        """Keep the largest share of the change since `start`, in place, with no predicted forgetting above `budget`.

        `start` has the parameters by name, `budget` is in nats per token. Weight-space
        ensembling (WiSE-FT, arXiv:2109.01903) with the share found by bisection. Returns
        the share, from 0 to 1.
        """
        model = unwrapped(model)
        start = {re.sub(WRAPPERS, "", name): value for name, value in start.items()}
        end = {name: model.get_parameter(name).detach().clone() for name in start}

        def is_within(share: float) -> bool:
            keep_share(model, start, end, share)
            return all(forgotten <= budget for forgotten in self.predicted_forgetting(model))

        if is_within(1.0):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if is_within(middle) else (low, middle)
        is_within(low)
        return low


@torch.no_grad()
def keep_share(model: torch.nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> None:
    """Put each parameter of `model` on the line from its value in `start` to that in `end`, at `share`, from 0 to 1."""
    for name, value in start.items():
        model.get_parameter(name).copy_(value.lerp(end[name], share) if share else value)


def with_beginning(begin: Tensor, tokens: Tensor) -> Tensor:
    """`tokens`, (rows, length) ids, with the tokens `begin` before each row."""
    return torch.cat([begin.expand(len(tokens), -1), tokens], dim=1)


def first_token(token: int | list[int] | None) -> Tensor:
    """The token that a configuration names, or the first of several, as a tensor of one id, or of none."""
    token = token[0] if isinstance(token, list) else token
    return torch.tensor([] if token is None else [token], dtype=torch.long)


@torch.no_grad()
def sample_tokens(model: Any, prompts: Tensor, new_tokens: int, seed: int, end: int | None) -> Tensor:
    """Continue `prompts`, (rows, length) token ids, by `new_tokens`, sampled with a seed; returns both together.

    A row goes on beyond the token `end`, into the next document. What a model that
    diverged predicts is not noticed here, but in the loss.
    """
    # An adapter of peft lies inside the model, whose own `generate` has it too.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=end, eos_token_id=None,
        use_cache=True, disable_compile=True,
    )  # fmt: skip
    sampling = InverseTransformSampling(torch.Generator().manual_seed(seed))
    with settings_of_ours(model):
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
def settings_of_ours(model: PreTrainedModel) -> Iterator[None]:
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


def divergence_from(teacher: PreTrainedModel, tokens: Tensor, logits: Tensor, from_teacher: bool = False) -> Tensor:
    """Divergence of `logits` from the teacher's in `tokens`, (rows, length) ids, in nats, summed over all positions.

    It is KL(model || teacher), or with `from_teacher` KL(teacher || model); of the last
    position, whose prediction no token follows, it is left out.
    """
    with torch.no_grad():
        target = teacher(input_ids=tokens).logits
    return Divergence.apply(logits, target, from_teacher)


class Divergence(torch.autograd.Function):
    """Kullback-Leibler divergence of logits from a teacher's, both (rows, length, vocabulary), in nats, as a sum.

    The gradient is computed in the forward pass, some positions at a time, and written
    over the teacher's logits, so that of a large vocabulary no third copy is held.
    KL(model || teacher) weighs most what a model has come to say and would not have said
    before (arXiv:2306.08543).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, from_teacher: bool) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        for row, wanted in zip(logits, target):
            pieces = zip(row[:-1].split(POSITIONS_AT_ONCE), wanted[:-1].split(POSITIONS_AT_ONCE))
            for ours, theirs in pieces:
                predicted, kept = (values.float().log_softmax(-1) for values in (ours, theirs))
                if from_teacher:
                    ratio, weights = kept - predicted, kept.exp()
                    gradient = predicted.exp() - weights
                    divergence = (weights * ratio).sum(-1)
                else:
                    ratio, weights = predicted - kept, predicted.exp()
                    divergence = (weights * ratio).sum(-1)
                    gradient = weights * (ratio - divergence[:, None])
                total += divergence.sum()
                theirs.copy_(gradient)
            wanted[-1].zero_()
        ctx.save_for_backward(target)
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None
