"""python3 -m k1.study.pretrained MODEL: what keeps a real pretrained model from forgetting, and what it costs.

MODEL is a causal language model of transformers: a folder, or a name on the hub.
It learns text that it cannot know, source files of the installed packages whose
header says 2026, with --tasks 2 then C++ headers of torch, and is judged by text that it
knows, Wikipedia and Python's standard library. It is first trained on known text for
some steps, so that what is measured is forgetting, and not that a quantised model or an
unusual length of text is mended by any training. Of its embedding the rows are kept that
the texts use. Every run is also judged with a share of its change (WiSE-FT,
arXiv:2109.01903). A run that is recorded in results.json below --out is not repeated.
The tables go to stdout and results.md, the picture of forgetting against learning to
frontier.png; equal.md has forgetting at equal learning alone, continuations.md what the
model writes before and after, costs.md time and memory beside full fine-tuning. Memory is
that of runs that had a process of their own: one arm, rate, weight of rehearsal and seed at a time.
"""

import argparse
import copy
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import count, cycle, islice, product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from k1.data.batches import shuffled
from k1.data.corpora import bundled_documents, package_dir, python_files
from k1.data.messages import refusals
from k1.errors import K1Error, command, module_parser
from k1.files import write_atomically, write_text
from k1.flag_types import positive
from k1.rehearsal import REHEARSAL_WEIGHT, Rehearsal, keep_share, sample_tokens
from k1.report.metrics import mean, mean_and_interval
from k1.report.tables import Table
from k1.sparse import UPDATE_FRACTION, sparse_updates
from k1.study.frontier import Line, interpolated, undominated
from k1.study.grid import open_results, show, write_results
from k1.study.methods import low_rank_adapter, orthogonal_subspace
from k1.study.unseen import SECOND as OTHER_CORPORA
from k1.training.trainer import copy_parameters, warmup_and_cosine

NEW, SECOND, KNOWN = "new", "headers", ("wikitext", "code")
YEAR = "Copyright 2026"
LENGTH, ROWS, PROMPT = 128, 4, 32
ADAPTED = "adapted"
# Of the change that a run made, how much is kept.
SHARES = (1.0, 0.75, 0.5)
# A rise of the loss on known text, in nats per token, that is not divided by: a share of noise says nothing.
LEAST_RISE = 0.02
LINE_MARKERS = "osv^D<>pXhdP8H"
ADAPTER_RATES = (1e-4, 3e-4, 1e-3)
lora = partial(low_rank_adapter, rank=16)
# At a learning rate of 1e-5 one hundredth of the way in each step.
PULL = 1000.0


@dataclass(frozen=True)
class Arm:
    """A way to learn new text.

    `fraction` is the share of parameters that a step updates, `replay` the share of
    steps in which a row of real known text is added, `known` whether the model rehearses from a
    sample of known text (True), from its beginning-of-text token (False), or not at all
    (None), `adapter` what it trains in place of the model's own weights (see `k1.study.methods`),
    `pull` the share of the way to the start, per unit of the learning rate, that each step goes
    back (L2 to the start, decoupled as AdamW's decay to zero is; arXiv:1802.01483). It rehearses in one step of
    `every`.
    """

    label: str
    rates: tuple[float, ...] = (5e-6, 1e-5, 2e-5)
    fraction: float = 1.0
    replay: float = 0.0
    known: bool | None = None
    adapter: Callable[[PreTrainedModel], Any] | None = None
    pull: float = 0.0
    every: int = 1


