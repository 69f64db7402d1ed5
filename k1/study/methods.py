"""The methods of the study: each one is a few flags of the training scripts, or a few lines around their training."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import PRESETS, Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import K1Error
from k1.experiment import ARMS

# A model that is held to what it was takes higher rates than one that is not.
HELD_RATES = (1e-3, 3e-3, 9e-3)
PLASTIC_RATES = (5e-4, 1.5e-3, 4.5e-3)
FISHER_BATCHES, FISHER_ROWS = 20, 8


@dataclass(frozen=True)
class Method:
    """One row of the study.

    `label` is its name in tables, `flags` what it tells the training scripts of
    `script` (`k1` or `baseline`), `learning_rates` those tried by default on the
    later datasets. `dial` is a second setting that is tuned, name -> values:
    `strength` of EWC, `keep` of WiSE-FT, or an argument of `adapter`, which wraps the
    model for one stage (from `peft`). `replay` is the share of old training text,
    `joint` means all datasets at once from fresh weights.
    """

    label: str
    flags: dict[str, object] = field(default_factory=dict)
    script: str = "baseline"
    learning_rates: tuple[float, ...] = PLASTIC_RATES
    dial: dict[str, tuple[float, ...]] = field(default_factory=dict)
    adapter: Callable[..., PreTrainedModel] | None = None
    replay: float = 0.0
    joint: bool = False

    @property
    def settings(self) -> list[dict[str, float]]:
        """Every setting of the dial, one dictionary each; one empty dictionary without a dial."""
        return [{name: value} for name, values in self.dial.items() for value in values] or [{}]


def fisher_information(model: PreTrainedModel, dataset: TokenizedDataset, arguments: Arguments) -> list[Tensor]:
    """Mean squared gradient of the loss by parameter, over 20 batches of 8 training sequences of `dataset`.

    In squared nats per token and unit of the parameter: the diagonal of the empirical
    Fisher information of EWC, of mini-batches instead of samples.
    """
    model.eval()
    total = [torch.zeros_like(parameter) for parameter in model.parameters()]
    batches = batches_of_blocks(dataset.blocks["train"], FISHER_ROWS, arguments.stage_seed)
    for ids in islice(batches, FISHER_BATCHES):
        model(input_ids=ids, labels=ids).loss.backward()
        for value, parameter in zip(total, model.parameters()):
            value.addcmul_(parameter.grad, parameter.grad, value=1 / FISHER_BATCHES)
        model.zero_grad()
    return total


def mean_element(tensors: list[Tensor]) -> float:
    """Mean over all elements of all tensors."""
    return sum(float(value.double().sum()) for value in tensors) / sum(value.numel() for value in tensors)


def consolidation(
    model: PreTrainedModel, importance: list[Tensor], responsibility: list[Tensor], strength: float
) -> Callable[[torch.optim.Optimizer], object]:
    """EWC (arXiv:1612.00796): what to attach to an optimizer so that important parameters are held where they are now.

    It adds lambda x importance x (parameter - its value now) to each gradient, with
    lambda = strength x sqrt(mean(responsibility)) / mean(importance): so a parameter of
    mean importance that has moved by 1 / strength is pulled back as strongly as the new
    text pulls at the start. Both are of `fisher_information`, of old text and of new.
    """
    weight = strength * math.sqrt(mean_element(responsibility)) / mean_element(importance)
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def pull(*_: object) -> None:
        for parameter, omega, value in zip(model.parameters(), importance, start):
            parameter.grad.addcmul_(omega, parameter.detach() - value, value=weight)

    return lambda optimizer: optimizer.register_step_pre_hook(pull)


def low_rank_adapter(model: PreTrainedModel, rank: float) -> PreTrainedModel:
    """`model` with trainable low-rank matrices beside its frozen linear layers (LoRA, arXiv:2106.09685)."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=int(rank), lora_alpha=int(rank), target_modules="all-linear"))


def orthogonal_subspace(model: PreTrainedModel, embeddings: float = 0) -> PreTrainedModel:
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


REHEARSAL = {"rehearsal": PRESETS["study"].rehearsal}
NO_REHEARSAL = {"rehearsal": 0.0}
NO_DECAY = {"weight_decay": 0.0}  # decay to zero and a pull to the start would work against each other
STANDARD = {
    "ewc": Method("EWC", NO_DECAY, dial={"strength": (1.7, 5.0)}),
    "wise_ft": Method("WiSE-FT", dial={"keep": (0.6, 0.8)}),
    "lora": Method("LoRA", dial={"rank": (4, 16)}, adapter=low_rank_adapter),
    "osf": Method("OSF", dial={"embeddings": (0, 1)}, adapter=orthogonal_subspace),
    "momentum": Method("MoFO, 51%", {"policy": "momentum"}, script="k1"),
    "stage": Method("half fine-tuning, 51%", {"policy": "stage"}, script="k1"),
}
METHODS = {
    "baseline": Method(ARMS["baseline"], learning_rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "sparse": Method(ARMS["sparse"], NO_REHEARSAL, script="k1", learning_rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "baseline_rehearsal": Method(ARMS["baseline_rehearsal"], REHEARSAL, learning_rates=HELD_RATES),
    "k1": Method(ARMS["k1"], script="k1", learning_rates=HELD_RATES),
    **{
        name: replace(method, flags=method.flags | (NO_REHEARSAL if method.script == "k1" else {}))
        for name, method in STANDARD.items()
    },
    **{
        f"{name}_rehearsal": replace(
            method, label=f"{method.label} + rehearsal", flags=method.flags | REHEARSAL, learning_rates=HELD_RATES
        )
        for name, method in STANDARD.items()
    },
    "replay": Method("5% replay (sees old text)", replay=0.05),
    "replay_25": Method("25% replay (sees old text)", replay=0.25),
    "joint": Method("all datasets at once (sees old text)", learning_rates=(4e-3,), joint=True),
}  # fmt: skip
# Those of the map are policies of sparse updates; their settings are flags, see `k1.study.map`.
MAP = {
    "random_windows": Method("random windows", {"policy": "windows"}, script="k1"),
    "largest_momenta": Method("largest momenta", {"policy": "momentum"}, script="k1"),
    "one_mask": Method("one mask for the stage", {"policy": "stage"}, script="k1"),
}


def require_packages(names: Iterable[str]) -> None:
    """Raise `K1Error` if one of the methods `names` needs peft, which only requirements-dev.txt brings."""
    needing = [METHODS[name].label for name in names if METHODS[name].adapter]
    if needing and find_spec("peft") is None:
        raise K1Error(
            f"the package peft is missing, for {' and '.join(needing)}; run: pip install -r requirements-dev.txt, "
            "or choose other --methods"
        )
