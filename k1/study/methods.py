"""The methods of the study: each one is a few flags of the K-1 scripts, or an adapter around the model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from k1.errors import K1Error
from k1.presets import PRESETS

# A model that is held to what it was takes higher rates than one that is not.
HELD_RATES = (1e-3, 3e-3, 9e-3)
PLASTIC_RATES = (5e-4, 1.5e-3, 4.5e-3)
STRENGTHS = {"consolidation": (1.7, 5.0)}
STANDARD_BASIS = ("--max_basis_dim", "0")
NO_CONSOLIDATION = ("--consolidation", "0")
NO_REHEARSAL = ("--rehearsal", "0")
NO_INTERPOLATION = ("--interpolation", "1")
# What a comparison gives to methods other than K-1.
REHEARSAL = ("--rehearsal", str(PRESETS["study"].rehearsal))
PLAIN = (*STANDARD_BASIS, *NO_CONSOLIDATION, *NO_INTERPOLATION)
ALL_STANDARD = ("--selection", "all", *STANDARD_BASIS, *NO_INTERPOLATION)


@dataclass(frozen=True)
class Method:
    """One row of the study.

    `label` is its name in tables, `flags` what it tells the training scripts of
    `script` (`k1` or `baseline`), `learning_rates` those tried by default on the
    later datasets. `dial` is a second setting that is tuned, name -> values: a
    flag of the scripts or an argument of `adapter`. `first` says whose model of dataset 1 it goes on from.
    `adapter` wraps the model for one stage (from `peft`). `replay` is the share
    of old training text, `joint` means all datasets at once from fresh weights.
    """

    label: str
    flags: tuple[str, ...] = ()
    script: str = "k1"
    learning_rates: tuple[float, ...] = HELD_RATES
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


# The other shares of parameters that a step updates; 51% and 100% are `k1` and `k1_all`.
SHARES = (0.05, 0.10, 0.25, 0.75)
METHODS = {
    "dense": Method("dense (baseline)", script="baseline", learning_rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "dense_rehearsal": Method(
        "dense + rehearsal", REHEARSAL, script="baseline", learning_rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    ),
    "k1": Method("K-1", first="k1"),
    **{
        f"k1_{share:.0%}": Method(f"K-1, {share:.0%} a step", ("--update_fraction", str(share)), first="k1")
        for share in SHARES
    },
    "k1_all": Method("K-1, all parameters", ("--selection", "all"), first="k1"),
    "k1_fixed_mask": Method("K-1, 51% for the whole stage", ("--selection", "gain"), first="k1"),
    "k1_standard_basis": Method("K-1, standard basis", STANDARD_BASIS, first="k1"),
    "k1_no_consolidation": Method("K-1, no consolidation", NO_CONSOLIDATION, first="k1"),
    "k1_no_interpolation": Method("K-1, no interpolation", NO_INTERPOLATION, first="k1"),
    "k1_no_rehearsal": Method("K-1, no rehearsal", NO_REHEARSAL, first="k1"),
    "ewc": Method("EWC", (*ALL_STANDARD, *NO_REHEARSAL), dial=STRENGTHS),
    "ewc_rehearsal": Method("EWC + rehearsal", ALL_STANDARD, dial={"consolidation": (0.5, 1.7)}),
    "laplace": Method(
        "structured Laplace", ("--selection", "all", *NO_REHEARSAL, *NO_INTERPOLATION), dial=STRENGTHS
    ),
    "momentum": Method(
        "MoFO, 51%", ("--selection", "momentum", *PLAIN, *NO_REHEARSAL), learning_rates=PLASTIC_RATES
    ),
    "momentum_rehearsal": Method("MoFO, 51% + rehearsal", ("--selection", "momentum", *PLAIN)),
    "random": Method(
        "random half (HFT), 51%", ("--selection", "random", *PLAIN, *NO_REHEARSAL), learning_rates=PLASTIC_RATES
    ),
    "random_rehearsal": Method("random half, 51% + rehearsal", ("--selection", "random", *PLAIN)),
    "groups": Method(
        "coarse groups, 51%", ("--selection", "groups", *PLAIN, *NO_REHEARSAL), learning_rates=PLASTIC_RATES
    ),
    "wise_ft": Method(
        "dense + WiSE-FT", script="baseline", dial={"interpolation": (0.6, 0.8)}, learning_rates=PLASTIC_RATES
    ),
    "lora": Method("LoRA", script="baseline", dial={"rank": (4, 16)}, adapter=low_rank_adapter),
    "osf": Method(
        "OSF", script="baseline", dial={"embeddings": (0, 1)}, adapter=orthogonal_subspace,
        learning_rates=PLASTIC_RATES,
    ),
    "replay": Method(
        "dense + 5% replay (sees old text)", script="baseline", replay=0.05, learning_rates=PLASTIC_RATES
    ),
    "replay_20": Method(
        "dense + 20% replay (sees old text)", script="baseline", replay=0.2, learning_rates=PLASTIC_RATES
    ),
    "joint": Method(
        "joint training (sees all text)", script="baseline", joint=True, learning_rates=(3e-3, 6e-3, 1e-2)
    ),
}  # fmt: skip


def require_packages(names: Iterable[str]) -> None:
    """Raise `K1Error` where one of the methods `names` needs peft, which only requirements-dev.txt brings."""
    needing = [METHODS[name].label for name in names if METHODS[name].adapter]
    if needing and find_spec("peft") is None:
        raise K1Error(
            f"the package peft is missing, for {' and '.join(needing)}; run: pip install -r requirements-dev.txt, "
            "or choose other --methods"
        )
