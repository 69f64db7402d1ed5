"""The exported folder: weights, configurations, tokenizer and model card."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from k1.checkpoints import Checkpoint, restore_model
from k1.data.messages import quiet_libraries
from k1.data.tokenizer import beginning_of_text, end_of_document, load_tokenizer
from k1.errors import K1Error
from k1.export.card import model_card
from k1.files import write_folder_atomically
from k1.report.generation_arguments import TEMPERATURE, TOP_K


def require_free(folder: Path) -> None:
    """Raise `K1Error` unless `folder` is empty or does not exist yet, in a folder that does."""
    try:
        # A link that leads nowhere does not exist either, and cannot be written.
        is_free = not any(folder.iterdir()) if folder.is_dir() else not (folder.exists() or folder.is_symlink())
        has_parent = folder.resolve().parent.is_dir()
    except (OSError, ValueError) as error:
        raise K1Error(f"{folder!s:.100} cannot be a folder ({getattr(error, 'strerror', error)}); name another one")
    if not is_free:
        raise K1Error(f"{folder} exists already and is not an empty folder; name a new one, or remove it")
    if not has_parent:
        raise K1Error(f"the folder {folder.resolve().parent} does not exist; make it first, or name another one")


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `checkpoint`, of any method and stage, as a folder that `from_pretrained` opens.

    It holds the weights as safetensors, the configurations of model and generation,
    the tokenizer, and a model card.
    Appears whole or not at all. Raises `K1Error` if `folder` exists and is not
    empty, where the checkpoint does not fit together, and where the disk does not take it.
    """
    require_free(folder)
    folder = folder.resolve()
    model = restore_model(checkpoint, "cpu")
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    begin, end = ends_of_text(tokenizer)
    # No padding token: the embedding of that one gets no gradient, and the end of a document needs its own.
    model.config.bos_token_id, model.config.eos_token_id = begin, end
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, bos_token_id=begin, eos_token_id=end, pad_token_id=end
    )
    pretrained = pretrained_tokenizer(tokenizer, checkpoint.arguments["seq_length"])
    card = model_card(checkpoint, folder.name, model.num_parameters())

    def write(place: Path) -> None:
        with quiet_libraries():
            model.save_pretrained(place)
            pretrained.save_pretrained(place)
        card.save(place / "README.md")

    write_folder_atomically(folder, write)


def ends_of_text(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of the tokens that begin and end a text, which may be the same."""
    end = end_of_document(tokenizer)
    return next(iter(beginning_of_text(tokenizer)), end), end


def pretrained_tokenizer(tokenizer: Tokenizer, seq_length: int) -> PreTrainedTokenizerFast:
    """`tokenizer` for transformers, with the same token ids for the same text.

    In training the end-of-document token stands between documents, so it also
    begins one, unless a pretrained model has another token for that; nothing adds it
    by itself. The same token pads, as in GPT-2.
    """
    begin, end = map(tokenizer.id_to_token, ends_of_text(tokenizer))
    tokenizer.post_processor = None  # what says so would add it
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        model_max_length=seq_length,
        # The characters of the token, inside a text, are no end of a document.
        split_special_tokens=tokenizer.encode_special_tokens,
        clean_up_tokenization_spaces=False,
    )
