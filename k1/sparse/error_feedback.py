"""Error feedback: of the updates that AdamW has asked for, the largest take effect and the others wait."""

import torch

from k1.sparse.selection import Tensors
from k1.sparse.threshold import kth_largest, pieces, zero_last


def apply_largest(parameters: Tensors, pending: Tensors, budget: int) -> None:
    """Add the `budget` largest |pending updates| to their parameters, in place, and set them to zero.

    Nothing that AdamW asked for is ever lost, only delayed: sparse steps with
    memory, also called error feedback (arXiv:1809.07599), applied to AdamW's steps
    instead of gradients. `pending` has the names and shapes of `parameters`. All
    other parameters keep their bits. Of updates of equal size the first come first.
    """
    threshold, surplus = kth_largest(pending.values(), budget, by_size=True)
    # The last ones first, until none is too much.
    for name in reversed(pending):
        # torch's function keeps what is above a bound, not what is equal to it.
        bound = pending[name].new_tensor(threshold).nextafter(pending[name].new_tensor(-torch.inf)).item()
        for parameter, update in reversed(list(pieces(parameters[name].data, pending[name]))):
            taken = torch.hardshrink(-update, bound)
            if surplus:
                surplus -= zero_last(taken, taken.abs() == threshold, surplus)
            # Adding zero would change the sign bit of -0.0, subtracting it does not.
            parameter.sub_(taken)
            update.add_(taken)
