"""Sampling: continuations of prompts, and what the generate scripts print."""

import argparse
import sys
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel

from k1.checkpoints import Checkpoint, load_checkpoint, require_file, restore_model
from k1.config import resolve_device
from k1.data.sources import dataset_labels
from k1.data.tokenizer import beginning_of_text, end_of_document, load_tokenizer, vocabulary_size
from k1.errors import K1Error
from k1.model import configure_torch, known_positions, seeded, static_cache
from k1.rehearsal import settings_of_ours
from k1.report.generation_arguments import NEW_TOKENS, TEMPERATURE, TOP_K

PROMPTS_PER_SEED = 1_000
# Larger batches are hardly faster, and their key-value cache grows with them.
BATCH_SIZE = 100


def generate(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: list[list[int]], max_new_tokens: int, temperature: float,
    top_k: int, seed: int, stop_at_end: bool = True,
) -> list[list[int]]:  # fmt: skip
    """Continue `prompts`, lists of token ids of one length, and return the token ids of the continuations.

    The sampling is seeded: the same call gives the same tokens. `temperature` 0, or next to it,
    takes the most probable token each time; `top_k` 0 samples from the whole
    vocabulary. With `stop_at_end` a continuation ends where the model ends the
    document and may be padded with end-of-document tokens, otherwise it always has
    `max_new_tokens` tokens and none of them ends the document. Every prompt follows the
    token that begins a text, if the model has one.
    """
    end, front = end_of_document(tokenizer), beginning_of_text(tokenizer)
    # A pretrained model may have rows for more tokens than its tokenizer has.
    suppressed = [*([] if stop_at_end else [end]), *range(vocabulary_size(tokenizer), model.config.vocab_size)]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, pad_token_id=end, eos_token_id=end if stop_at_end else None,
        suppress_tokens=suppressed or None, use_cache=True, disable_compile=True,
        # Dividing by less overflows float32.
        **({"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature >= 1e-3 else {}),
    )  # fmt: skip
    model.eval()
    continuations = []
    with seeded(seed, model.device), settings_of_ours(model):
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = torch.tensor(
                [front + prompt for prompt in prompts[start : start + BATCH_SIZE]], device=model.device
            )
            # For a single prompt, copying is cheaper than the empty rest of a cache in one piece.
            cache = static_cache(model, batch.shape[1] + max_new_tokens) if len(batch) > 1 else None
            output = model.generate(  # type: ignore[operator]
                batch, attention_mask=torch.ones_like(batch), generation_config=config, past_key_values=cache
            )
            continuations += output[:, batch.shape[1] :].tolist()
    return continuations


def continue_prompts(
    checkpoint: Checkpoint, prompts: list[str], device: str, max_new_tokens: int = NEW_TOKENS,
    temperature: float = TEMPERATURE, top_k: int = TOP_K, seed: int = 0,
) -> Iterator[str]:  # fmt: skip
    """The continuation of each of `prompts` by the model of `checkpoint`, as a generate script prints it."""
    model = restore_model(checkpoint, device)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    before = len(beginning_of_text(tokenizer))
    for position, prompt in enumerate(prompts):
        # An empty prompt is the beginning of a document.
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids or [end_of_document(tokenizer)]
        check_length(before + len(ids) + max_new_tokens, checkpoint)
        # A seed of its own for each prompt: its continuation does not depend on the prompts before it.
        (continuation,) = generate(
            model, tokenizer, [ids], max_new_tokens, temperature, top_k, PROMPTS_PER_SEED * seed + position
        )
        yield tokenizer.decode(continuation)


def print_continuations(method: str, arguments: argparse.Namespace) -> None:
    """Print the continuation of every prompt by every checkpoint of `arguments`, on stdout.

    `=== <domain> <i>: <prompt>`, then the continuation. Nothing in the output
    names the model, so that `diff` of two outputs shows continuations only.
    """
    device = resolve_device(arguments.device)
    configure_torch()
    for path in arguments.checkpoints:
        require_file(path, method)
    for number, path in enumerate(arguments.checkpoints, start=1):
        checkpoint = load_checkpoint(path, method)
        print(f"{path}: stage {checkpoint.stage}", file=sys.stderr)
        labels = dataset_labels(dataset["name"] for dataset in checkpoint.datasets)
        if len(arguments.checkpoints) > 1:
            print(f"##### checkpoint {number}, after {labels[-1]}")
        by_domain = zip(labels, (dataset["prompts"] for dataset in checkpoint.datasets))
        if arguments.prompt:
            by_domain = zip(["prompt"], [arguments.prompt])
        prompts = [(f"{domain} {i}", text) for domain, texts in by_domain for i, text in enumerate(texts, start=1)]
        continuations = continue_prompts(
            checkpoint, [prompt for _, prompt in prompts], device,
            arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.seed,
        )  # fmt: skip
        # Of a prompt that is too long nothing is printed.
        for (heading, prompt), continuation in zip(prompts, continuations):
            print(f"=== {heading}: " + prompt.replace("\n", "\\n"))
            print(continuation, end="\n\n")


def check_length(tokens: int, checkpoint: Checkpoint) -> None:
    """Say on stderr that a text is longer than the model was trained on; raises `K1Error` if it cannot be."""
    seq_length = checkpoint.arguments["seq_length"]
    positions = known_positions(checkpoint.model_config)
    # A pretrained model may have learned its positions one by one.
    if checkpoint.start and positions is not None and tokens > positions:
        raise K1Error(f"{tokens} tokens are more than the {positions} positions of the model; lower --max_new_tokens")
    if tokens > seq_length:
        print(f"warning: {tokens} tokens are more than the {seq_length} the model was trained on", file=sys.stderr)
