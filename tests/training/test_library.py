"""K-1 on a model of one's own: the code on the page runs, and prevents the forgetting that plain AdamW causes."""

import ast
import copy
import functools
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import k1
from k1.errors import K1Error
from k1.rehearsal import divergence_from
from tests.conftest import ROOT

END, VOCABULARY, LENGTH, ROWS = 0, 40, 32, 16
LEARNING_RATE = 5e-3
PAGE = (ROOT / "k1" / "training" / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (.*?) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def language(words: range, seed: int, batches: int) -> list[dict]:
    """Batches of a language in which two of `words` can follow each word, in documents of some 50 of them."""
    generator = torch.Generator().manual_seed(seed)
    following = torch.randint(words.start, words.stop, (VOCABULARY, 2), generator=generator)
    state = torch.zeros(ROWS, dtype=torch.long)
    text = []
    for _ in range(batches * LENGTH):
        which = (torch.rand(ROWS, generator=generator) < 0.3).long()
        ends = torch.rand(ROWS, generator=generator) < 0.02
        state = torch.where(ends, END, following[state, which])
        text.append(state)
    return [{"input_ids": ids} for ids in torch.stack(text, dim=1).split(LENGTH, dim=1)]


OLD, NEW = language(range(1, 22), seed=1, batches=160), language(range(16, 40), seed=2, batches=110)
HELD_OUT = {"old": OLD[-10:], "new": NEW[-10:]}


def fresh_model(kind: str):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=END, eos_token_id=END,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=END, eos_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def plain_loop(model, batches, optimizer):
    model.train()
    for batch in batches:
        model(**batch, labels=batch["input_ids"]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def loss_on(model, text: str) -> float:
    """Nats per token on held-out text."""
    model.eval()
    return sum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in HELD_OUT[text]) / 10


@functools.cache
def learned_model(kind: str):
    """A model that knows the old language, and nothing of the new one."""
    model = fresh_model(kind)
    plain_loop(model, OLD[:-10], torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE))
    assert loss_on(model, "old") < 1.1 and loss_on(model, "new") > 3
    return model


@pytest.fixture(params=["gpt2", "llama"])
def learned(request):
    """`learned_model`, which tests share and so leave as it is."""
    return learned_model(request.param)


def own_loop(model, example: str | None, **_):
    if example is None:
        plain_loop(model, NEW[:-10], torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE))
        return
    names = {"model": model, "old": OLD[:20], "new": NEW[:-10], "learning_rate": LEARNING_RATE, "torch": torch}
    exec(example, names)


def with_trainer(model, example: str | None, folder):
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=ROWS, num_train_epochs=1, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        logging_strategy="no", seed=0,
    )  # fmt: skip
    ids = torch.cat([batch["input_ids"] for batch in NEW[:-10]]).tolist()
    dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
    if example is None:
        Trainer(model, arguments, train_dataset=dataset).train()
        return
    names = {"model": model, "old": OLD[:20], "arguments": arguments, "dataset": dataset, "torch": torch}
    exec(example, names | {"Trainer": Trainer})


@pytest.mark.parametrize(("kind", "use", "title"), [("llama", own_loop, "own loop"), ("gpt2", with_trainer, "Trainer")])
def test_the_code_on_the_page_prevents_forgetting(tmp_path, kind, use, title):
    learned = learned_model(kind)
    before = loss_on(learned, "old")
    plain, kept_model = copy.deepcopy(learned), copy.deepcopy(learned)
    use(plain, None, folder=tmp_path)
    use(kept_model, EXAMPLES[title], folder=tmp_path)
    forgotten, kept = (loss_on(model, "old") - before for model in (plain, kept_model))
    found, wanted = loss_on(kept_model, "new"), loss_on(plain, "new")
    print(f"{title}: old {before:.3f}, forgotten {forgotten:.3f} and {kept:.3f}; new {wanted:.3f} and {found:.3f}")
    assert forgotten > 1
    assert kept < 0.15 * forgotten
    assert found < wanted + 0.2

    kept_model.save_pretrained(tmp_path / "model")
    opened = type(kept_model).from_pretrained(tmp_path / "model")
    assert loss_on(opened, "old") == pytest.approx(loss_on(kept_model, "old"), abs=1e-4)


def test_the_examples_are_short():
    assert set(EXAMPLES) == {"own loop", "Trainer"}
    for example in EXAMPLES.values():
        lines = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.stmt)]
        assert len(lines) <= 11


