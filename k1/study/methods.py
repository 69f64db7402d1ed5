"""The methods of the study: each is a few settings of the training scripts, or a few lines around their training."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice, product
from typing import Any

import torch
from datasets import interleave_datasets
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import PRESETS, Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.experiment import ARMS
from k1.rehearsal import Rehearsal, keep_share
from k1.sparse import UPDATE_FRACTION
from k1.training.trainer import StageTrainer, copy_parameters

FISHER_BATCHES, FISHER_ROWS = 20, 8


@dataclass(frozen=True)
class Stage:
    """A later stage that a method trains: `model`, in place, on `dataset`, after the datasets `learned` before.

    `importance` has the `fisher_information` of each earlier stage; only EWC uses and fills it.
    """

    model: PreTrainedModel
    dataset: TokenizedDataset
    arguments: Arguments
    rehearsal: Rehearsal | None
    learned: list[TokenizedDataset]
    importance: list[list[Tensor]]

    def train(self, attach: Callable[[torch.optim.Optimizer], object] | None = None) -> list[dict]:
        """Train as the scripts do, without a progress bar; returns the history."""
        return StageTrainer(self.model, self.dataset, self.arguments, self.rehearsal, attach).run(progress=False)


def with_replay(stage: Stage, share: float) -> list[dict]:
    """Train on blocks of which `share` come from the datasets learned before, equally from each."""
    others = len(stage.learned)
    shares = [1 - share, *[share / others] * others]
    return replace(stage, dataset=mixture([stage.dataset, *stage.learned], shares, stage.arguments)).train()


def mixture(datasets: list[TokenizedDataset], shares: list[float], arguments: Arguments) -> TokenizedDataset:
    """The first of `datasets` with training blocks drawn at random from all of them, in these `shares`."""
    mixed = interleave_datasets(
        [dataset.blocks["train"] for dataset in datasets], probabilities=shares, seed=arguments.stage_seed
    ).with_format("torch")
    return replace(datasets[0], blocks={**datasets[0].blocks, "train": mixed})


def with_part_kept(stage: Stage, keep: float) -> list[dict]:
    """Train, then keep the share `keep` of the change of the stage (WiSE-FT, arXiv:2109.01903)."""
    start = copy_parameters(stage.model)
    history = stage.train()
    keep_share(stage.model, start, copy_parameters(stage.model), keep)
    return history


def consolidated(stage: Stage, strength: float) -> list[dict]:
    """Train with a pull to the start of the stage, on what was important so far (EWC, arXiv:1612.00796)."""
    stage.importance.append(fisher_information(stage.model, stage.learned[-1], stage.arguments))
    importance = [sum(parts) for parts in zip(*stage.importance)]
    new = fisher_information(stage.model, stage.dataset, stage.arguments)
    return stage.train(consolidation(stage.model, importance, new, strength))


def fisher_information(model: PreTrainedModel, dataset: TokenizedDataset, arguments: Arguments) -> list[Tensor]:
    """Mean squared gradient of the loss by parameter, over 20 batches of 8 training sequences of `dataset`.

    In squared nats per token and unit of the parameter: the diagonal of the empirical
    Fisher information of EWC, of mini-batches instead of samples.
    """
    model.eval()
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    batches = batches_of_blocks(dataset.blocks["train"], FISHER_ROWS, arguments.stage_seed)
    for ids in islice(batches, FISHER_BATCHES):
        gradients = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, parameters)
        for value, gradient in zip(total, gradients):
            value.addcmul_(gradient, gradient, value=1 / FISHER_BATCHES)
    return total


def mean_element(tensors: list[Tensor]) -> float:
    """Mean over all elements of all tensors."""
    return sum(float(value.double().sum()) for value in tensors) / sum(value.numel() for value in tensors)


def consolidation(
    model: PreTrainedModel, importance: list[Tensor], responsibility: list[Tensor], strength: float
) -> Callable[[torch.optim.Optimizer], object]:
    """What to attach to an optimizer so that important parameters are held where they are now.

    It adds lambda x importance x (parameter - its value now) to each gradient, with
    lambda = strength x sqrt(mean(responsibility)) / mean(importance): so a parameter of
    mean importance that has moved by 1 / strength is pulled back as strongly as the new
    text pulls at the start. Both are of `fisher_information`, of old text and of new.
    """
    weight = strength * math.sqrt(mean_element(responsibility)) / mean_element(importance)
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def pull(*_: object) -> None:
        for parameter, omega, value in zip(model.parameters(), importance, start):
            if parameter.grad is not None:
                parameter.grad.addcmul_(omega, parameter.detach() - value, value=weight)

    return lambda optimizer: optimizer.register_step_pre_hook(pull)


def adapted(adapter: Callable[..., Any], stage: Stage, **setting: float) -> list[dict]:
    """Train what `adapter`, of the package peft, puts into the model, and merge it into the weights."""
    # Its fresh weights depend on the stage's seed.
    torch.manual_seed(stage.arguments.stage_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = adapter(stage.model, **setting)
    history = replace(stage, model=wrapped).train()
    # In place: the adapter is inside the model.
    wrapped.merge_and_unload().requires_grad_(True)
    return history


def low_rank_adapter(model: PreTrainedModel, rank: float) -> Any:
    """`model` with trainable low-rank matrices beside its frozen linear layers (LoRA, arXiv:2106.09685)."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=int(rank), lora_alpha=int(rank), target_modules="all-linear"))


