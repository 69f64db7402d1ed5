"""More text: time and memory of reading, tokenizing and packing, and how soon a second run starts training."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from k1.benchmark.memory import AnonymousPeak
from k1.benchmark.setting import CHARACTERS_PER_EVALUATED_TOKEN, SHAPES, Setting, write_corpus
from k1.data.batches import batches_of_blocks
from k1.data.loader import DataLoader
from k1.errors import K1Error
from k1.presets import MAXIMUM

FACTORS = 1, 10, 50
FIRST_BATCHES = 10
CHARACTERS_PER_CALL = 1_000_000
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "train_k1_dataset1.py"
TRAINING_BEGINS = "stage 1:"


def corpus(setting: Setting, factor: int) -> Path:
    """The file with `factor` times as much text, a tenth of what an evaluation needs; written the first time."""
    path = setting.folder / f"{setting.shape}-{factor}x.jsonl"
    if not path.exists():
        characters = SHAPES[setting.shape].size.evaluation_tokens * CHARACTERS_PER_EVALUATED_TOKEN // 10
        write_corpus(path, factor * characters)
    return path


def growth(setting: Setting, factor: int) -> dict:
    """Read, tokenize and pack a corpus that no cache has, and take the first batches of it.

    Returns `bytes` of the text, `seconds` by part, `peak_bytes` (memory without
    mapped files, above what the process used before) and `encode_batch_ratio`: tokenizing and
    packing over `Tokenizer.encode_batch` of the same documents, in characters a second.
    """
    setting.begin()
    # Another part of the benchmark may have had the same text.
    os.environ["K1_CACHE"] = str(setting.folder / f"cache-of-{factor}x")
    arguments, tokenizer = replace(setting.arguments("k1", 1), max_documents=MAXIMUM), setting.tokenizer
    seconds, started = {}, time.perf_counter()

    def lap(what: str) -> None:
        nonlocal started
        seconds[what] = time.perf_counter() - started
        started = time.perf_counter()

    with AnonymousPeak() as peak:
        loader = DataLoader(str(corpus(setting, factor)), arguments)
        lap("reading and splitting")
        loader.fingerprint
        lap("fingerprint")
        dataset = loader.tokenize(tokenizer)
        lap("tokenizing and packing")
        for _ in islice(batches_of_blocks(dataset.blocks["train"], arguments.batch_size, seed=0), FIRST_BATCHES):
            pass
        lap("first batches")
    reference = seconds_of_encode_batch(loader, tokenizer)
    return {
        "bytes": corpus(setting, factor).stat().st_size,
        "seconds": seconds,
        "peak_bytes": peak.bytes,
        "encode_batch_ratio": reference / seconds["tokenizing and packing"],
    }


def seconds_of_encode_batch(loader: DataLoader, tokenizer) -> float:
    """Seconds that `Tokenizer.encode_batch` takes for the documents of `loader`, about a million characters a call."""
    total, texts, characters = 0.0, [], 0

    def encode() -> float:
        started = time.perf_counter()
        tokenizer.encode_batch(texts, add_special_tokens=False)
        return time.perf_counter() - started

    for split in loader.documents:
        for text in loader.text(split):
            texts.append(text)
            characters += len(text)
            if characters >= CHARACTERS_PER_CALL:
                total += encode()
                texts, characters = [], 0
    return total + encode()


def seconds_until_training(setting: Setting, cache: Path) -> float:
    """Seconds from starting the script of K-1's first stage until its first step begins, with the cache folder `cache`.

    The script is stopped there. Raises `K1Error` where it ends before.
    """
    command = [
        sys.executable, str(ROOT / SCRIPT), "--preset", SHAPES[setting.shape].preset, "--device", "cpu",
        "--dataset_name", str(setting.folder / f"{setting.shape}.jsonl"), "--threads", str(setting.threads),
        "--models_dir", str(setting.folder / "models"), "--overwrite",
    ]  # fmt: skip
    started = time.perf_counter()
    environment = {**os.environ, "K1_CACHE": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        said = b""
        try:
            while byte := process.stderr.read(1):
                said += byte
                if TRAINING_BEGINS.encode() in said:
                    return time.perf_counter() - started
        finally:
            process.terminate()
            process.stderr.read()
    raise K1Error(f"{SCRIPT} ended before it began to train: {said.decode(errors='replace').strip()[-200:]}")


def starts(setting: Setting) -> dict[str, float]:
    """Seconds until training begins with an empty cache (`first`), and again with what that left (`second`)."""
    cache = setting.folder / "cache-of-starts"
    return {which: seconds_until_training(setting, cache) for which in ("first", "second")}
