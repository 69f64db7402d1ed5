"""What training costs at preset full: the recorded measurement, and what follows from it on paper."""

import re

from k1.presets import PRESETS
from k1.study.tables import paragraph

PRESET = PRESETS["full"]
PROCESSES = 8
# An A100: 312e12 operations a second in bfloat16, of which training reaches about 40%.
PEAK, REACHED = 3.12e14, 0.4
# Forward and backward pass, operations for each parameter and token.
OPERATIONS = 6


def format_costs(table: str) -> str:
    """The table of `python3 -m tests.training.costs`, and memory and time of preset full on paper."""
    rows = re.findall(r"^\| (.+?) +\| +([\d.]+) \|", table, re.M)
    parameters, bytes_per_token = (int(value.replace(",", "")) for value in re.findall(r"[\d,]{4,}", table)[-2:])
    batch = PRESET.batch_size * PRESET.seq_length
    step, steps = batch * PRESET.gradient_accumulation_steps, sum(PRESET.max_steps)
    activations = batch * bytes_per_token / 1e9
    fixed = {kind: float(size) * parameters / 1e9 for kind, size in rows}

    def gigabytes(processes: int) -> str:
        return ", ".join(f"{value + activations / processes:.0f} GB ({kind})" for kind, value in fixed.items())

    def power(value: float, digits: int) -> str:
        return f"{value:.{digits}e}".replace("e+", "e")

    total = OPERATIONS * parameters * step * steps
    minutes = total / (PEAK * REACHED) / 60
    text = (
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
    return f"{table}\n\n{paragraph(text)}"
