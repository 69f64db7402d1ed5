"""The rehearsal of the experiment's stages, from their settings (`k1.rehearsal` knows none of them)."""

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.data.tokenizer import end_of_document
from k1.errors import K1Error
from k1.rehearsal import Rehearsal


def begin_rehearsal(
    model: PreTrainedModel,
    written: list[Tensor],
    tokenizer: Tokenizer,
    arguments: Arguments,
    known: list[Tensor] | None = None,
) -> Rehearsal | None:
    """What `model` rehearses during the stage of `arguments`, or if it has `known` text, later; None if nothing.

    `written` is that of the checkpoint before. Raises `K1Error` if it is none.
    """
    if known is None and not arguments.rehearsal:
        return None
    if known is None and not written:
        raise K1Error("the checkpoint before has no text to rehearse; train its stage again, or add --rehearsal 0")
    return Rehearsal(
        model, known, written,
        sequences=arguments.rehearsal_sequences, length=arguments.seq_length, rows=max(1, arguments.rehearsed_rows),
        interval=arguments.rehearsal_interval, passes_per_step=arguments.gradient_accumulation_steps,
        end=end_of_document(tokenizer), seed=arguments.stage_seed,
    )  # fmt: skip


def write_rehearsal(
    model: PreTrainedModel,
    dataset: TokenizedDataset,
    tokenizer: Tokenizer,
    arguments: Arguments,
    earlier: list[Tensor] | None = None,
) -> list[Tensor]:
    """What later stages rehearse: the `earlier` text and what `model` writes now that it has learned `dataset`.

    It continues beginnings in the training text. After a later stage that did not rehearse, nothing.
    """
    if arguments.stage > 1 and not arguments.rehearsal:
        return []
    known = next(batches_of_blocks(dataset.blocks["train"], arguments.rehearsal_sequences, arguments.stage_seed))
    return begin_rehearsal(model, earlier or [], tokenizer, arguments, [known]).written  # type: ignore[union-attr]