ARMS = {
    "full": Arm("full fine-tuning"),
    "sparse": Arm("51% alone", fraction=UPDATE_FRACTION),
    "lora": Arm("LoRA", ADAPTER_RATES, adapter=lora),
    "osf": Arm("OSF", (1e-5, 2e-5, 5e-5), adapter=orthogonal_subspace),
    "l2": Arm("L2 to the start", pull=PULL),
    "replay_5": Arm("replay of 5% (sees old text)", replay=0.2),
    "replay_25": Arm("replay of 25% (sees old text)", replay=1.0),
    "rehearsal": Arm("rehearsal", known=True),
    "rehearsal_half": Arm("rehearsal in half of the steps", known=True, every=2),
    "rehearsal_bos": Arm("rehearsal without known text", known=False),
    "k1": Arm("K-1", fraction=UPDATE_FRACTION, known=True),
    "k1_lora": Arm("K-1 on LoRA", ADAPTER_RATES, fraction=UPDATE_FRACTION, known=True, adapter=lora),
}
FULL = ARMS["full"].label


def new_documents() -> Iterator[str]:
    """Source files of transformers and peft that were written in 2026, without their headers."""
    for package in ("transformers", "peft"):
        for path in python_files(package_dir(package), re.compile(r"(?!)")):
            text = path.read_text(encoding="utf-8")
            if YEAR in text[:400] and "automatically generated" not in text[:600]:
                yield re.sub(r"\A(#.*\n)+", "", text).strip()


def blocks_of(documents: Iterator[str], tokenizer, counts: dict[str, int]) -> dict[str, Tensor]:
    """Token ids by split, (counts[split], LENGTH), each row with the token that begins a text in front.

    A document is in one split alone, by its SHA-256: a tenth each is test and validation.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    width = LENGTH - len(begin)
    rows: dict[str, list[list[int]]] = {split: [] for split in counts}
    for digest, text in sorted((sha256(text.encode()).hexdigest(), text) for text in set(documents)):
        part = int(digest[:8], 16) / 16**8
        split = "test" if part < 0.1 else "validation" if part < 0.2 else "train"
        ids = tokenizer(text[:20_000], add_special_tokens=False).input_ids
        rows[split] += [begin + ids[start : start + width] for start in range(0, len(ids) - width + 1, width)]
    found = {}
    for split, wanted in counts.items():
        if len(rows[split]) < wanted:
            raise K1Error(f"there are {len(rows[split])} blocks of {split} text, {wanted} are needed; lower --steps")
        order = torch.randperm(len(rows[split]), generator=torch.Generator().manual_seed(0))[:wanted]
        found[split] = torch.tensor(rows[split])[order]
    return found


TASKS = {NEW: new_documents, SECOND: OTHER_CORPORA[SECOND]}


def tasks_of(texts: Iterable[str]) -> list[str]:
    """The names of the new texts among those of `texts`, in the order in which they are learned."""
    return [name for name in TASKS if name in texts]


def read_texts(tokenizer, steps: int, evaluated: int, tasks: int) -> dict[str, dict[str, Tensor]]:
    """The blocks of the first new texts, as many as there are `tasks`, and of both known ones, by name and split."""
    held_out = {"validation": evaluated, "test": evaluated}
    texts = {}
    for name, documents in islice(TASKS.items(), tasks):
        texts[name] = blocks_of(documents(), tokenizer, {"train": ROWS * steps, **held_out})
    for name in KNOWN:
        texts[name] = blocks_of(bundled_documents(name), tokenizer, {"train": 256, **held_out})
    return texts


def cut_vocabulary(
    model: PreTrainedModel, texts: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
    """Keep, in place, the rows of the embeddings that `texts` use.

    Returns the texts with the new numbers, and the old number of each.
    """
    begin = model.config.bos_token_id
    used = [ids.flatten() for splits in texts.values() for ids in splits.values()]
    kept = torch.cat([torch.tensor([] if begin is None else [begin]).long(), *used]).unique()
    layers: dict[int, Any] = {
        id(layer.weight): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    rows = [layer.weight.detach()[kept].clone() for layer in layers.values()]
    model.resize_token_embeddings(len(kept), mean_resizing=False)
    for layer, weight in zip((model.get_input_embeddings(), model.get_output_embeddings()), rows):
        layer.weight.data.copy_(weight)
    model.tie_weights()
    if begin is not None:
        model.config.bos_token_id = int(torch.searchsorted(kept, begin))
    return {
        name: {split: torch.searchsorted(kept, ids) for split, ids in splits.items()} for name, splits in texts.items()
    }, kept


def autocast(precision: str) -> torch.autocast:
    """The number format of the forward pass."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def losses(model: PreTrainedModel, texts: dict[str, dict[str, Tensor]], precision: str) -> dict[str, dict[str, float]]:
    """Nats per token by split and text."""
    model.eval()
    found: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    for split, by_name in found.items():
        for name, blocks in texts.items():
            with autocast(precision):
                parts = [float(model(input_ids=ids, labels=ids).loss) * len(ids) for ids in blocks[split].split(8)]
            by_name[name] = sum(parts) / len(blocks[split])
    return found


