"""python3 -m k1.export CHECKPOINT DIR: write a checkpoint as a folder that transformers opens with from_pretrained."""

import sys
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from k1.checkpoints import Checkpoint, load_checkpoint, restore_model
from k1.data.messages import quiet_libraries
from k1.data.sources import dataset_labels
from k1.data.tokenizer import beginning_of_text, end_of_document, load_tokenizer
from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS
from k1.files import writing
from k1.report.generation_arguments import TEMPERATURE, TOP_K
from k1.report.metrics import accuracy_matrix
from k1.report.tables import accuracy_rows, format_table


def require_free(folder: Path) -> None:
    """Raise `K1Error` unless `folder` is empty or does not exist yet, in a folder that does."""
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise K1Error(f"{folder} exists already and is not an empty folder; name a new one, or remove it")
    if not (parent := folder.resolve().parent).is_dir():
        raise K1Error(f"the folder {parent} does not exist; make it first, or name another one")


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `checkpoint`, of any method and stage, as a folder that `from_pretrained` opens.

    It holds the weights as safetensors, the configurations of model and generation, the tokenizer, and a model card.
    Appears whole or not at all. Raises `K1Error` if `folder` exists and is not empty, if the checkpoint does not fit
    together, and if the disk does not take it.
    """
    folder = folder.resolve()
    model = restore_model(checkpoint, "cpu")
    tokenizer = pretrained_tokenizer(load_tokenizer(checkpoint.tokenizer), checkpoint.arguments["seq_length"])
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # No padding token: the embedding of that one gets no gradient, and the end of a document needs its own.
    model.config.update({**ends, "use_cache": True})
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, pad_token_id=tokenizer.pad_token_id, **ends
    )
    card = model_card(checkpoint, folder.name, model.num_parameters())
    with writing(folder) as place:
        with quiet_libraries():
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
        (place / "README.md").write_text(card, encoding="utf-8")


def pretrained_tokenizer(tokenizer: Tokenizer, seq_length: int) -> PreTrainedTokenizerFast:
    """`tokenizer` for transformers, with the same token ids for the same text.

    In training the end-of-document token stands between documents, so it also
    begins one, unless a pretrained model has another token for that; nothing adds it
    by itself. The same token pads, as in GPT-2.
    """
    last = end_of_document(tokenizer)
    begin, end = map(tokenizer.id_to_token, (next(iter(beginning_of_text(tokenizer)), last), last))
    tokenizer.post_processor = None  # what says so would add it
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        model_max_length=seq_length,
        # The characters of the token, inside a text, are no end of a document.
        split_special_tokens=tokenizer.encode_special_tokens,
        clean_up_tokenization_spaces=False,
    )


def model_card(checkpoint: Checkpoint, name: str, parameters: int) -> str:
    """The model card of `checkpoint`, called `name`: how it was trained, on what, and what it scored."""
    labels = dataset_labels(dataset["name"] for dataset in checkpoint.datasets)
    datasets = [["Dataset", "Source", "Training tokens", "Fingerprint"]] + [
        [label, dataset["source"], f"{dataset['tokens']['train']:,}", f"`{dataset['fingerprint']}`"]
        for label, dataset in zip(labels, checkpoint.datasets)
    ]
    # A local dataset without the folders it lies in.
    settings = {**checkpoint.arguments, "method": ARMS[checkpoint.arm], "dataset_name": labels[-1]}
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [k1, continual-learning]
---

# {name}

A causal language model with {parameters:,} parameters, trained by k1 on {len(labels)} dataset(s), one after another: \
{" -> ".join(labels)}. Arm of the experiment: {ARMS[checkpoint.arm]}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained({name!r}), AutoModelForCausalLM.from_pretrained({name!r})
prompt = tokenizer(tokenizer.bos_token + "Once", split_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```

## Accuracy after each stage

Next-token accuracy on test text in %; before a dataset's own stage it is not trained on yet:

{format_table(accuracy_rows(accuracy_matrix(checkpoint), labels, checkpoint.start))}

## Datasets

{format_table(datasets)}

## Settings of the last stage

{format_table([["Setting", "Value"], *([key, str(value)] for key, value in settings.items())])}

## Versions

{format_table([["Library", "Version"], *map(list, checkpoint.versions.items())])}

SHA-256 of the checkpoint's content: `{checkpoint.sha256}`
"""


@command
def main() -> None:
    parser = module_parser("k1.export", __doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="e.g. models/k1_final.pt")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder to write; it must be new or empty")
    arguments = parser.parse_args()
    # Said before the checkpoint is read, which can take long.
    require_free(arguments.folder)
    export(load_checkpoint(arguments.checkpoint), arguments.folder)
    print(f"wrote {arguments.folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
