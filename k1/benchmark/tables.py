"""What the benchmark measured, as Markdown tables."""

from k1.benchmark.boundaries import stage_seconds
from k1.benchmark.contestants import LATER, REFERENCE, STAGE_1
from k1.benchmark.pacing import spread
from k1.benchmark.setting import SHAPES
from k1.report.tables import format_table

MEGABYTE = 1e6


def with_spread(values: dict[str, float], digits: int) -> str:
    """`median (lower quartile to upper quartile)`."""
    low, median, high = (f"{values[which]:,.{digits}f}" for which in ("low", "median", "high"))
    return f"{median} ({low} to {high})"


def per_parameter(kept: dict[str, int], parameters: int) -> list[str]:
    """Bytes for each parameter: all together, then by what they are for."""
    return [f"{size / parameters:.1f}" for size in (sum(kept.values()), *kept.values())]


def format_benchmark(results: dict) -> str:
    """All tables of `results`, which `python3 -m k1.benchmark` measured."""
    sections = [f"On {results['threads']} of {results['cores']} CPU threads; medians and, in brackets, quartiles."]
    for name, found in results["shapes"].items():
        if "training" in found:
            sections += [training_title(name, found["training"]), training_table(found["training"])]
            if found["training"]["stages"]:
                sections += ["Around training, in seconds for each stage", stages_table(name, found["training"])]
        if "optimizer" in found:
            sections += [optimizer_title(name, found["optimizer"]), optimizer_table(found["optimizer"])]
    sections += [
        f"{name} was left out: it needs {package}; run pip install -r requirements-dev.txt"
        for name, package in results["missing"].items()
    ]
    if "surroundings" in results:
        sections += surroundings_sections(results["surroundings"])
    return "\n\n".join([*sections, "Seconds to start", start_up_table(results["start_up"])])


def training_title(name: str, found: dict) -> str:
    """What the table of a shape is about."""
    parameters = found["contestants"][REFERENCE]["parameters"]
    size = SHAPES[name].size
    return (
        f"Training steps, shape `{name}`: {parameters:,} parameters, {size.batch_size} sequences of {size.seq_length} "
        f"tokens, {found['rounds']} steps each in turn"
    )


def training_table(found: dict) -> str:
    """Contestants by speed and memory."""
    kinds = list(found["contestants"][REFERENCE]["kept_bytes"])
    head = ["Contestant", "Tokens/s", "Step time / baseline's", "First step, s", "Peak MB", "Bytes a parameter"]
    rows = [[*head, *kinds]]
    for name, record in found["contestants"].items():
        rows.append([
            name, with_spread(record["tokens_per_second"], 0), with_spread(record["time_ratio"], 2),
            f"{record['first_step']:.1f}", f"{record['peak_bytes'] / MEGABYTE:,.0f}",
            *per_parameter(record["kept_bytes"], record["parameters"]),
        ])  # fmt: skip
    return format_table(rows)


def stages_of(name: str, found: dict) -> dict[str, dict]:
    """Seconds of the stages at the shape `name`, see `k1.benchmark.boundaries.stage_seconds`."""
    step = {
        short: spread(found["contestants"][contestant]["seconds"])["median"]
        for short, contestant in (("baseline", REFERENCE), ("k1_first", STAGE_1), ("k1_later", LATER))
    }
    stages = found["stages"]
    return stage_seconds(stages["seconds"], stages["rewritings"], step, SHAPES[name].size.max_steps)


def boundary_share(seconds: dict) -> float:
    """The part of a stage's time that is not training, in %."""
    around = sum(seconds["boundaries"].values())
    return 100 * around / (around + seconds["training"] + seconds["rewriting"])


def stages_table(name: str, found: dict) -> str:
    """Stages by what their time goes into, and the size of a checkpoint."""
    stages = stages_of(name, found)
    kinds = list(next(iter(stages.values()))["boundaries"])
    rows = [["Stage", "training", "rewriting rehearsed text", *kinds, "Boundaries %", "Checkpoint MB"]]
    for stage, seconds in stages.items():
        method = "baseline" if stage.startswith("baseline") else "k1"
        spent = [seconds["training"], seconds["rewriting"], *seconds["boundaries"].values()]
        size = found["stages"]["checkpoint_bytes"][method] / MEGABYTE
        rows.append([stage, *(f"{value:.1f}" for value in spent), f"{boundary_share(seconds):.1f}", f"{size:.1f}"])
    return format_table(rows)


def optimizer_title(name: str, found: dict) -> str:
    """What the table of the optimizer alone is about."""
    parameters = found["kinds"][REFERENCE]["parameters"]
    return (
        f"The optimizer alone, shape `{name}`: {parameters:,} parameters, {found['rounds']} steps each in turn with "
        f"torch.optim.AdamW(fused=True); a token of a forward pass adds {found['bytes_per_token']:,.0f} bytes in "
        "float32"
    )


def optimizer_table(found: dict) -> str:
    """Kinds of training by the time and memory of their optimizer."""
    kinds = list(found["kinds"][REFERENCE]["kept_bytes"])
    head = ["Training", "Step, ms per million parameters", "Step time / AdamW's", "Peak bytes a parameter", "Kept"]
    rows = [[*head, *kinds]]
    for name, record in found["kinds"].items():
        rows.append([
            name, with_spread(record["milliseconds_per_million"], 1), with_spread(record["time_ratio"], 1),
            f"{record['peak_bytes'] / record['parameters']:.1f}",
            *per_parameter(record["kept_bytes"], record["parameters"]),
        ])  # fmt: skip
    return format_table(rows)


def surroundings_sections(found: dict) -> list[str]:
    """Generated text, growing text and second start."""
    ways = [["Generated text", "Tokens/s", "Time / plain generate's"]]
    for name, record in found["generation"]["ways"].items():
        ways.append([name, with_spread(record["tokens_per_second"], 0), with_spread(record["time_ratio"], 2)])
    loading = ", ".join(f"{name} {value:.2f} s" for name, value in found["generation"]["loading_seconds"].items())
    texts = list(found["growth"].values())
    rows = [["Text", "MB", *(f"{part}, s" for part in texts[0]["seconds"]), "Memory MB", "Speed / encode_batch's"]]
    for factor, record in found["growth"].items():
        rows.append([
            f"{factor}x", f"{record['bytes'] / MEGABYTE:.1f}",
            *(f"{value:.2f}" for value in record["seconds"].values()),
            f"{record['peak_bytes'] / MEGABYTE:.0f}", f"{record['encode_batch_ratio']:.2f}",
        ])  # fmt: skip
    return [
        f"Generated text, shape `{found['shape']}`, one prompt at a time; to load: {loading}",
        format_table(ways),
        "Growing text: time, and memory without mapped files; tokenizing and packing beside Tokenizer.encode_batch",
        format_table(rows),
        f"Training begins {found['starts']['first']:.1f} s after the start of the script with an empty cache, "
        f"{found['starts']['second']:.1f} s with a filled one.",
    ]


def start_up_table(found: dict[str, dict]) -> str:
    """Commands and imports by how long they take."""
    return format_table([["Start of", "Seconds"], *([name, with_spread(value, 2)] for name, value in found.items())])
