"""The callback in the Trainer of transformers: what it adds, logs, reports and refuses, wherever the Trainer runs."""

import copy
import functools
import os
import re
from types import SimpleNamespace

import peft
import pytest
import torch
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import k1
from k1.callback import PRECISION, UNFIT, new_sample
from k1.errors import K1Error
from k1.rehearsal import Rehearsal, divergence_from
from tests.conftest import run_two
from tests.test_known import CHATS, TEXTS, tokenizer
from tests.test_sparse import changed, snapshot
from tests.training.test_event_log import points

SMALL = {"sequences": 6, "length": 8, "interval": 2}


def tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 17, (count, 12), generator=torch.Generator().manual_seed(seed))


KNOWN = tokens(8, seed=1)
NEW = Dataset.from_dict({"input_ids": tokens(40, seed=2).tolist(), "labels": tokens(40, seed=2).tolist()})


def fresh_model(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0, attention_dropout=dropout,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def adapted(model: LlamaForCausalLM, **settings: object) -> peft.PeftModel:
    torch.manual_seed(0)
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], **settings}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def trainer_of(folder, callback, model=None, **options) -> Trainer:
    defaults = {
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 3,
    }  # fmt: skip
    model = fresh_model() if model is None else model
    reader = options.pop("processing_class", None)
    arguments = TrainingArguments(str(folder), **{**defaults, **options})
    return Trainer(model, arguments, train_dataset=NEW, eval_dataset=NEW, callbacks=[callback], processing_class=reader)


