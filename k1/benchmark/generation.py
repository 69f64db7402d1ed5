"""Generated text: what the generate scripts do for each prompt, in turn with the library's plain `generate`."""

import time

import torch
from transformers import GenerationConfig

from k1.benchmark.pacing import alternate, ratios, spread
from k1.benchmark.setting import Setting
from k1.checkpoints.storage import load_checkpoint, restore_model
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from k1.model import build_model
from k1.report.generation import generate
from k1.report.generation_arguments import TEMPERATURE, TOP_K

NEW_TOKENS = 60
REFERENCE = "plain generate"


def generation(setting: Setting, rounds: int) -> dict:
    """Continue the prompts of a checkpoint of K-1, both ways, from the same folded model with the same seeds.

    Returns `loading_seconds`, of the checkpoint and of a model's plain weights, and for
    each way `tokens_per_second` and `time_ratio` to plain `generate`. Where the first
    is slower than the second, the scripts do more than the model's arithmetic.
    """
    setting.begin()
    started = time.perf_counter()
    checkpoint = load_checkpoint(setting.checkpoint("k1"), "k1")
    model = restore_model(checkpoint, "cpu", fold=True).eval()
    loading = {"checkpoint": time.perf_counter() - started}
    loading["plain weights"] = seconds_to_load(setting, checkpoint.model_config, model)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    prompts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in checkpoint.datasets[0]["prompts"]]
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, pad_token_id=end,
        suppress_tokens=[end], use_cache=True,
    )  # fmt: skip

    def ours() -> None:
        for seed, prompt in enumerate(prompts):
            generate(model, tokenizer, [prompt], NEW_TOKENS, TEMPERATURE, TOP_K, seed, stop_at_end=False)

    def plain() -> None:
        for seed, prompt in enumerate(prompts):
            torch.manual_seed(seed)
            batch = torch.tensor([prompt])
            model.generate(batch, attention_mask=torch.ones_like(batch), generation_config=config)

    seconds = alternate({"generate_k1.py": ours, REFERENCE: plain}, rounds)
    tokens, time_ratios = NEW_TOKENS * len(prompts), ratios(seconds, REFERENCE)
    return {
        "loading_seconds": loading,
        "ways": {
            name: {
                "tokens_per_second": spread([tokens / value for value in values]),
                "time_ratio": time_ratios[name],
            }
            for name, values in seconds.items()
        },
    }


def seconds_to_load(setting: Setting, config: dict, model: torch.nn.Module) -> float:
    """Seconds to build a model and load the weights of `model`, without bases and importance, from a file."""
    path = setting.folder / f"{setting.shape}-plain.pt"
    torch.save(model.state_dict(), path)
    started = time.perf_counter()
    build_model(config, seed=0).load_state_dict(torch.load(path, weights_only=True))
    return time.perf_counter() - started
