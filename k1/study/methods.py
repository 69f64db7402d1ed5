"""The methods of the study: each one is a few flags of the K-1 scripts, or an adapter around the model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from k1.errors import K1Error

STANDARD_BASIS = ("--max_basis_dim", "0")
NO_CONSOLIDATION = ("--consolidation", "0")
NO_INTERPOLATION = ("--interpolation", "1")
PLAIN = (*STANDARD_BASIS, *NO_CONSOLIDATION, *NO_INTERPOLATION)


@dataclass(frozen=True)
class Method:
    """One row of the study.

    `label` is its name in tables, `flags` what it tells the K-1 scripts,
    `learning_rates` those tried by default on datasets 2 and 3. `dial` is a second
    setting that is tuned, name -> values: a flag of the scripts or an argument
    of `adapter`. `first` says whose model of dataset 1 it goes on from.
    `adapter` wraps the model for one stage (from `peft`). `replay` is the share
    of old training text, `joint` means all datasets at once from fresh weights.
    """

    label: str
    flags: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = (5e-4, 1.5e-3, 4.5e-3)
    dial: dict[str, tuple[float, ...]] = field(default_factory=dict)
    first: str = "baseline"
    adapter: Callable[..., PreTrainedModel] | None = None
    replay: float = 0.0
    joint: bool = False

    @property
    def settings(self) -> list[dict[str, float]]:
        """Every setting of the dial, one dictionary each; one empty dictionary where there is no dial."""
        return [{name: value} for name, values in self.dial.items() for value in values] or [{}]


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


STRENGTHS = {"consolidation": (1.7, 5.0)}
CONSOLIDATED_RATES = (1e-3, 3e-3, 9e-3)
METHODS = {
    "dense": Method("dense (baseline)", learning_rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "k1": Method("K-1", first="k1", dial=STRENGTHS, learning_rates=CONSOLIDATED_RATES),
    "k1_all": Method(
        "K-1, all parameters", ("--selection", "all"), first="k1", dial=STRENGTHS, learning_rates=CONSOLIDATED_RATES
    ),
    "k1_standard_basis": Method(
        "K-1, standard basis", STANDARD_BASIS, first="k1", dial=STRENGTHS, learning_rates=CONSOLIDATED_RATES
    ),
    "k1_no_consolidation": Method("K-1, no consolidation", NO_CONSOLIDATION, first="k1"),
    "k1_no_interpolation": Method(
        "K-1, no interpolation", NO_INTERPOLATION, first="k1", dial=STRENGTHS, learning_rates=CONSOLIDATED_RATES
    ),
    "laplace": Method(
        "structured Laplace", ("--selection", "all", *NO_INTERPOLATION),
        dial=STRENGTHS, learning_rates=CONSOLIDATED_RATES,
    ),
    "ewc": Method(
        "EWC", ("--selection", "all", *STANDARD_BASIS, *NO_INTERPOLATION),
        dial=STRENGTHS, learning_rates=CONSOLIDATED_RATES,
    ),
    "wise_ft": Method("dense + WiSE-FT", dial={"interpolation": (0.6, 0.8)}),
    "groups": Method("coarse groups, 51%", ("--selection", "groups", *PLAIN)),
    "random": Method("random half (HFT), 51%", ("--selection", "random", *PLAIN)),
    "momentum": Method("MoFO, 51%", ("--selection", "momentum", *PLAIN)),
    "lora": Method("LoRA", dial={"rank": (4, 16)}, learning_rates=CONSOLIDATED_RATES, adapter=low_rank_adapter),
    "osf": Method("OSF", dial={"embeddings": (0, 1)}, adapter=orthogonal_subspace),
    "replay": Method("dense + 5% replay (sees old text)", replay=0.05),
    "joint": Method("joint training (sees all text)", joint=True, learning_rates=(3e-3, 6e-3, 1e-2)),
}  # fmt: skip


def require_packages(names: Iterable[str]) -> None:
    """Raise `K1Error` where one of the methods `names` needs peft, which only requirements-dev.txt brings."""
    needing = [METHODS[name].label for name in names if METHODS[name].adapter]
    if needing and find_spec("peft") is None:
        raise K1Error(
            f"the package peft is missing, for {' and '.join(needing)}; run: pip install -r requirements-dev.txt, "
            "or choose other --methods"
        )
