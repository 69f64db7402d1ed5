"""The model card: how the model was trained, on what, and what it scored after each stage."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from k1.checkpoints import Checkpoint
from k1.data.sources import dataset_labels
from k1.experiment import ARMS
from k1.report.metrics import accuracy_matrix
from k1.report.tables import format_table

METHODS = {
    "k1": "sparse updates, a share of the parameters at each step",
    "baseline": "every parameter updated at each step",
}


def model_card(checkpoint: Checkpoint, name: str, parameters: int) -> ModelCard:
    """The card of the model of `checkpoint`, called `name`, which has `parameters` parameters."""
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["k1", "continual-learning"],
        eval_results=evaluation_results(checkpoint),
    )
    stages = " -> ".join(labels_of(checkpoint))
    sections = [
        f"# {name}",
        f"A causal language model with {parameters:,} parameters, trained by k1 on {len(checkpoint.datasets)} "
        f"dataset(s), one after another: {stages}. Arm of the experiment: {ARMS[checkpoint.arm]} "
        f"({METHODS[checkpoint.method]}).",
        usage(name),
        "## Accuracy after each stage",
        "Next-token accuracy on test text in %, of the untrained model and after each stage; a dataset to the right "
        "of the stage is not trained on yet:",
        accuracy_table(checkpoint),
        "At the end, on test text:",
        final_table(checkpoint),
        "## Datasets",
        datasets_table(checkpoint),
        "## Settings of the last stage",
        format_table([["Setting", "Value"], *([key, text] for key, text in settings(checkpoint).items())]),
        "## Versions",
        format_table([["Library", "Version"], *map(list, checkpoint.versions.items())]),
        f"SHA-256 of the checkpoint's content: `{checkpoint.sha256}`",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def labels_of(checkpoint: Checkpoint) -> list[str]:
    """The datasets as they are called in tables."""
    return dataset_labels(dataset["name"] for dataset in checkpoint.datasets)


def evaluation_results(checkpoint: Checkpoint) -> list[EvalResult]:
    """Accuracy and perplexity at the end on the test text of every dataset, as the hub reads them."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=label,
            dataset_name=label,
            dataset_split="test",
            dataset_revision=dataset["fingerprint"],
            metric_type=metric,
            metric_value=checkpoint.evaluations[-1][dataset["name"]]["test"][metric],
        )
        for label, dataset in zip(labels_of(checkpoint), checkpoint.datasets)
        for metric in ("accuracy", "perplexity")
    ]


def usage(name: str) -> str:
    """How to open the folder, as Markdown."""
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer, model = AutoTokenizer.from_pretrained({name!r}), AutoModelForCausalLM.from_pretrained({name!r})",
        'prompt = tokenizer(tokenizer.bos_token + "Once", split_special_tokens=False, return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))",
    ]
    return "\n".join(["```python", *code, "```"])


def accuracy_table(checkpoint: Checkpoint) -> str:
    """The accuracy matrix in percent, one row a stage."""
    labels = labels_of(checkpoint)
    rows = [["Stage", *labels]]
    for stage, row in enumerate(accuracy_matrix(checkpoint)):
        title = f"{stage}: {labels[stage - 1]}" if stage else "untrained"
        rows.append([title, *("-" if value is None else f"{100 * value:.2f}" for value in row)])
    return format_table(rows)


def final_table(checkpoint: Checkpoint) -> str:
    """Loss, perplexity and accuracy at the end on the test text of every dataset."""
    rows = [["Dataset", "Nats per token", "Perplexity", "Accuracy %", "Predicted tokens"]]
    for label, dataset in zip(labels_of(checkpoint), checkpoint.datasets):
        scores = checkpoint.evaluations[-1][dataset["name"]]["test"]
        figures = [f"{scores['loss']:.4f}", f"{scores['perplexity']:.2f}", f"{100 * scores['accuracy']:.2f}"]
        rows.append([label, *figures, f"{scores['tokens']:,}"])
    return format_table(rows)


def datasets_table(checkpoint: Checkpoint) -> str:
    """Source, size and fingerprint of every dataset."""
    rows = [["Dataset", "Source", "Training tokens", "Fingerprint"]]
    for label, dataset in zip(labels_of(checkpoint), checkpoint.datasets):
        tokens = f"{dataset['tokens']['train']:,}"
        rows.append([label, dataset["source"], tokens, f"`{dataset['fingerprint']}`"])
    return format_table(rows)


def settings(checkpoint: Checkpoint) -> dict[str, str]:
    """The arguments of the last stage as text; a local dataset without the folders it lies in."""
    shown = {**checkpoint.arguments, "method": ARMS[checkpoint.arm], "dataset_name": labels_of(checkpoint)[-1]}
    return {name: str(value) for name, value in shown.items()}