def test_one_line_attaches_both_parts_and_logs_what_they_do(tmp_path):
    callback = k1.K1Callback(known=KNOWN, **SMALL)
    trainer = trainer_of(tmp_path, callback, report_to="tensorboard", max_steps=3)
    counts = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            self.before = snapshot(model)

        def on_optimizer_step(self, *_, model, **__):
            counts.append(changed(self.before, model))

    trainer.add_callback(Watch())
    trainer.train()
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert all(0.4 * parameters < count <= round(0.51 * parameters) for count in counts) and len(counts) == 3
    # The optimizer is as the Trainer made it again.
    assert trainer.optimizer.optimizer.sparse_updates is None
    logged = [entry["divergence"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == pytest.approx(0, abs=1e-5) and all(value > 1e-4 for value in logged[1:])
    last = trainer.state.log_history[-1]
    assert last["predicted_forgetting"] > 0 and last["seconds_writing"] > 0 and last["seconds_rehearsing"] > 0
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*")}
    events = points(folder)
    assert events["train/divergence"] == pytest.approx([*enumerate(logged, start=1)])
    assert [step for step, _ in events["train/predicted_forgetting"]] == [3]


def test_the_report_has_both_texts_before_and_after(tmp_path):
    callback = k1.K1Callback(known=KNOWN, **SMALL)
    with pytest.raises(K1Error, match="nothing to report before the end"):
        callback.report()
    trainer = trainer_of(tmp_path, callback, max_steps=12)

    def loss_on(ids: torch.Tensor) -> float:
        with torch.no_grad():
            return float(trainer.model.eval()(input_ids=ids, labels=ids).loss)

    before = loss_on(KNOWN[:, :8])
    trainer.train()
    heads, rule, known, new, forgotten, *seconds = callback.report().splitlines()
    assert (heads, rule) == ("| | before | after |", "|---|---:|---:|")
    assert known == f"| loss on known text | {before:.3f} | {loss_on(KNOWN[:, :8]):.3f} |"
    assert re.fullmatch(r"\| loss on new text \| (.*) \| (.*) \|", new)
    first, last = map(float, re.findall(r"\d\.\d+", new))
    assert last < first
    assert forgotten == f"| predicted forgetting |  | {callback.rehearsal.predicted_forgetting(trainer.model)[0]:.3f} |"
    assert len(seconds) == 2
    # A dataset that its own sampler reads, by names.
    assert new_sample(SimpleNamespace(dataset={"name": NEW[0]}), trainer.args) == []


def test_the_gradient_of_the_divergence_is_added_and_no_more_is_read_at_once_than_by_the_trainer(monkeypatch):
    arguments = SimpleNamespace(
        fp16=False, bf16=False, fsdp=None, deepspeed=None, seed=0, train_batch_size=3, per_device_train_batch_size=3,
        gradient_accumulation_steps=10,
    )  # fmt: skip
    model, state = fresh_model(), SimpleNamespace(global_step=4, train_batch_size=3)
    callback = k1.K1Callback(KNOWN, weight=0.7, fraction=1, sequences=6, length=8, interval=3)
    callback.on_init_end(arguments, None, None, model=fresh_model())
    callback.on_train_begin(arguments, state, None, model=model)
    with torch.no_grad():
        model.lm_head.weight.mul_(9)
    model.get_input_embeddings().weight.grad = torch.ones(17, 16)
    sizes, divergence = [], Rehearsal.divergence
    monkeypatch.setattr(Rehearsal, "divergence", lambda *inputs: sizes.append(len(inputs[2])) or divergence(*inputs))
    callback.on_step_begin(arguments, state, None, model=model)
    # A quarter of the 30 sequences of a step, at most 3 at once.
    assert sizes == [3, 3, 1] and callback.rehearsal.sequences.shape == (21, 8)
    alone, sequences = copy.deepcopy(model), callback.rehearsal.sequences[7:14]
    (0.7 * divergence_from(callback.rehearsal.teacher, sequences, alone(input_ids=sequences).logits) / 49).backward()
    alone.get_input_embeddings().weight.grad += 1
    for ours, expected in zip(model.parameters(), alone.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("known", [TEXTS, CHATS], ids=["texts", "chats"])
def test_text_is_read_by_the_tokenizer_of_the_trainer(tmp_path, known):
    callback = k1.K1Callback(known * 3, **SMALL)
    trainer_of(tmp_path, callback, max_steps=1, processing_class=tokenizer()).train()
    assert callback.rehearsal.written[0].shape == (6, 6) and "loss on known text" in callback.report()
    with pytest.raises(K1Error, match="processing_class=tokenizer"):
        trainer_of(tmp_path, k1.K1Callback(known, **SMALL))


def test_without_known_text_or_settings_the_model_begins_by_itself(tmp_path):
    callback = k1.K1Callback()
    trainer_of(tmp_path, callback, max_steps=1).train()
    assert callback.rehearsal.written[0].shape == (128, 24) and callback.rehearsal.length == 32
    assert "known text" not in callback.report() and "new text" in callback.report()


RUNS = {
    "bf16": {"bf16": True},
    "bf16 by accelerate launch": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    # The name that the oldest transformers has, too; by itself it takes the way that does not fit an adapter.
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "best model": {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
                   "save_strategy": "steps"},
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("prepare", [lambda model: model, adapted], ids=["whole", "adapter"])
def test_it_works_twice_in_a_row_wherever_the_trainer_does(tmp_path, monkeypatch, kind, prepare):
    monkeypatch.setenv(PRECISION, "bf16" if "launch" in kind else "no")
    model = prepare(fresh_model())
    for _ in range(2):
        callback = k1.K1Callback(KNOWN, **SMALL)
        trainer = trainer_of(tmp_path, callback, model, **RUNS[kind])
        trainer.train()
        logged = [entry["divergence"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(logged) == 4 and logged[0] == 0 and max(logged) > 4e-5


def test_it_rehearses_in_one_step_of_so_many(tmp_path, monkeypatch):
    regenerated, rewrite = [], Rehearsal.rewrite
    monkeypatch.setattr(
        Rehearsal, "rewrite", lambda *inputs, **named: regenerated.append(inputs[2]) or rewrite(*inputs, **named)
    )
    trainer = trainer_of(tmp_path, k1.K1Callback(KNOWN, every=3, sequences=6, length=8, interval=6), max_steps=12)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "divergence" in entry] == [3, 6, 9, 12]
    # Of the rehearsed steps each second one, every 6 steps of the Trainer.
    assert regenerated == [1, 3]


def test_a_trainer_that_trains_twice_goes_on(tmp_path):
    callback = k1.K1Callback(KNOWN, **SMALL)
    trainer = trainer_of(tmp_path, callback, max_steps=2)
    trainer.train()
    trainer.train()
    assert trainer.optimizer.param_groups[0]["sparse_step"] == 4


def test_nothing_outlives_the_step_in_which_a_training_is_stopped(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise KeyboardInterrupt

    trainer = trainer_of(tmp_path, k1.K1Callback(KNOWN, **SMALL))
    trainer.add_callback(Stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert k1.sparse_updates(trainer.optimizer).optimizer.param_groups[0]["sparse_step"] == 1


@pytest.mark.parametrize("prepare", [lambda model: model, adapted], ids=["whole", "adapter"])
def test_a_training_resumes_from_a_checkpoint_with_the_same_bits(tmp_path, prepare):
    """Also if the checkpoint lies between two steps at which the sequences are regenerated, and with dropout."""

    def trained(**options):
        callback = k1.K1Callback(KNOWN, forgetting_budget=1e-4, sequences=6, length=8, interval=4, every=2)
        trainer = trainer_of(
            tmp_path, callback, prepare(fresh_model(dropout=0.1)), max_steps=9, save_steps=6, save_strategy="steps",
            gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.train(**options)
        return snapshot(trainer.model), callback.rehearsal.sequences, callback.results

    expected = trained()
    found = trained(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert torch.equal(found[1], expected[1]) and found[2] == expected[2] and 0 < found[2]["kept"] < 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0], expected[0]))


def test_a_callback_that_is_added_later_cannot_resume(tmp_path):
    trainer_of(tmp_path, k1.K1Callback(KNOWN, **SMALL), max_steps=2, save_steps=1, save_strategy="steps").train()
    trainer = trainer_of(tmp_path, k1.K1Callback(KNOWN, **SMALL), max_steps=2)
    trainer.remove_callback(k1.K1Callback)
    trainer.add_callback(k1.K1Callback(KNOWN, **SMALL))
    with pytest.raises(K1Error, match="to resume, give the callback to the Trainer as it is made"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer.train()


def test_a_budget_cuts_the_change_back(tmp_path):
    callback = k1.K1Callback(KNOWN, forgetting_budget=1e-3, **SMALL)
    trainer = trainer_of(tmp_path, callback, max_steps=8)
    trainer.train()
    kept = trainer.state.log_history[-1]["kept_share"]
    assert 0 < kept < 1 and 0 < callback.rehearsal.predicted_forgetting(trainer.model)[0] <= 1e-3
    assert f"| share of the change that is kept |  | {kept:.0%} |" in callback.report()


def test_what_was_saved_is_rehearsed_with_the_next_task(tmp_path):
    first = k1.K1Callback(KNOWN, weight=2.0, policy="stage", every=2, **SMALL)
    with pytest.raises(K1Error, match="nothing to rehearse or to save before"):
        first.save(tmp_path)
    trainer = trainer_of(tmp_path, first, max_steps=2)
    trainer.train()
    first.save(tmp_path / "k1")
    second = k1.K1Callback.load(tmp_path / "k1", known=tokens(8, seed=2), interval=3)
    assert (second.weight, second.policy, second.fraction, second.every) == (2.0, "stage", 0.51, 2)
    assert second.settings == {**first.settings, "interval": 3}
    trainer_of(tmp_path, second, trainer.model, max_steps=1).train()
    old, new = second.rehearsal.written
    assert torch.equal(old, first.rehearsal.written[0]) and new.shape == (6, 6) and not torch.equal(old, new)
    assert re.search(r"predicted forgetting \|  \| \d\.\d+, \d\.\d+ \|", second.report())
    with pytest.raises(K1Error, match="cannot read what K1Callback.save wrote"):
        k1.K1Callback.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.5}, "fraction must be above 0 and at most 1"),
        ({"policy": "half"}, "policy 'half' is unknown"),
        ({"fraction": 1, "policy": "stage"}, "policy 'stage' does nothing with fraction 1"),
        ({"weight": 0}, "weight must be above 0"),
        ({"every": 0}, "every must be at least 1 step"),
        ({"forgetting_budget": -1}, "forgetting_budget must be at least 0"),
    ],
)
def test_a_setting_that_cannot_be_or_does_nothing_is_one_clear_line(settings, message):
    with pytest.raises(K1Error, match=message):
        k1.K1Callback(KNOWN, **settings)


@pytest.mark.parametrize("name", ["fp16", "fsdp", "deepspeed", *UNFIT])
def test_where_it_cannot_work_it_says_so(name, monkeypatch):
    """Whether the Trainer's arguments say so or `accelerate launch` does."""
    arguments = {"fp16": False, "fsdp": None, "deepspeed": None, name: True}
    if name in UNFIT:
        monkeypatch.setenv(name, UNFIT[name])
    with pytest.raises(K1Error, match="train with bf16=True, in one process or DDP"):
        k1.K1Callback(KNOWN).on_init_end(SimpleNamespace(**arguments), None, None, model=fresh_model())


def test_parameters_in_pieces_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = fresh_model()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for use in (lambda: k1.Rehearsal(model, KNOWN), lambda: k1.sparse_updates(torch.optim.SGD(model.parameters()))):
            with pytest.raises(K1Error, match="train with DistributedDataParallel, not FSDP"):
                use()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "size"), [({}, 4), ({"teacher_dtype": torch.bfloat16, "teacher_device": "cpu"}, 2)]
)
def test_the_bytes_of_a_frozen_copy(tmp_path, settings, size):
    callback = k1.K1Callback(KNOWN, **SMALL, **settings)
    trainer_of(tmp_path, callback).train()
    kept = list(callback.rehearsal.teacher.parameters())
    assert sum(value.numel() * value.element_size() for value in kept) == size * sum(value.numel() for value in kept)
    assert not {id(value) for value in kept} & {id(value) for value in fresh_model().parameters()}
    found = callback.rehearsal.predicted_forgetting(fresh_model())
    assert found == pytest.approx([0], abs=1e-4)


def test_with_a_fresh_adapter_the_teacher_is_the_model_itself():
    model, plain = adapted(fresh_model()).train(), fresh_model()
    rehearsal = k1.Rehearsal(model, KNOWN, **SMALL)
    assert rehearsal.teacher is model
    assert torch.equal(rehearsal.written[0], k1.Rehearsal(plain, KNOWN, **SMALL).written[0])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.fill_(0.5)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    loss = rehearsal.loss(model)
    loss.backward()
    with torch.no_grad():
        sequences = rehearsal.sequences[:1]
        expected = divergence_from(plain, sequences, model(input_ids=sequences).logits) / 7
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and expected > 1e-3 and model.training
    assert [name for name, value in model.named_parameters() if value.grad is not None] == trained
    # The adapter has learned something: without it the model is not what it is now.
    assert k1.Rehearsal(model, KNOWN, **SMALL).teacher is not model


def test_what_trains_beside_an_adapter_or_is_frozen_in_it_stays_so():
    model = adapted(fresh_model())
    model.base_model.model.model.norm.weight.requires_grad_(True)
    assert k1.Rehearsal(model, KNOWN, **SMALL).teacher is not model
    half = adapted(fresh_model(), target_modules=["embed_tokens", "q_proj"])
    for name, value in half.named_parameters():
        value.requires_grad_("lora_B" in name)
    assert k1.Rehearsal(half, KNOWN, **SMALL).teacher is half
    assert all(value.requires_grad == ("lora_B" in name) for name, value in half.named_parameters())


def test_a_teacher_that_cannot_be_is_one_clear_line():
    quantized = adapted(fresh_model())
    quantized.is_loaded_in_4bit = True
    with pytest.raises(K1Error, match="bitsandbytes on a CPU has no gradients"):
        k1.Rehearsal(quantized, KNOWN)
    with pytest.raises(K1Error, match="no copy: leave out its dtype and device"):
        k1.Rehearsal(adapted(fresh_model()), KNOWN, teacher_dtype=torch.bfloat16)
    prompt = peft.get_peft_model(fresh_model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(K1Error, match="an adapter that is a prompt"):
        k1.Rehearsal(prompt, KNOWN)


def train_as_one_of_two(folder, rank: int, port: int) -> None:
    """Train with DistributedDataParallel as the Trainer starts it, and save what came of it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    callback = k1.K1Callback(KNOWN, **SMALL)
    trainer = trainer_of(folder / str(rank), callback, ddp_backend="gloo", max_steps=3)
    assert trainer.args.world_size == 2
    trainer.train()
    result = snapshot(trainer.model), callback.rehearsal.written, callback.rehearsal.sequences
    torch.save(result, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_rehearse_each_its_own_and_end_with_the_same_bits(tmp_path):
    run_two(functools.partial(train_as_one_of_two, tmp_path), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first[0], second[0]))
    assert torch.equal(first[1][0], second[1][0]) and not torch.equal(first[2], second[2])
