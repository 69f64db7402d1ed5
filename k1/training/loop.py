"""The training loop of one stage; K-1 and baseline differ only in what `SparseAdamW` is told to select."""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from k1.arguments import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import Interruption, K1Error
from k1.parallel import any_process, is_main_process, process_count, require_identical, share_of, sum_over_processes
from k1.sparse.optimizer import SparseAdamW
from k1.sparse.selection import Tensors, module_group
from k1.training.resume import START_ANEW, ResumeFile, identity_of

LOGGED_STEPS = 50
# Near zero, float32 rounds most updates away, and a step would change far fewer parameters than were selected.
FINAL_LEARNING_RATE_SHARE = 0.1


def train(
    model: PreTrainedModel,
    dataset: TokenizedDataset,
    arguments: Arguments,
    importance: Tensors | None = None,
    responsibility: Tensors | None = None,
    resume_file: ResumeFile | None = None,
) -> list[dict]:
    """Train `model` in place on the training text of `dataset` for `arguments.max_steps` steps.

    `importance` is the Fisher information of all earlier datasets and
    `responsibility` that of `dataset` at the start (see `k1.sparse.importance`): what
    the selection `gain` and consolidation go by. At the end the model keeps the
    share `arguments.interpolation` of its change.

    With a `resume_file` the training goes on from it, saves itself there while it
    runs, at the end and before Ctrl-C or SIGTERM end it, and comes out with the
    same bits as one that was never stopped.

    Returns the history, about 50 entries: `step`, `loss` (nats per token, mean
    since the last entry), `learning_rate`, `updated_fraction` (share of all
    parameters whose bits this step changed, by comparing them before and after),
    `updated_by_group` (the same share within each module group, see
    `k1.sparse.selection.module_group`) and `tokens_per_second`. Raises `K1Error` when
    the loss or the gradient is no longer finite.
    """
    model.train()
    start = copy_parameters(model) if arguments.interpolation != 1 else {}
    optimizer = build_optimizer(model, arguments, importance, responsibility)
    done, history, losses, identity = 0, [], [], {}
    if resume_file:
        state = {"model": model.state_dict(), "importance": importance, "responsibility": responsibility}
        identity = identity_of(arguments, dataset, state)
        if old := resume_file.take(identity):
            done, history, losses = old["step"], old["history"], old["losses"]
            restore(model, optimizer, old, resume_file)
    schedule = warmup_and_cosine(optimizer, arguments.warmup_steps, arguments.max_steps, done)
    batches = batches_of_blocks(
        dataset.blocks["train"],
        arguments.batch_size,
        arguments.stage_seed,
        skip=done * arguments.gradient_accumulation_steps,
    )
    parallel_model = DistributedDataParallel(model, forward_sync_buffers=False) if process_count() > 1 else model
    logging_interval = max(1, arguments.max_steps // LOGGED_STEPS)

    started, steps_timed = time.perf_counter(), 0
    progress = tqdm(
        range(done + 1, arguments.max_steps + 1),
        desc=f"stage {arguments.stage}: {dataset.name}",
        unit="step",
        initial=done,
        total=arguments.max_steps,
        file=sys.stderr,
        mininterval=1,
        disable=not is_main_process(),
    )
    # Whatever ends the loop, the bar is closed first, so that an error stands on a line of its own.
    with progress, Interruption() if resume_file else nullcontext() as interruption:
        for step in progress:
            losses.append(accumulate_gradients(parallel_model, batches, arguments))
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            if not math.isfinite(losses[-1]) or not torch.isfinite(norm):
                if resume_file:
                    resume_file.remove()
                raise K1Error(
                    f"training on '{dataset.name}' diverged at step {step} (loss {losses[-1]:.3g}, gradient norm "
                    f"{norm:.3g}); no checkpoint was written; lower --learning_rate from {arguments.learning_rate:g}"
                )
            learning_rate = schedule.get_last_lr()[0]
            is_logged = step % logging_interval == 0 or step == arguments.max_steps
            before = copy_parameters(model) if is_logged else None
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps_timed += 1
            if is_logged:
                elapsed = time.perf_counter() - started
                entry = {
                    "step": step,
                    "loss": sum(losses) / len(losses),
                    "learning_rate": learning_rate,
                    **changed_fractions(before, model),
                    "tokens_per_second": steps_timed * arguments.tokens_per_step / elapsed,
                }
                history.append(entry)
                progress.set_postfix_str(
                    f"loss {entry['loss']:.3f}, {entry['tokens_per_second']:,.0f} tokens/s", refresh=False
                )
                losses = []
                started, steps_timed = time.perf_counter(), 0
            if resume_file:
                is_stopped = any_process(interruption.requested is not None)
                if is_stopped or step == arguments.max_steps or resume_file.is_due(step):
                    resume_file.save(
                        identity, step=step, history=history, losses=losses,
                        model=model.state_dict(), optimizer=optimizer.state_dict(),
                    )  # fmt: skip
                if is_stopped:
                    place = f"step {step} of {arguments.max_steps}"
                    interruption.end(f"stopped at {place}; the same command goes on from {resume_file.path}")
    require_identical("update masks and moments", optimizer.state_dict())
    interpolate(model, start, arguments.interpolation)
    return history


def restore(model: PreTrainedModel, optimizer: SparseAdamW, old: dict, resume_file: ResumeFile) -> None:
    """Put the state of a training that was stopped back; raises `K1Error` where it does not fit."""
    try:
        kinds = [
            {name: (value.shape, value.dtype) for name, value in state.items()}
            for state in (model.state_dict(), old["model"])
        ]
        if kinds[0] != kinds[1] or not all(value.isfinite().all() for value in old["model"].values()):
            raise ValueError("other weights")
        model.load_state_dict(old["model"])
        optimizer.load_state_dict(old["optimizer"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise K1Error(f"{resume_file.path} does not fit the model ({error!s:.100}); {START_ANEW}")


def build_optimizer(
    model: PreTrainedModel,
    arguments: Arguments,
    importance: Tensors | None = None,
    responsibility: Tensors | None = None,
) -> SparseAdamW:
    """AdamW over all parameters; weight decay acts on matrices only, not on normalisations."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in trained if parameter.dim() >= 2]
    vectors = [(name, parameter) for name, parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return SparseAdamW(
        [group for group in groups if group["params"]],
        selection=arguments.selection,
        update_fraction=arguments.update_fraction,
        seed=arguments.stage_seed,
        importance=importance and {name: value.to(arguments.device) for name, value in importance.items()},
        responsibility=responsibility,
        gain_floor=arguments.gain_floor,
        consolidation=arguments.consolidation,
        lr=arguments.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def warmup_and_cosine(optimizer: torch.optim.Optimizer, warmup_steps: int, max_steps: int, done: int = 0):
    """Linear warm-up, then cosine decay to a tenth of the peak, over `max_steps` steps of which some are `done`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    # transformers' schedule begins with a step at zero; starting at its second point skips that.
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup_steps + 1, max_steps + 1, last_epoch=done, min_lr_rate=FINAL_LEARNING_RATE_SHARE
    )


def accumulate_gradients(model: torch.nn.Module, batches: Iterator[torch.Tensor], arguments: Arguments) -> float:
    """Add the gradients of one optimizer step's batches; returns their mean loss in nats per token.

    Of several processes each takes its rows of every batch, and all end with the gradients of the whole batch.
    """
    total = torch.zeros((), dtype=torch.float64)
    for number in range(1, arguments.gradient_accumulation_steps + 1):
        rows = share_of(next(batches)).to(arguments.device)
        is_last = number == arguments.gradient_accumulation_steps
        # Gradients are exchanged once a step, not with every batch.
        with nullcontext() if is_last or process_count() == 1 else model.no_sync():
            with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
                loss = model(input_ids=rows, labels=rows).loss / arguments.gradient_accumulation_steps
            loss.backward()
        total += loss.item()
    sum_over_processes(total)
    return total.item() / process_count()


@torch.no_grad()
def interpolate(model: PreTrainedModel, start: Tensors, share: float) -> None:
    """Keep `share` of the change since `start`, in place: weight-space ensembling (WiSE-FT, arXiv:2109.01903).

    A parameter that did not change keeps its bits.
    """
    for name, value in start.items():
        model.get_parameter(name).lerp_(value, 1 - share)


def copy_parameters(model: PreTrainedModel) -> Tensors:
    """A copy of every parameter, to compare with later."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed_fractions(before: Tensors, model: PreTrainedModel) -> dict:
    """`updated_fraction`, the share of all parameters that differ from the copies, and `updated_by_group`."""
    changed, sizes = Counter(), Counter()
    for name, parameter in model.named_parameters():
        group = module_group(name)
        changed[group] += int((before[name] != parameter).sum())
        sizes[group] += parameter.numel()
    return {
        "updated_fraction": changed.total() / sizes.total(),
        "updated_by_group": {group: changed[group] / size for group, size in sizes.items()},
    }
