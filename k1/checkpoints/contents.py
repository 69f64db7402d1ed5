"""What a checkpoint holds: everything that is known at the end of a stage."""

import json
from dataclasses import dataclass, field

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data.loader import TokenizedDataset
from k1.experiment import arm_of
from k1.model import library_versions
from k1.parallel import require_identical

FORMAT = 8


# Dataset -> split -> scores, see `k1.training.evaluation.evaluate`.
Evaluation = dict[str, dict[str, dict[str, float]]]


@dataclass
class Checkpoint:
    """Everything that is known at the end of a stage; the fields are the keys of the file.

    `evaluations[i]` is row i of the accuracy matrix: what the model after stage
    i + 1 scores on each dataset so far and, where stage i + 2 has begun, on the
    next one (for forward transfer, on test text alone), as dataset -> split -> metrics.
    `initial_evaluation` has the scores on test text of the initial model: an untrained one,
    or the pretrained one that `start` describes. `history` has the entries of this stage,
    none if stage 1 had no steps. `written` is text by the model after each stage so far,
    (sequences, length) token ids, which later stages rehearse, and `predicted_forgetting`
    by how much the loss on what was written of each earlier dataset rose in this stage, in
    nats per token (see `k1.rehearsal.Rehearsal`); both are empty without rehearsal.
    `arguments` are those of `k1.config.Arguments`. `sha256` is the digest of all else,
    once written.
    """

    method: str
    stage: int
    model_config: dict
    model: dict[str, Tensor]
    tokenizer: str
    arguments: dict
    seed: int
    datasets: list[dict]
    evaluations: list[Evaluation]
    initial_evaluation: Evaluation
    history: list[dict]
    written: list[Tensor] = field(default_factory=list)
    predicted_forgetting: list[float] = field(default_factory=list)
    start: dict | None = None
    versions: dict[str, str] = field(default_factory=library_versions)
    format: int = FORMAT
    sha256: str = ""

    @property
    def arm(self) -> str:
        """The arm of the experiment, a key of `k1.experiment.ARMS`; of stage 1, which two arms share, the method."""
        if self.stage == 1:
            return self.method
        return arm_of(self.method, self.arguments["rehearsal"] > 0)


def stage_checkpoint(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    dataset: TokenizedDataset,
    arguments: Arguments,
    *,
    untrained: dict,
    before: dict,
    after: dict,
    history: list[dict],
    written: list[Tensor] | None = None,
    predicted: list[float] | None = None,
    previous: Checkpoint | None = None,
    start: dict | None = None,
) -> Checkpoint:
    """The checkpoint of a stage that has just been trained.

    `untrained`, `before` and `after` are evaluations (see `k1.evaluate`)
    of the model with its initial weights and before and after this stage;
    `written` is what later stages rehearse, and `predicted` the predicted forgetting of this
    one (see `k1.rehearsal.Rehearsal`); `previous` is the checkpoint that the stage continued, None for stage 1;
    `start` is the pretrained model that stage 1 started from, None for fresh weights.
    """
    evaluations = [dict(row) for row in previous.evaluations] if previous else []
    if evaluations:
        evaluations[-1].update(before)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    require_identical("weights", weights)
    return Checkpoint(
        method=arguments.method,
        stage=arguments.stage,
        model_config=json.loads(model.config.to_json_string(use_diff=False)),
        model=weights,
        tokenizer=tokenizer.to_str(),
        arguments=arguments.as_dict(),
        seed=arguments.seed,
        datasets=[*(previous.datasets if previous else []), dataset.record()],
        evaluations=[*evaluations, after],
        initial_evaluation={**(previous.initial_evaluation if previous else {}), **untrained},
        history=history,
        written=written or [],
        predicted_forgetting=predicted or [],
        start=previous.start if previous else start,
    )
