"""Speed and memory on the pages: the recorded benchmark, and what follows from it on paper for preset full."""

from k1.benchmark.contestants import REFERENCE
from k1.benchmark.tables import format_benchmark
from k1.presets import PRESETS
from k1.report.tables import format_table
from k1.study.tables import paragraph

PRESET = PRESETS["full"]
PROCESSES = 8
# An A100: 312e12 operations a second in bfloat16, of which training reaches about 40%.
PEAK, REACHED = 3.12e14, 0.4
# Forward and backward pass, operations for each parameter and token.
OPERATIONS = 6


def format_speed(results: dict) -> str:
    """The table of the README: step times as multiples of the baseline's, a row for each shape that was trained."""
    shapes = results["shapes"]
    trained = {name: found["training"]["contestants"] for name, found in shapes.items() if "training" in found}
    names = [name for name in next(iter(trained.values()), {}) if name != REFERENCE]
    rows = [["[Step time](k1/training/README.md#speed) / baseline's", *names]]
    for shape, contestants in trained.items():
        parameters = contestants[REFERENCE]["parameters"]
        ratios = (f"{contestants[name]['time_ratio']['median']:.2f}" for name in names)
        rows.append([f"`{shape}`, {parameters:,} parameters", *ratios])
    return format_table(rows)


def format_benchmark_page(results: dict) -> str:
    """All tables of the benchmark and, where preset full was measured, its memory and time on paper."""
    tables = format_benchmark(results)
    full = results["shapes"].get("full", {}).get("optimizer")
    return f"{tables}\n\n{paragraph(on_paper(full))}" if full else tables


def on_paper(found: dict) -> str:
    """Memory and time of preset full, from what the benchmark found of the optimizer alone."""
    parameters = found["kinds"][REFERENCE]["parameters"]
    batch = PRESET.batch_size * PRESET.seq_length
    step, steps = batch * PRESET.gradient_accumulation_steps, sum(PRESET.max_steps)
    activations = batch * found["bytes_per_token"] / 1e9
    fixed = {kind: record["peak_bytes"] / 1e9 for kind, record in found["kinds"].items()}

    def gigabytes(processes: int) -> str:
        return ", ".join(f"{value + activations / processes:.0f} GB ({kind})" for kind, value in fixed.items())

    def power(value: float, digits: int) -> str:
        return f"{value:.{digits}e}".replace("e+", "e")

    total = OPERATIONS * parameters * step * steps
    minutes = total / (PEAK * REACHED) / 60
    return (
        f"From that, on paper, for preset `full` ({parameters:,} parameters; {PRESET.batch_size} sequences of "
        f"{PRESET.seq_length:,} tokens in a forward pass, {PRESET.gradient_accumulation_steps} of those in a step): a "
        f"forward pass of {batch:,} tokens adds {activations:.1f} GB in float32 and less in bfloat16, so one device "
        f"needs about {gigabytes(1)}. With {PROCESSES} processes each has its share of the tokens, "
        f"{activations / PROCESSES:.1f} GB, and needs about {gigabytes(PROCESSES)}, besides the buffers that exchange "
        f"gradients ({4 * parameters / 1e9:.1f} GB). A step is {OPERATIONS} x {parameters:,} x {step:,} = "
        f"{power(OPERATIONS * parameters * step, 1)} operations, the {len(PRESET.max_steps)} stages together "
        f"{power(total, 1)}: {minutes:.0f} minutes on a device that does {power(PEAK * REACHED, 2)} a second (an A100 "
        f"at {REACHED:.0%} of its peak in bfloat16), about {minutes / PROCESSES:.0f} on {PROCESSES} of them, besides "
        "the optimizer, whose selection was not measured on a GPU."
    )