def orthogonal_subspace(model: PreTrainedModel, embeddings: float = 0) -> Any:
    """`model` with the top 49% singular directions of its linear layers frozen (OSF, arXiv:2504.07097).

    `embeddings` 1 also trains what is not in a linear layer: embeddings, normalisations and the output layer.
    """
    from peft import OSFConfig, get_peft_model

    inside = {id(p) for layer in model.modules() if isinstance(layer, torch.nn.Linear) for p in layer.parameters()}
    inside -= {id(p) for p in model.get_output_embeddings().parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    wrapped = get_peft_model(model, OSFConfig(effective_rank=0.49, target_modules="all-linear"))
    for parameter in outside:
        parameter.requires_grad_(bool(embeddings))
    return wrapped


# By whether the model is held to what it was, and takes higher rates.
RATES = {False: (5e-4, 1.5e-3, 4.5e-3, 1.35e-2), True: (1e-3, 3e-3, 9e-3, 2.7e-2)}
WIDE_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


@dataclass(frozen=True)
class Method:
    """One row of the study.

    `label` is its name in tables and pictures. It continues the model of dataset 1 of `start`, and trains with the
    settings of `script` (both `k1` or `baseline`) but for the share `rehearsal` of rehearsed text and the `flags`, by
    `training`, which gets each of the `settings` in turn. `learning_rates` are its own, if it has others than those
    like it. `reference` is the method that it is compared with, and `joint` means all datasets at once from fresh
    weights.
    """

    label: str
    script: str = "baseline"
    start: str = "baseline"
    rehearsal: float = 0.0
    flags: dict[str, object] = field(default_factory=dict)
    training: Callable[..., list[dict]] = Stage.train
    settings: tuple[dict[str, float], ...] = ({},)
    learning_rates: tuple[float, ...] = ()
    reference: str = "baseline"
    joint: bool = False

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried by default on the later datasets."""
        return self.learning_rates or RATES[self.rehearsal > 0]


SHARE = PRESETS["study"].rehearsal
STANDARD = {
    # Decay to zero and a pull to the start would work against each other.
    "ewc": Method(
        "EWC", flags={"weight_decay": 0.0}, training=consolidated, settings=({"strength": 1.7}, {"strength": 5.0})
    ),
    "wise_ft": Method("WiSE-FT", training=with_part_kept, settings=({"keep": 0.6}, {"keep": 0.8})),
    "lora": Method("LoRA", training=partial(adapted, low_rank_adapter), settings=({"rank": 4}, {"rank": 16})),
    "osf": Method(
        "OSF", training=partial(adapted, orthogonal_subspace), settings=({"embeddings": 0}, {"embeddings": 1})
    ),
    "momentum": Method("MoFO, 51%", "k1", flags={"policy": "momentum"}),
    "stage": Method("half fine-tuning, 51%", "k1", flags={"policy": "stage"}),
}
STUDY = {
    "baseline": Method(ARMS["baseline"], learning_rates=WIDE_RATES),
    "sparse": Method(ARMS["sparse"], "k1", learning_rates=WIDE_RATES),
    "baseline_rehearsal": Method(ARMS["baseline_rehearsal"], rehearsal=SHARE),
    "k1": Method(ARMS["k1"], "k1", rehearsal=SHARE),
    **STANDARD,
    **{f"{name}_rehearsal": replace(method, rehearsal=SHARE) for name, method in STANDARD.items()},
    "replay": Method("5% replay (sees old text)", training=partial(with_replay, share=0.05)),
    "replay_25": Method("25% replay (sees old text)", training=partial(with_replay, share=0.25)),
    "joint": Method("all datasets at once (sees old text)", learning_rates=(4e-3,), joint=True),
}


def of_map(rehearsal: float, policy: str, share: float) -> Method:
    """A place of the map: the `share` of parameters that a step updates, and the `policy` that chooses them.

    Its rates are three at which a step is about as long as of all parameters, the root of the sum of squares: the
    change of random windows is taken times 1/share already, that of the other policies is not.
    """
    stretch = share ** (0.5 if policy == "windows" else -0.5)
    return Method(
        "100%" if share == 1 else f"{share:.0%}, {MAP_POLICIES[policy]}", script="k1", start="k1", rehearsal=rehearsal,
        flags={"policy": policy, "update_fraction": share}, reference=f"all_{rehearsal:g}",
        learning_rates=tuple(float(f"{rate * stretch:.2g}") for rate in RATES[rehearsal > 0][:3]),
    )  # fmt: skip


MAP_POLICIES = {"windows": "random windows", "momentum": "largest momenta", "stage": "one mask for the stage"}
MAP = {}
for rehearsal in (0.0, 1 / 16, 1 / 8, 1 / 4):
    MAP[f"all_{rehearsal:g}"] = of_map(rehearsal, "windows", 1.0)
    for policy, share in product(MAP_POLICIES, (0.01, 0.1, UPDATE_FRACTION)):
        MAP[f"{policy}_{share:g}_{rehearsal:g}"] = of_map(rehearsal, policy, share)

METHODS = STUDY | MAP
# What `python3 -m k1.study --grid` names.
GRIDS = {"study": list(STUDY), "map": list(MAP), "stream": list(ARMS)}


def require_packages(names: Iterable[str]) -> None:
    """Raise `K1Error` if one of the methods `names` needs peft, which only requirements-dev.txt brings."""
    needing = [name for name in names if getattr(METHODS[name].training, "func", None) is adapted]
    if needing and find_spec("peft") is None:
        raise K1Error(f"{', '.join(needing)} need peft; run pip install -r requirements-dev.txt or choose --methods")
