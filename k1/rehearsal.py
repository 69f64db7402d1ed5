"""Rehearsal: a model writes text, and is held to what it predicted in it while it learns something new.

No text of an old dataset is read or kept: what a model has learned is in what it
writes (LAMOL, arXiv:1909.03329; self-synthesized rehearsal, arXiv:2403.01244)
and in how it predicts it (learning without forgetting, arXiv:1606.09282). The
model in training continues that text in its own words, so that it is held to its
old predictions where it would begin to go astray (on-policy distillation,
arXiv:2306.13649).
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from k1.errors import K1Error
from k1.model import static_cache
from k1.parallel import copy_from_main_process

# Token ids, (batch, length), or the arguments of a causal language model's forward pass by name.
Batch = Tensor | Mapping[str, Tensor]

REHEARSAL_WEIGHT = 3.0
ROWS = 128  # written side by side
# Keeps the seeds of one stage's sequences apart from those of other stages.
SEEDS_PER_STAGE = 1_000_003
# Enough for a standard error of some thousandths of a nat.
MEASURED_SEQUENCES = 64
BISECTIONS = 6
POSITIONS_AT_ONCE = 128


class Rehearsal:
    """The text that a model rehearses while it learns something new, and the teacher whose predictions are kept.

    The teacher is a frozen copy of `model` as it is now. With `known`, batches of token
    ids that the model knows, (batch, length), or dictionaries as a data loader gives
    them, it continues `sequences` beginnings of them, a quarter of `length` each, and
    only what it wrote is kept, after what was `written` before earlier tasks. With
    neither it begins with the token that begins a text.

    A training step rehearses `rows` sequences of `length` tokens in each of its
    `passes_per_step` forward passes. Each begins with a quarter of `length` from
    anywhere in what was written, and the model in training continues it, regenerated
    every `interval` steps, with the `seed`. `end` is the token that ends a document, if
    any. `written` has the token ids of each dataset learned so far, (sequences, at most three
    quarters of `length`), int32. Raises `K1Error` for numbers that cannot be, if no
    text is long enough, and if the predictions of the model are not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        known: Iterable[Batch] | None = None,
        written: Sequence[Tensor] = (),
        *,
        sequences: int = 512,
        length: int = 128,
        rows: int = 1,
        interval: int = 50,
        passes_per_step: int = 1,
        end: int | None = None,
        seed: int = 0,
    ) -> None:
        if length < 2 or min(sequences, rows, interval) < 1:
            raise K1Error("a rehearsal needs a length of at least 2 tokens, and 1 sequence, 1 row and 1 step or more")
        positions = getattr(model.config, "max_position_embeddings", None)
        if length > (positions or length):
            raise K1Error(f"length {length} is more than the {positions} positions of the model")
        self.rows, self.length, self.interval, self.passes_per_step = rows, length, interval, passes_per_step
        self.end, self.seed = end, seed
        self.given = max(1, length // 4)
        begin = model.config.bos_token_id
        self._begin = torch.tensor([] if begin is None else [begin], dtype=torch.long)
        if any(text.dim() != 2 or text.shape[1] < self.given for text in written):
            raise K1Error(
                f"what was written earlier is not of length {length}; give the same length to every rehearsal"
            )
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.written = list(written)
        if known is not None or not self.written:
            self.written.append(self._write(known, sequences))
        self.discard()
        probe = self.written[-1][:1].long().to(self.teacher.device)
        if not torch.isfinite(self.teacher(input_ids=probe).logits).all():
            raise K1Error("the model that should rehearse is not finite: it diverged; train its stage again")

    def _write(self, known: Iterable[Batch] | None, sequences: int) -> Tensor:
        """What the teacher writes after `sequences` beginnings of `known`, token ids on the CPU, int32."""
        if known is None:
            if not len(self._begin):
                raise K1Error("the model has no token that begins a text; give it batches of text that it knows")
            found = self._begin.expand(sequences, 1)
        else:
            found = with_beginning(self._begin, beginnings(known, self.given, self.length, self._begin))
            order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed))
            found = found[order.repeat(-(-sequences // len(found)))[:sequences]]
        positions = getattr(self.teacher.config, "max_position_embeddings", None) or math.inf
        new = min(self.length - self.given, positions - found.shape[1])
        parts = [
            sample_tokens(
                self.teacher, rows.to(self.teacher.device), new, self.seed + SEEDS_PER_STAGE * number, self.end
            )
            for number, rows in enumerate(found.split(ROWS))
        ]
        written = torch.cat(parts)[:, found.shape[1] :]
        copy_from_main_process(written)
        return written.to("cpu", torch.int32)

    @property
    def passes(self) -> int:
        """Forward passes in which the same sequences are rehearsed, each its part of them."""
        return self.interval * self.passes_per_step

    def is_due(self, step: int) -> bool:
        """Whether the sequences are regenerated before `step`, the first one included."""
        return (step - 1) % self.interval == 0

    @torch.no_grad()
    def rewrite(self, model: PreTrainedModel, step: int) -> None:
        """Let the `model` in training write the `sequences` of the next `interval` steps, (rows x passes, length)."""
        seed = self.seed + SEEDS_PER_STAGE * step
        generator = torch.Generator().manual_seed(seed)
        rows = self.rows * self.passes
        # Of every dataset learned so far about as many.
        dataset = torch.randint(len(self.written), (rows,), generator=generator).tolist()
        texts = [self.written[number] for number in dataset]
        chosen = [int(torch.randint(len(text), (), generator=generator)) for text in texts]
        starts = [int(torch.randint(text.shape[1] - self.given + 1, (), generator=generator)) for text in texts]
        pieces = [text[row, at : at + self.given] for text, row, at in zip(texts, chosen, starts)]
        begun = with_beginning(self._begin, torch.stack(pieces).long())[:, : self.length - 1].to(model.device)
        with evaluation_mode(model):
            self.sequences = sample_tokens(model, begun, self.length - begun.shape[1], seed, self.end)
        # Under autocast the rounded weights, made here without gradients, would be taken for training.
        torch.clear_autocast_cache()
        copy_from_main_process(self.sequences)

    def discard(self) -> None:
        """Forget the sequences, so that `loss` has them regenerated at the next step, whichever it is."""
        self.sequences = torch.empty(0, 0, dtype=torch.long)

    def loss(self, model: PreTrainedModel, step: int) -> Tensor:
        """Mean divergence, in nats per token, of `model` from the teacher in the sequences of `step`, from 1 on.

        Its gradient is to be added, times a weight, to that on new text.
        """
        if self.is_due(step) or not len(self.sequences):
            self.rewrite(model, step)
        # A Trainer moves the model to its device after the teacher was made.
        self.teacher.to(model.device)
        size = self.rows * self.passes_per_step
        first = size * ((step - 1) % self.interval)
        tokens = self.sequences[first : first + size]
        return divergence_from(self.teacher, tokens, model(input_ids=tokens).logits) / tokens[:, 1:].numel()

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
        found = []
        with evaluation_mode(model):
            for text in self.written:
                tokens = with_beginning(self._begin, text[:MEASURED_SEQUENCES].long()).to(model.device)
                sums = [
                    float(
                        divergence_from(self.teacher, rows, model(input_ids=rows).logits, from_teacher=True)
                    )
                    for rows in tokens.split(8)
                ]  # fmt: skip
                found.append(sum(sums) / tokens[:, 1:].numel())
        return found

    @torch.no_grad()
    def keep_within(self, model: PreTrainedModel, start: dict[str, Tensor], budget: float) -> float:
        """Keep the largest share of the change since `start`, in place, with no predicted forgetting above `budget`.

        `start` has the parameters by name, `budget` is in nats per token. Weight-space
        ensembling (WiSE-FT, arXiv:2109.01903) with the share found by bisection. Returns
        the share, from 0 to 1.
        """
        end = {name: model.get_parameter(name).detach().clone() for name in start}

        def is_within(share: float) -> bool:
            keep_share(model, start, end, share)
            return max(self.predicted_forgetting(model)) <= budget

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
        model.get_parameter(name).copy_(value.lerp(end[name], share))


def with_beginning(begin: Tensor, tokens: Tensor) -> Tensor:
    """`tokens`, (rows, length) ids, with the tokens `begin` before each row."""
    return torch.cat([begin.expand(len(tokens), -1), tokens], dim=1)


def beginnings(batches: Iterable[Batch], given: int, every: int, begin: Tensor) -> Tensor:
    """The first `given` tokens of each `every` tokens of text in `batches`: (beginnings, given).

    Padding is left out, and at the front `begin`, the token that begins a text, if the model has one. Raises `K1Error`
    if no sequence is that long.
    """
    found = []
    for batch in batches:
        inputs = batch if isinstance(batch, Mapping) else {"input_ids": batch}
        ids = inputs["input_ids"].cpu()
        mask = inputs.get("attention_mask", torch.ones_like(ids)).cpu()
        texts = [row[kept != 0] for row, kept in zip(ids, mask)]
        texts = [text[len(begin) :] if text[:1].equal(begin) else text for text in texts]
        found += [text[start : start + given] for text in texts for start in range(0, len(text) - given + 1, every)]
    if not found:
        raise K1Error(
            f"there is no batch with {given} tokens in a row to continue; give longer sequences or a smaller length, "
            "and no iterator that was read before"
        )
    return torch.stack(found)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Context in which `model` is as in evaluation, without dropout; afterwards it is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
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
