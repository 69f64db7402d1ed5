"""python3 -m tests.training.costs: memory and time that training takes for each parameter, as a base for larger models.

A process of its own for each kind of training builds the model of preset full and
takes three steps on the CPU, on one thread. Bytes per parameter: growth of the
resident memory at its peak, with sequences so short that activations do not count.
Bytes per token: what longer sequences add to the peak of the baseline. Time of the
optimizer: one step for a million parameters, median of five alternating with
torch.optim.AdamW, and the ratio to it. stdout: a table.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch  # noqa: E402

from k1.arguments import parse_training_flags  # noqa: E402
from k1.model import build_model, count_parameters, model_config  # noqa: E402
from k1.presets import PRESETS  # noqa: E402
from k1.report.tables import format_table  # noqa: E402
from k1.training.optimization import build_optimizer  # noqa: E402

LATER = "K-1, later datasets"
KINDS = {"baseline": "all", "K-1, dataset 1": "error_feedback", LATER: "error_feedback"}
VOCABULARY = PRESETS["full"].vocabulary_size
TOKENS = 2, 258


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: int) -> float:
    """One forward and backward pass and one step of the optimizer; returns the seconds of the latter."""
    ids = torch.randint(0, VOCABULARY, (1, tokens))
    model(input_ids=ids, labels=ids).loss.backward()
    started = time.perf_counter()
    optimizer.step()
    seconds = time.perf_counter() - started
    optimizer.zero_grad()
    return seconds


def measure(kind: str, tokens: int) -> dict:
    """Peak memory of this process over three steps, and times of the optimizer beside AdamW's."""
    torch.set_num_threads(1)
    flags = parse_training_flags("", "k1" if kind != "baseline" else "baseline", ["--preset", "full"])
    arguments = replace(flags.resolve(1), selection=KINDS[kind], precision="float32")
    is_later = kind == LATER
    if is_later:
        arguments = replace(arguments, stage=2, consolidation=PRESETS["full"].consolidation)
    gc.collect()
    before = resource_now()
    model = build_model(model_config(arguments, VOCABULARY), seed=0)
    size = count_parameters(model)
    importance = {name: torch.rand_like(p) for name, p in model.named_parameters()} if is_later else None
    responsibility = {name: torch.rand_like(p) for name, p in model.named_parameters()} if is_later else None
    optimizer = build_optimizer(model, arguments, importance, responsibility)
    for _ in range(3):
        step(model, optimizer, tokens)
    peak = peak_bytes() - before
    times = {"ours": [], "adamw": []}
    if tokens == min(TOKENS):
        adamw = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(6):
            times["ours"].append(step(model, optimizer, tokens))
            times["adamw"].append(step(model, adamw, tokens))
    return {"size": size, "peak": peak, **{name: values[1:] for name, values in times.items()}}


def resource_now() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    rows = [["Training", "Bytes per parameter", "Optimizer step, ms per million parameters", "Ratio to AdamW"]]
    for kind in KINDS:
        short = in_own_process(kind, TOKENS[0])
        if kind == "baseline":
            size, growth = short["size"], in_own_process(kind, TOKENS[1])["peak"] - short["peak"]
        ratios = [ours / adamw for ours, adamw in zip(short["ours"], short["adamw"])]
        milliseconds = 1e9 * statistics.median(short["ours"]) / short["size"]
        rows.append(
            [
                kind, f"{short['peak'] / short['size']:.1f}", f"{milliseconds:.1f}",
                f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
            ]
        )  # fmt: skip
    print(format_table(rows))
    print(f"\n{size:,} parameters; {growth / (TOKENS[1] - TOKENS[0]):,.0f} bytes per token in float32")


def in_own_process(kind: str, tokens: int) -> dict:
    """What `measure` finds in a fresh process."""
    return json.loads(subprocess.check_output([sys.executable, "-m", "tests.training.costs", kind, str(tokens)]))


if __name__ == "__main__":
    main()