def pull_to_start(optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Let each step of `optimizer` end with its parameters `strength` x learning rate of the way back to now."""
    start = {parameter: parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]}

    @torch.no_grad()
    def pull(*_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.lerp_(start[parameter], strength * group["lr"])

    optimizer.register_step_post_hook(pull)


def learn(
    model: PreTrainedModel, rows: Iterator[Tensor], steps: int, rate: float, precision: str, arm: Arm, seed: int,
    rehearsal: Rehearsal | None = None, weight: float = REHEARSAL_WEIGHT,
) -> None:  # fmt: skip
    """Train `model` in place for `steps` steps of fused AdamW on `rows`, batches of token ids; as a user would."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if arm.fraction < 1:
        sparse_updates(optimizer, arm.fraction, seed)
    if arm.pull:
        pull_to_start(optimizer, arm.pull)
    schedule = warmup_and_cosine(optimizer, steps // 10, steps)
    for step in tqdm(range(1, steps + 1), desc=f"{arm.label}, {rate:g}", unit="step", file=sys.stderr):
        model.train()
        batch = next(rows)
        with autocast(precision):
            loss = model(input_ids=batch, labels=batch).loss
            if rehearsal and step % arm.every == 0:
                loss = loss + weight * rehearsal.loss(model, step // arm.every)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def batches(new: Tensor, known: Tensor, arm: Arm, seed: int) -> Iterator[Tensor]:
    """Token ids, (rows, LENGTH), of each step: new text, and of replay one known row in some of the steps.

    Every arm reads the same new text, as in the `Trainer`, where what is rehearsed comes on top.
    """
    of_new, of_known = shuffled(len(new), 1, seed), shuffled(len(known), 1, seed)
    for step in count():
        is_replayed = arm.replay > 0 and step % round(1 / arm.replay) == 0
        rows = [new[next(of_new)] for _ in range(ROWS)]
        yield torch.cat([*rows, *([known[next(of_known)]] if is_replayed else [])])


def losses_at_shares(start: PreTrainedModel, model: PreTrainedModel, texts: dict, precision: str) -> dict[str, dict]:
    """The losses with each of `SHARES` of the change from `start` to `model`, by share as text; `model` is changed."""
    before, end, found = copy_parameters(start), copy_parameters(model), {}
    for share in SHARES:
        keep_share(model, before, end, share)
        found[f"{share:g}"] = losses(model, texts, precision)
    return found


def prompts(texts: dict) -> Tensor:
    """The beginnings of 5 blocks of each known text, (10, PROMPT) token ids."""
    return torch.cat([texts[name]["test"][:5, :PROMPT] for name in KNOWN])


def continuations(model: PreTrainedModel, texts: dict, decode: Callable[[Tensor], str], precision: str) -> list[str]:
    """What `model` writes after the `prompts`, with the same random numbers each time."""
    with autocast(precision):
        written = sample_tokens(model.eval(), prompts(texts), PROMPT, 0, None)
    return [decode(row) for row in written[:, PROMPT:]]


def run(
    start: PreTrainedModel, texts: dict, decode: Callable, arm: Arm, rate: float, seed: int,
    weight: float | None, arguments: argparse.Namespace,
) -> dict:  # fmt: skip
    """One training from the model `start`, which stays as it is; `weight` is that of the rehearsal, if there is one.

    Returns the `losses` by share of the change, those `after` each task, the `predicted` forgetting, seconds,
    `writing` among them, the `peak` of the process's memory so far in bytes, how many parameters were `trained`,
    and the `continuations`.
    """
    model, precision = copy.deepcopy(start), arguments.precision
    known = torch.cat([texts[name]["train"] for name in KNOWN])
    torch.manual_seed(seed)
    trained: Any = arm.adapter(model) if arm.adapter else model
    tasks, rehearsal, after, seconds, writing = tasks_of(texts), None, [], 0.0, 0.0
    for task in tasks:
        begun = time.perf_counter()
        if arm.known is not None:
            # Of earlier tasks it rehearses what it wrote; without known text it writes of all anew.
            written = rehearsal.written if rehearsal and arm.known else ()
            with autocast(precision):
                rehearsal = Rehearsal(
                    trained, [known] if arm.known else None, written,
                    sequences=64, length=LENGTH, rows=1, interval=20 // arm.every, seed=seed,
                )  # fmt: skip
            known = texts[task]["train"]
        writing += time.perf_counter() - begun
        rows = batches(texts[task]["train"], known, arm, seed)
        learn(trained, rows, arguments.steps, rate, precision, arm, seed, rehearsal, weight or 0.0)
        seconds += time.perf_counter() - begun
        if task != tasks[-1]:
            after.append(losses(trained, texts, precision))
        if arm.replay:
            known = torch.cat([known, texts[task]["train"][:256]])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    learned = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    with autocast(precision):
        predicted = max(rehearsal.predicted_forgetting(trained)) if rehearsal else None
    if arm.adapter:
        # In place: the adapter is inside `model`.
        trained.merge_and_unload()
    written_at_end = continuations(model, texts, decode, precision)
    # It changes the model, and so comes last.
    found = losses_at_shares(start, model, texts, precision)
    return {
        "losses": found, "after": [*after, found["1"]], "predicted": predicted, "seconds": seconds, "writing": writing,
        "peak": peak, "trained": learned, "continuations": written_at_end,
    }  # fmt: skip


def new_loss(scores: dict[str, float]) -> float:
    """The loss on new text, in nats per token, mean of the tasks."""
    return mean([scores[name] for name in tasks_of(scores)])


def known_rise(results: dict, scores: dict[str, dict[str, float]], split: str) -> float:
    """By how much the loss on known text has risen since the start, in nats per token, mean of both texts."""
    return mean([scores[split][name] - results["start"][split][name] for name in KNOWN])


def by_arm_and_rate(results: dict) -> dict[str, dict[float, list[dict]]]:
    """The records of each arm with each weight of rehearsal, by label, and learning rate, seeds together.

    In the order of `ARMS`, weights and rates.
    """
    found: dict[str, dict[float, list[dict]]] = defaultdict(lambda: defaultdict(list))
    order = list(ARMS)

    def place(record: dict) -> tuple[int, float, float]:
        return order.index(record["arm"]), record["weight"] or 0.0, record["rate"]

    for record in sorted(results["runs"].values(), key=place):
        weight = "" if record["weight"] is None else f", weight {record['weight']:g}"
        found[ARMS[record["arm"]].label + weight][record["rate"]].append(record)
    return {label: dict(rates) for label, rates in found.items()}


def positions(results: dict, rates: dict[float, list[dict]], split: str, shares: Iterable[float] = SHARES) -> Line:
    """(loss on new text, rise of the loss on known text) of each learning rate and share, means over seeds."""
    return [
        (
            mean([new_loss(scores[split]) for scores in kept]),
            mean([known_rise(results, scores, split) for scores in kept]),
        )
        for records in rates.values()
        for share in shares
        for kept in [[record["losses"][f"{share:g}"] for record in records]]
    ]  # fmt: skip


def best_line(results: dict, rates: dict[float, list[dict]], shares: Iterable[float] = SHARES) -> Line:
    """Positions on test text of the rates and shares that no other of the arm beats on validation text, in order."""
    chosen, measured = (positions(results, rates, split, shares) for split in ("validation", "test"))
    best = undominated(chosen)
    return sorted(position for choice, position in zip(chosen, measured) if choice in best)


def forgetting_at(line: Line, new: float) -> float | None:
    """The rise of known text on a `best_line` at the loss `new` on new text; None if it never learns as much.

    If all of it learns more, it is that of the point which learns least.
    """
    return line[-1][1] if new > line[-1][0] else interpolated(line, new)


def tried(rates: dict[float, list[dict]]) -> tuple[str, str]:
    """How many learning rates an arm was tried at, and with how many seeds each."""
    return str(len(rates)), " to ".join(map(str, sorted({len(records) for records in rates.values()})))


def equal_learning_table(results: dict) -> str:
    """Forgetting of each arm at the loss on new text that full fine-tuning has at each of its rates, as Markdown.

    Full fine-tuning, which the others are divided by, is its rates alone, the others rates and shares. Test text.
    """
    found = by_arm_and_rate(results)
    full = best_line(results, found[FULL], [1.0])
    rows = [["", "Rates", "Seeds", *(f"at {new:.3f}" for new, _ in full)]]
    rows.append(["full fine-tuning, nats per token", *tried(found[FULL]), *(f"{rise:.3f}" for _, rise in full)])
    for name, rates in found.items():
        line = best_line(results, rates)
        levels = [(forgetting_at(line, new), rise) for new, rise in full]
        label = f"{name}, a share of the change" if name == FULL else name
        shares = ["-" if level is None or rise < LEAST_RISE else f"{level / rise:.2f}" for level, rise in levels]
        rows.append([label, *tried(rates), *shares])
    caption = (
        f"Forgetting at equal learning, {results['settings']['model']}, {results['settings']['steps']} steps: by how "
        "much the loss on known text has risen, as a share of what it has with full fine-tuning, at its losses on new "
        "text; each arm with the rates and shares that are best on validation text; -: it never learned as "
        "much, or full fine-tuning forgot next to nothing"
    )
    return str(Table(caption, rows))


def task_rise(record: dict) -> float:
    """By how much the loss on the test text of the first task has risen since it was learned, in nats per token."""
    first = tasks_of(record["after"][0]["test"])[0]
    return record["after"][-1]["test"][first] - record["after"][0]["test"][first]


def runs_table(results: dict) -> str:
    """All runs, as Markdown; on test text."""
    start, found = results["start"]["test"], by_arm_and_rate(results)
    tasks = tasks_of(start)
    of_tasks = ["Rise of task 1"] if len(tasks) > 1 else []
    rows = [["Arm", "Learning rate", "Seeds", *tasks, *KNOWN, *of_tasks, "Rise of known", "with 75%", "with 50%",
             "Predicted", "Seconds, writing"]]  # fmt: skip
    rows.append(["start", "", "", *(f"{start[name]:.3f}" for name in (*tasks, *KNOWN)), *[""] * (5 + len(of_tasks))])
    for name, rates in found.items():
        for rate, records in rates.items():
            whole = [record["losses"]["1"]["test"] for record in records]
            parts = positions(results, {rate: records}, "test", SHARES[1:])
            predicted = [record["predicted"] for record in records if record["predicted"] is not None]
            # Older records have no seconds of writing.
            seconds = [[record[key] for record in records if key in record] for key in ("seconds", "writing")]
            rows.append([
                name, f"{rate:g}", str(len(records)),
                *(mean_and_interval([scores[text] for scores in whole]) for text in (*tasks, *KNOWN)),
                *(mean_and_interval(list(map(task_rise, records))) for _ in of_tasks),
                mean_and_interval([known_rise(results, record["losses"]["1"], "test") for record in records]),
                *(f"{rise:.3f} at {new:.3f}" for new, rise in parts),
                mean_and_interval(predicted) if predicted else "",
                ", ".join(f"{mean(times):.0f}" for times in seconds if times),
            ])  # fmt: skip
    settings = results["settings"]
    caption = (
        f"{settings['model']}, {settings['parameters']:,} parameters with {settings['rows']:,} rows of its embedding; "
        f"{settings['steps']} steps of {ROWS} sequences of {LENGTH} tokens of {' and then '.join(tasks)} text, "
        "what is rehearsed or replayed comes on top; nats per token on test text. Rise of known: mean of both texts; "
        "with 75%: the rise, and the loss on new text, if only 75% of the change of all weights is kept"
    )
    return str(Table(caption, rows))


def costs_table(results: dict) -> str:
    """Time and memory of the arms whose runs had a process of their own, beside full fine-tuning's, as Markdown.

    Seconds are divided by those of full fine-tuning with the same seed.
    """
    found = {
        name: {record["seed"]: record for records in rates.values() for record in records if "peak" in record}
        for name, rates in by_arm_and_rate(results).items()
    }
    full, settings = found.get(FULL, {}), results["settings"]
    steps = settings["steps"] * len(tasks_of(results["start"]["test"]))
    rows = [["Arm", "Seconds a step", "Step / full's", "with writing", "Writing, s", "Peak GB", "Trained %"]]
    for name, records in found.items():
        pairs = [(records[seed], full[seed]) for seed in records if seed in full]
        if not pairs:
            continue
        ours, theirs = ([record["seconds"] for record in part] for part in zip(*pairs))
        writing = [record["writing"] for record, _ in pairs]
        training = [seconds - written for seconds, written in zip(ours, writing)]
        rows.append([
            name, mean_and_interval([seconds / steps for seconds in training], 2),
            *(mean_and_interval([one / other for one, other in zip(of, theirs)], 2) for of in (training, ours)),
            f"{mean(writing):.1f}", mean_and_interval([record["peak"] / 1e9 for record, _ in pairs], 2),
            f"{100 * pairs[0][0]['trained'] / settings['parameters']:.1f}",
        ])  # fmt: skip
    caption = (
        f"Time and memory, {settings['model']}, {steps} steps of {ROWS} sequences of {LENGTH} tokens of new text on "
        f"{settings['threads']} thread; what is rehearsed or replayed comes on top and regenerating is in the steps. "
        "Writing: before the first step; peak: of the process, with what it had loaded, in 10^9 bytes"
    )
    return str(Table(caption, rows))


def continuations_page(results: dict) -> str:
    """What the model writes before, and after the largest learning rate of each arm, as Markdown."""
    columns = {"before": results["continuations"]}
    for name, rates in by_arm_and_rate(results).items():
        rate, records = list(rates.items())[-1]
        columns[f"{name}, {rate:g}"] = records[0].get("continuations", [])
    parts = []
    for number, prompt in enumerate(results["prompts"]):
        written = {label: texts[number] for label, texts in columns.items() if texts}
        parts.append(
            "\n".join([f"**{quoted(prompt)}**", "", *(f"- {key}: {quoted(text)}" for key, text in written.items())])
        )
    return "\n\n".join(parts)


def quoted(text: str) -> str:
    """`text` on one line of Markdown, as it is."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def frontier_figure(results: dict) -> Figure:
    """Forgetting of known text against the loss on new text, a line for each arm and weight; validation text.

    Of full fine-tuning it is that of its learning rates, of all arms (of it too, dotted) the best of rates and shares.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for marker, (name, rates) in zip(cycle(LINE_MARKERS), by_arm_and_rate(results).items()):
        if name == FULL:
            axes.plot(*zip(*positions(results, rates, "validation", [1.0])), marker="*", label=name)
        label = f"{name}, a share kept" if name == FULL else name
        points = undominated(positions(results, rates, "validation"))
        axes.plot(*zip(*points), marker=marker, linestyle=":", label=label)
    axes.axhline(0, color="0.7", linewidth=1)
    axes.set_xlabel("loss on new text (nats per token)")
    axes.set_ylabel("rise of the loss on known text\n(nats per token)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def prepare(arguments: argparse.Namespace) -> tuple[PreTrainedModel, dict, Callable[[Tensor], str], dict]:
    """The model that all runs start from, the texts in its vocabulary, how tokens of that are text, and the record."""
    adapted = arguments.out / f"{ADAPTED}.pt"
    with refusals(f"{arguments.model} cannot be used as a pretrained model", "name another"):
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    texts, kept = cut_vocabulary(model, read_texts(tokenizer, arguments.steps, arguments.evaluated, arguments.tasks))

    def decode(ids: Tensor) -> str:
        return str(tokenizer.decode(kept[ids], skip_special_tokens=True))

    settings = {
        "model": Path(arguments.model).name, "steps": arguments.steps, "adapt_steps": arguments.adapt_steps,
        "evaluated": arguments.evaluated, "precision": arguments.precision, "threads": arguments.threads,
        "parameters": model.num_parameters(), "rows": model.get_input_embeddings().num_embeddings,
    }  # fmt: skip
    results = open_results(arguments.out, settings)
    if "start" in results and adapted.exists():
        model.load_state_dict(torch.load(adapted, weights_only=True))
    else:
        known = torch.cat([texts[name]["train"] for name in KNOWN])
        rows = batches(known, known, ARMS["full"], seed=99)
        learn(model, rows, arguments.adapt_steps, 2e-5, arguments.precision, Arm("known text"), 0)
        write_atomically(adapted, lambda file: torch.save(model.state_dict(), file))
        results["start"] = losses(model, texts, arguments.precision)
        write_results(results, arguments.out)
    if "continuations" not in results:
        results["prompts"] = [decode(row) for row in prompts(texts)]
        results["continuations"] = continuations(model, texts, decode, arguments.precision)
    return model, texts, decode, results


@command
def main() -> None:
    parser = module_parser("k1.study.pretrained", __doc__)
    parser.add_argument("model", metavar="MODEL", help="a folder, or owner/name on the hub")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help=", ".join(ARMS)
    )
    parser.add_argument("--learning_rates", nargs="+", type=float, help="(default: each arm's own)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=60, help="of learning a new text (default: %(default)s)")
    parser.add_argument("--tasks", type=int, choices=[1, 2], default=1, help="new texts, each for --steps (default: 1)")
    parser.add_argument("--adapt_steps", type=int, default=128, help="on known text before (default: %(default)s)")
    parser.add_argument(
        "--rehearsal_weights",
        nargs="+",
        type=positive,
        default=[REHEARSAL_WEIGHT],
        help=f"of the divergence beside the loss on new text, each for runs of its own (default: {REHEARSAL_WEIGHT:g})",
    )
    parser.add_argument("--evaluated", type=int, default=64, help="blocks of each text (default: %(default)s)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("models/model_study"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start, texts, decode, results = prepare(arguments)
    is_first = True
    for seed, name in product(arguments.seeds, arguments.arms):
        arm = ARMS[name]
        weights = [None] if arm.known is None else arguments.rehearsal_weights
        for rate, weight in product(arguments.learning_rates or arm.rates, weights):
            key = f"{name}-{rate:g}-seed{seed}" + ("" if weight is None else f"-weight{weight:g}")
            if key not in results["runs"]:
                found = run(start, texts, decode, arm, rate, seed, weight, arguments)
                if not is_first:
                    # Later runs use memory that this one left.
                    del found["peak"]
                is_first = False
                results["runs"][key] = {"arm": name, "rate": rate, "seed": seed, "weight": weight, **found}
                write_results(results, arguments.out)
    tables = [runs_table(results)]
    if any(record["arm"] == "full" for record in results["runs"].values()):
        tables.append(equal_learning_table(results))
        write_text(arguments.out / "equal.md", tables[-1] + "\n")
        write_text(arguments.out / "costs.md", costs_table(results) + "\n")
    write_text(arguments.out / "continuations.md", continuations_page(results) + "\n")
    show(arguments.out, "\n\n".join(tables), "frontier.png", frontier_figure(results))


if __name__ == "__main__":
    main()
