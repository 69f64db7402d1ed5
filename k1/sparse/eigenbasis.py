"""The Kronecker-factored eigenbasis: every linear layer as W = L Theta R^T, with Theta as the parameter."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from k1.errors import K1Error
from k1.parallel import copy_from_main_process, sum_over_processes
from k1.presets import Preset
from k1.sparse.batches import Batch, evaluation_mode, losses


class Eigenbasis(nn.Module):
    """Parametrization W = left Theta right^T of a weight; Theta is the parameter, the bases never change.

    `left` (rows, rows) and `right` (columns, columns) are orthogonal; None is the identity.
    """

    def __init__(self, left: Tensor | None, right: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("left", left)
        self.register_buffer("right", right)

    def forward(self, theta: Tensor) -> Tensor:
        """The weight W, (rows, columns), for Theta of the same shape."""
        # Rounded to bfloat16, the product would be another weight than the folded one.
        with torch.autocast(theta.device.type, enabled=False):
            weight = theta if self.left is None else self.left @ theta
            return weight if self.right is None else weight @ self.right.T

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Theta = left^T W right, worked out in float64 so that the function of the layer is kept to rounding."""
        # On the CPU: not every device has float64.
        theta = weight.cpu().double()
        theta = theta if self.left is None else self.left.cpu().double().T @ theta
        theta = theta if self.right is None else theta @ self.right.cpu().double()
        return theta.to(weight)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of `model` by name (`nn.Linear` and GPT-2's `Conv1D`) whose weight no embedding shares."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embeddings
    }


def input_side(layer: nn.Module) -> int:
    """The side of a linear layer's weight that its inputs meet: 0 the rows, 1 the columns."""
    return 0 if isinstance(layer, Conv1D) else 1


def basis_sides(model: PreTrainedModel, layer: nn.Module, max_basis_dim: int) -> list[int]:
    """The sides of the weight of `layer` that get a basis, 0 the rows and 1 the columns: the shorter one, or both.

    Both where they are of the same length. Of the output layer it is the side of its
    inputs, as the other one is the vocabulary. A side above `max_basis_dim` gets none.
    """
    lengths = layer.weight.shape
    sides = [side for side in (0, 1) if lengths[side] == min(lengths)]
    if layer is model.get_output_embeddings():
        sides = [input_side(layer)]
    return [side for side in sides if lengths[side] <= max_basis_dim]


def kronecker_factors(
    model: PreTrainedModel, batches: Iterable[Batch], max_basis_dim: int
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """The Kronecker factors of the Fisher information of every linear layer (K-FAC, arXiv:1503.05671).

    Over all tokens of `batches` (see `k1.sparse.batches`), padding included: A = E[x x^T] of the
    layer's inputs x and G = E[d d^T] of the loss gradients d at its outputs, up
    to a factor. Returns layer name -> (factor of the rows of its weight, factor
    of the columns), float64; None for a side that gets no basis, see `basis_sides`.
    Raises `K1Error` where a gradient is not finite or there is no batch.
    """
    factors: dict[str, list[Tensor | None]] = {}
    hooks = []

    def accumulate(name: str, side: int, vectors: Tensor) -> None:
        vectors = vectors.detach().flatten(0, -2).float()
        # On the CPU: not every device has float64.
        factors[name][side] += (vectors.T @ vectors).double().cpu()

    def observe(name: str, layer: nn.Module) -> None:
        sides = basis_sides(model, layer, max_basis_dim)
        of_inputs = input_side(layer)
        of_outputs = 1 - of_inputs
        factors[name] = [
            torch.zeros(length, length, dtype=torch.float64) if side in sides else None
            for side, length in enumerate(layer.weight.shape)
        ]

        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if of_inputs in sides:
                accumulate(name, of_inputs, inputs[0])
            if of_outputs in sides:
                output.register_hook(lambda gradient: accumulate(name, of_outputs, gradient))

        hooks.append(layer.register_forward_hook(hook))

    for name, layer in linear_layers(model).items():
        observe(name, layer)
    try:
        for loss in losses(model, batches):
            loss.backward()
            model.zero_grad()
    finally:
        for hook in hooks:
            hook.remove()
    sum_over_processes(*(side for sides in factors.values() for side in sides if side is not None))
    if not all(torch.isfinite(side).all() for sides in factors.values() for side in sides if side is not None):
        raise K1Error(
            "training diverged: a gradient is not finite, so no eigenbasis; lower --learning_rate, with --overwrite"
        )
    return {name: (sides[0], sides[1]) for name, sides in factors.items()}


def eigenvectors(factor: Tensor) -> Tensor:
    """The eigenvectors of a symmetric `factor` as columns, largest eigenvalue first."""
    vectors = torch.linalg.eigh(factor).eigenvectors.flip(1)
    # Their signs and, of equal eigenvalues, their directions are not the same on every machine.
    copy_from_main_process(vectors)
    return vectors


def enter_eigenbasis(
    model: PreTrainedModel, batches: Iterable[Batch], max_basis_dim: int = Preset.max_basis_dim
) -> None:
    """Re-express, in place, every linear layer of `model` in the eigenbasis of its Kronecker factors.

    The eigenbasis is that of EK-FAC (arXiv:1806.03884) on the shorter side of a
    weight, and on both of a square one (see `basis_sides`), measured on `batches` of
    token ids, (batch, length), or dictionaries as a data loader gives them. The
    model computes the same function as before; its parameters are from here on the
    Thetas, so that an optimizer is to be made afterwards. Biases, normalisations and
    embeddings stay as they are.
    """
    layers = linear_layers(model)
    with evaluation_mode(model):
        factors = kronecker_factors(model, batches, max_basis_dim)
    for name, sides in factors.items():
        weight = layers[name].weight
        left, right = (None if factor is None else eigenvectors(factor).to(weight) for factor in sides)
        if left is not None or right is not None:
            parametrize.register_parametrization(layers[name], "weight", Eigenbasis(left, right))


def restore_eigenbasis(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Give the layers of a freshly built `model` the bases of a saved state, so that it can load that state."""
    marker = ".parametrizations.weight."
    for name in dict.fromkeys(key.split(marker)[0] for key in state if marker in key):
        bases = [state.get(f"{name}{marker}0.{side}") for side in ("left", "right")]
        parametrize.register_parametrization(model.get_submodule(name), "weight", Eigenbasis(*bases))


def fold_eigenbasis(model: PreTrainedModel) -> None:
    """Multiply, in place, every W = L Theta R^T out, so that the model is a plain one again, and as fast."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            # torch changes the class of the layer, which a deep copy of it shares.
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


@torch.no_grad()
def folded_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model, frozen and without bases, that computes what `model` does now; it shares no memory with it."""
    # The bases are not copied, as folding leaves them out.
    bases = {id(module): module for module in model.modules() if isinstance(module, Eigenbasis)}
    copied = copy.deepcopy(model, bases)
    fold_eigenbasis(copied)
    return copied.eval().requires_grad_(False)
