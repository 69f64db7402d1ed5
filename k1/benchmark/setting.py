"""What all contestants share: the sizes of the model, the settings of a stage, and the text."""

from dataclasses import dataclass, replace

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from k1.config import Arguments, settings_of
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.tokenizer import train_tokenizer
from k1.model import build_model, model_config

WIDTHS = ("hidden_size", "intermediate_size", "heads")


@dataclass(frozen=True)
class Shape:
    """A size of the model: `preset` with all widths times `width`.

    Each contestant takes `rounds` turns and each part of a stage `stage_rounds`; without
    `stage_rounds` the optimizer alone is measured.
    """

    preset: str
    rounds: int
    stage_rounds: int = 0
    width: int = 1

    def arguments(self, arm: str) -> Arguments:
        """The settings of a later stage of `arm`."""
        arguments = settings_of(arm, self.preset, stage=2, device="cpu", data_source="bundled")
        return replace(arguments, **{name: self.width * getattr(arguments, name) for name in WIDTHS})

    def model(self) -> PreTrainedModel:
        """A model with fresh weights, the same each time; no time depends on what a model has learned."""
        arguments = self.arguments("baseline")
        return build_model(model_config(arguments, arguments.vocabulary_size), seed=0)

    def read(self) -> tuple[Tokenizer, TokenizedDataset]:
        """The tokenizer and the bundled text of dataset 1."""
        arguments = self.arguments("baseline")
        data_loader = DataLoader("wikitext", arguments)
        tokenizer = train_tokenizer(data_loader.text("train"), arguments.vocabulary_size)
        return tokenizer, data_loader.tokenize(tokenizer)


SHAPES = {
    "smoke": Shape("smoke", rounds=3, stage_rounds=2),
    "quick": Shape("quick", rounds=25, stage_rounds=5),
    "wide": Shape("quick", rounds=9, stage_rounds=3, width=4),
    "full": Shape("full", rounds=9),
}