def test_the_callback_adds_the_gradient_of_the_divergence(learned):
    rehearsal = k1.Rehearsal(fresh_model("gpt2"), OLD[:2], sequences=10, length=8, rows=2, interval=3)
    arguments, state = SimpleNamespace(fp16=False, bf16=False), SimpleNamespace(global_step=4)
    callback = k1.RehearsalCallback(rehearsal, weight=0.7)
    callback.on_train_begin(arguments, state, None)
    model = copy.deepcopy(learned)
    plain_loop(model, OLD[:1], SimpleNamespace(step=lambda: None, zero_grad=lambda: None))
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    callback.on_step_begin(arguments, state, None, model=model)
    alone = copy.deepcopy(learned)
    sequences = rehearsal.sequences[2:4]
    assert rehearsal.sequences.shape == (6, 8)
    (divergence_from(rehearsal.teacher, sequences, alone(input_ids=sequences).logits) / 14).backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(
            model.get_parameter(name).grad, expected[name] + 0.7 * parameter.grad, rtol=1e-2, atol=1e-4
        )


def test_a_trainer_goes_on_from_a_checkpoint_with_the_same_bits(learned, tmp_path):
    """Also if the checkpoint lies between two steps at which the sequences are regenerated."""

    def trained(**options):
        model = copy.deepcopy(learned)
        rehearsal = k1.Rehearsal(model, OLD[:4], sequences=16, length=16, interval=4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        k1.sparse_updates(optimizer)
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=ROWS, max_steps=9, save_steps=6, report_to="none",
            disable_tqdm=True, use_cpu=True, logging_strategy="no", gradient_accumulation_steps=2,
        )  # fmt: skip
        ids = torch.cat([batch["input_ids"] for batch in NEW[:18]]).tolist()
        dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
        callbacks = [k1.RehearsalCallback(rehearsal)]
        Trainer(model, arguments, train_dataset=dataset, optimizers=(optimizer, None), callbacks=callbacks).train(
            **options
        )
        return model.state_dict(), rehearsal.sequences

    expected, written = trained()
    found, again = trained(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert torch.equal(again, written)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_callback_refuses_scaled_losses():
    callback = k1.RehearsalCallback(k1.Rehearsal(fresh_model("gpt2"), OLD[:1], sequences=2, length=8))
    with pytest.raises(K1Error, match="train with bf16=True"):
        callback.on_train_begin(SimpleNamespace(fp16=True), SimpleNamespace(global_step=0), None)


def test_under_autocast_every_parameter_gets_its_gradient(learned):
    """Weights that are rounded while the model writes, without gradients, are not those of training."""
    model = copy.deepcopy(learned)
    rehearsal = k1.Rehearsal(fresh_model("llama"), OLD[:1], sequences=2, length=8, rows=2, interval=1)
    with torch.autocast("cpu", torch.bfloat16):
        rehearsal.loss(model, 1).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_teacher_stays_and_every_task_has_its_part(learned):
    model = copy.deepcopy(learned)
    first = k1.Rehearsal(model, OLD[:2], sequences=4, length=8, rows=2, interval=1)
    assert first.written[0].shape == (4, 6) and first.loss(model, 1).item() == pytest.approx(0, abs=1e-4)
    second = k1.Rehearsal(model, NEW[:2], sequences=3, length=8, written=first.written)
    assert [text.shape for text in second.written] == [(4, 6), (3, 6)]
    assert torch.equal(second.written[0], first.written[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        drift = float(first.loss(model, 2))
    assert drift > 0.1 and not any(p.requires_grad for p in first.teacher.parameters())


@pytest.mark.parametrize(
    ("batches", "settings", "message"),
    [
        ([], {}, "there is no batch with 2 tokens in a row"),
        (OLD[:1], {"length": 200}, "length 200 is more than the 64 positions"),
        ([OLD[0]["input_ids"][:, :10]], {"length": 64}, "there is no batch with 16 tokens in a row"),
        (OLD[:1], {"length": 1}, "a length of at least 2"),
        (OLD[:1], {"interval": 0}, "1 step or more"),
        (OLD[:1], {"written": [torch.zeros(3, 1, dtype=torch.int32)]}, "is not of length 8"),
    ],
)
def test_a_rehearsal_that_cannot_be_is_one_clear_line(batches, settings, message):
    with pytest.raises(K1Error, match=message):
        k1.Rehearsal(fresh_model("gpt2"), batches, **{"length": 8, "sequences": 2, **settings})


def test_settings_of_a_pretrained_model_do_not_shape_what_it_rehearses(learned):
    """Its generation settings would end a row at the end of a document, and pad it."""
    expected = k1.Rehearsal(learned, OLD[:1], sequences=4, length=64).written[0]
    model = copy.deepcopy(learned)
    model.generation_config.eos_token_id = list(range(1, VOCABULARY))
    model.generation_config.repetition_penalty = 9.0
    assert torch.equal(k1.Rehearsal(model, OLD[:1], sequences=4, length=64).written[0], expected)
    assert model.generation_config.repetition_penalty == 9.0
