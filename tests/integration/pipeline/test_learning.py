"""The numbers of training: cutting a batch up changes nothing, and a model learns and stops."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.evaluation.answers import Answerer
from anneal_pipeline.evaluation.perplexity import LOSS, Evaluator
from anneal_pipeline.evaluation.questions import question_of_prompt
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import TunedModel, load_tokenizer, load_tuned_model
from anneal_pipeline.model.quantization import quantization_settings
from anneal_pipeline.training import loss as loss_module
from anneal_pipeline.training.batches import Batch, collate, collate_packed, micro_batches
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses
from anneal_pipeline.training.memory import RowLimit
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.state import RunState, load_moments, load_weights, write_state

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)
NUM_ROWS = 8


@pytest.fixture(scope="module")
def tuned(kit: ModuleType, model_dir: Path) -> TunedModel:
    config = kit.make_config(
        tuning={"method": "lora", "lora": {"rank": 4, "dropout": 0.0}},
        training={"gradientCheckpointing": False},
    )
    return load_tuned_model(config, folder=model_dir, device=CPU)


@pytest.fixture(scope="module")
def split() -> PreparedSplit:
    """Rows of 5, 10, ... 40 tokens, with a trained share that differs."""
    generator = torch.Generator().manual_seed(3)
    lengths = [5 * (index + 1) for index in range(NUM_ROWS)]
    mask = [int(i >= n // (2 + n % 3)) for n in lengths for i in range(n)]
    return PreparedSplit(
        ids=torch.randint(4, 300, (sum(lengths),), generator=generator, dtype=torch.int32),
        is_response=torch.tensor(mask, dtype=torch.uint8),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )


@pytest.fixture
def adapters(tuned: TunedModel) -> dict[str, torch.nn.Parameter]:
    """The adapters with B away from zero, so that A gets a gradient too."""
    parameters = trainable_parameters(tuned.model)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            torch.manual_seed(index)
            parameter.normal_(std=0.05)
    return parameters


@pytest.mark.parametrize("num_rows", [8, 7, 5], ids=["full", "last of 7", "last of 5"])
@pytest.mark.parametrize("size", [4, 3, 2, 1])
def test_mean_of_means_1x8_2x4_4x2_8x1_have_the_same_gradients(
    tuned: TunedModel,
    adapters: dict[str, torch.nn.Parameter],
    split: PreparedSplit,
    size: int,
    num_rows: int,
) -> None:
    """Pitfall: mean-of-means under accumulation.

    Micro-batch by accumulation on rows of unequal length, a partial last window included.
    """
    path = LogitsPath(tuned.model)
    tuned.model.train()
    optimizer = AdapterOptimizer(
        TrainingConfig(max_grad_norm=1e6), model=tuned.model, compute=torch.float32, ranks=ALONE
    )
    seen = []
    for micro_batch in (NUM_ROWS, size):
        batches = [
            collate(split, rows, pad_id=0, train_all=False)
            for rows in micro_batches(range(num_rows), micro_batch)
        ]
        outcome = optimizer.gather(path, batches)
        seen.append(
            (outcome, {n: p.grad.clone() for n, p in adapters.items() if p.grad is not None})
        )
        optimizer.take_back()
    (whole, want), (cut, got) = seen
    assert got.keys() == want.keys() == adapters.keys()
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    assert (cut.num_tokens, cut.num_trained_tokens) == (whole.num_tokens, whole.num_trained_tokens)
    for name in want:
        scale = float(want[name].abs().max())
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5 * scale)


def test_a_batch_without_a_trained_token_is_no_nan(tuned: TunedModel, split: PreparedSplit) -> None:
    """Pitfall: truncation leaves all -100: loss 0 or NaN."""
    silent = PreparedSplit(
        ids=split.ids, is_response=torch.zeros_like(split.is_response), offsets=split.offsets
    )
    path = LogitsPath(tuned.model)
    optimizer = AdapterOptimizer(
        TrainingConfig(), model=tuned.model, compute=torch.float32, ranks=ALONE
    )
    one = collate(split, [0, 1], pad_id=0, train_all=False)
    none = collate(silent, [2, 3], pad_id=0, train_all=False)
    alone = optimizer.gather(path, [none])
    assert (alone.loss, alone.grad_norm, alone.num_trained_tokens) == (0.0, 0.0, 0)
    assert alone.is_finite
    optimizer.take_back()
    losses = []
    for batches in ([one], [one, none]):
        losses.append(optimizer.gather(path, batches).loss)
        optimizer.take_back()
    assert losses[0] == losses[1] > 0


def test_an_fp16_step_without_any_row_is_taken_back(
    tuned: TunedModel, split: PreparedSplit
) -> None:
    optimizer = AdapterOptimizer(
        TrainingConfig(), model=tuned.model, compute=torch.float16, ranks=ALONE
    )
    path = LogitsPath(tuned.model)
    assert optimizer.gather(path, []).num_trained_tokens == 0
    optimizer.take_back()
    batch = collate(split, [0], pad_id=0, train_all=False)
    assert optimizer.gather(path, [batch]).num_trained_tokens > 0
    optimizer.take_back()
    optimizer.drop()


@pytest.mark.parametrize("ratio", [None, 16.0])
def test_lora_plus_moves_b_by_the_ratio_and_saved_moments_go_back_to_their_owners(
    tuned: TunedModel,
    adapters: dict[str, torch.nn.Parameter],
    split: PreparedSplit,
    tmp_path: Path,
    ratio: float | None,
) -> None:
    """Pitfall: optimiser param-group order changes with modules_to_save."""
    config = TrainingConfig(lora_plus_ratio=ratio, weight_decay=0.0)
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    make = partial(AdapterOptimizer, config, model=tuned.model, compute=torch.float32, ranks=ALONE)
    optimizer = make()
    start = {name: p.detach().clone() for name, p in adapters.items()}
    optimizer.step(path, [batch], learning_rate=1e-3, step=1)
    for name, parameter in adapters.items():
        moved = (parameter.detach() - start[name]).abs()
        want = 1e-3 * (ratio or 1.0 if "lora_B" in name else 1.0)
        # the first step of Adam is the rate, wherever there is a gradient
        assert float(moved.max()) == pytest.approx(want, rel=1e-2), name
    folder = tmp_path / "state"
    write_state(
        folder,
        state=RunState(),
        parameters=adapters,
        optimizer=optimizer.adamw,
        observer_state={},
        config={},
    )
    results = []
    for attempt in (optimizer, make()):
        load_weights(folder, adapters)
        load_moments(folder, adapters, attempt.adamw)
        attempt.step(path, [batch], learning_rate=1e-3, step=2)
        results.append({name: p.detach().clone() for name, p in adapters.items()})
    assert [n for n in results[0] if not torch.equal(results[0][n], results[1][n])] == []


def test_a_step_that_is_no_number_moves_nothing(
    tuned: TunedModel,
    adapters: dict[str, torch.nn.Parameter],
    split: PreparedSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    optimizer = AdapterOptimizer(
        TrainingConfig(), model=tuned.model, compute=torch.float32, ranks=ALONE
    )
    first = next(iter(adapters.values()))
    monkeypatch.setattr(first, "data", first.detach().clone().fill_(float("nan")))
    start = {name: p.detach().clone() for name, p in adapters.items()}
    outcome = optimizer.step(LogitsPath(tuned.model), [batch], learning_rate=1e-3, step=1)
    assert not outcome.is_finite
    for name, parameter in adapters.items():
        torch.testing.assert_close(parameter, start[name], rtol=0, atol=0, equal_nan=True)
        assert parameter.grad is None


def test_weight_decay_takes_its_share_of_the_rate_from_every_weight(
    tuned: TunedModel, adapters: dict[str, torch.nn.Parameter], split: PreparedSplit
) -> None:
    rate, decay = 1e-2, 0.5
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    start = {name: p.detach().clone() for name, p in adapters.items()}
    after: list[dict[str, torch.Tensor]] = []
    for config in (TrainingConfig(weight_decay=0.0), TrainingConfig(weight_decay=decay)):
        for name, parameter in adapters.items():
            parameter.data.copy_(start[name])
        optimizer = AdapterOptimizer(config, model=tuned.model, compute=torch.float32, ranks=ALONE)
        optimizer.step(path, [batch], learning_rate=rate, step=1)
        after.append({name: p.detach().clone() for name, p in adapters.items()})
    whole, decayed = after
    for name, weight in start.items():
        torch.testing.assert_close(
            whole[name] - decayed[name], rate * decay * weight, rtol=1e-3, atol=1e-7
        )


@pytest.mark.parametrize("share", [0.1, 10.0], ids=["above the limit", "below it"])
def test_gradients_are_clipped_to_the_limit_and_their_norm_is_told_as_it_was(
    tuned: TunedModel, adapters: dict[str, torch.nn.Parameter], split: PreparedSplit, share: float
) -> None:
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)

    def gathered(limit: float) -> tuple[float, torch.Tensor]:
        optimizer = AdapterOptimizer(
            TrainingConfig(max_grad_norm=limit),
            model=tuned.model,
            compute=torch.float32,
            ranks=ALONE,
        )
        told = optimizer.gather(path, [batch]).grad_norm
        grads = torch.cat([p.grad.flatten() for p in adapters.values() if p.grad is not None])
        optimizer.take_back()
        return told, grads

    norm, whole = gathered(1e6)
    assert float(whole.norm()) == pytest.approx(norm, rel=1e-5)
    told, clipped = gathered(share * norm)
    assert told == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(clipped, whole * min(1.0, share), rtol=1e-4, atol=1e-8)


def measured(tuned: TunedModel, split: PreparedSplit, *, rows_at_once: int) -> dict[str, float]:
    evaluator = Evaluator(
        model=tuned.model,
        path=LogitsPath(tuned.model),
        ranks=ALONE,
        pad_id=0,
        limit=RowLimit(rows=rows_at_once, may_halve=False),
        wanted=("perplexity",),
        should_stop=lambda: False,
        on_progress=lambda stage, done, total: None,
        on_halved=lambda rows, rank=0: None,
    )
    found = evaluator.measure(split, stage="evaluation")
    assert found is not None
    return dict(found.metrics)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_perplexity_does_not_depend_on_the_batch(
    tuned: TunedModel, split: PreparedSplit, batch_size: int
) -> None:
    """Pitfall: perplexity from padded labels or from the mean of batch means."""
    want = measured(tuned, split, rows_at_once=2)
    assert measured(tuned, split, rows_at_once=batch_size) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("is_packed", [False, True], ids=["unpacked", "packed"])
def test_eval_packed_or_masked_otherwise_than_train_would_have_another_loss(
    tuned: TunedModel, split: PreparedSplit, is_packed: bool
) -> None:
    """Pitfall: eval packed or masked otherwise than train."""
    if is_packed:
        pairs = [(row, row + 1) for row in range(0, NUM_ROWS, 2)]
        batch = collate_packed(split, pairs, pad_id=0, train_all=False)
    else:
        batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    tuned.model.eval()
    total = LogitsPath(tuned.model).backward(batch, weigh=lambda losses: losses)
    tuned.model.zero_grad()
    want = measured(tuned, split, rows_at_once=2)[LOSS]
    assert total / batch.num_trained_tokens == pytest.approx(want, rel=1e-5)


def test_pieces_give_the_gradients_and_metrics_of_the_whole(
    tuned: TunedModel, split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = trainable_parameters(tuned.model)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            torch.manual_seed(index)
            parameter.normal_(std=0.05)
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    sizes: list[int] = []

    def trained() -> tuple[float, dict[str, torch.Tensor]]:
        tuned.model.zero_grad()
        loss = path.backward(batch, weigh=lambda losses: losses / 7)
        return loss, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}

    want_loss, want = trained()
    monkeypatch.setattr(loss_module, "PIECE_TOKENS", 16)
    got_loss, got = trained()
    assert got_loss == pytest.approx(want_loss, rel=1e-5)
    assert got.keys() == want.keys() == parameters.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for tokens in path.pieces(batch):
            sizes.append(len(tokens.targets))
            assert len(tokens.logits) == sizes[-1]
    assert sum(sizes) == batch.num_trained_tokens
    assert max(sizes) == 16
    tuned.model.zero_grad()


def test_selected_logits_give_the_loss_of_the_model_itself(
    tuned: TunedModel, split: PreparedSplit
) -> None:
    path = LogitsPath(tuned.model)
    assert path.selects
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    got, want = losses_of_path_and_model(path, tuned, batch=batch)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def losses_of_path_and_model(
    path: LogitsPath, tuned: TunedModel, *, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    tuned.model.eval()
    with torch.no_grad():
        ours = sum_of_losses(path(batch)) / batch.num_trained_tokens
        theirs = tuned.model(
            input_ids=batch.ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
    return ours, theirs


SMALL = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
SHAPED = {
    "capped": Gemma2Config(**SMALL, final_logit_softcapping=0.05),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "multiplied": CohereConfig(**SMALL, logit_scale=0.25),
}


@pytest.mark.parametrize("kind", SHAPED)
def test_capped_and_scaled_logits_are_those_of_the_model_and_never_whole(
    kit: ModuleType, split: PreparedSplit, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPED[kind]).save_pretrained(tmp_path)
    kit.make_tokenizer().save_pretrained(tmp_path)
    tuned = load_tuned_model(kit.make_config(), folder=tmp_path, device=CPU)
    path = LogitsPath(tuned.model)
    assert path.selects
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    got, want = losses_of_path_and_model(path, tuned, batch=batch)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_32_rows_are_learnt_by_heart_at_default_settings_and_answered_to_the_stop(
    kit: ModuleType, tmp_path: Path
) -> None:
    """Pitfall: wrong learning rate for LoRA (that of full fine-tuning)."""
    folder = kit.write_model(tmp_path / "model", hidden=256, spread=0.1)
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(32))
    # All settings are the defaults, NF4 among them, but the number of passes, and that no row is
    # held out.
    config = PipelineConfig.parse(
        {
            "model": {"uri": "models/tiny"},
            "dataset": {"uri": "rows.jsonl", "split": {"train": 1.0, "validation": 0.0}},
            "training": {"epochs": 130.0},
            "evaluation": {"numGenerations": 0},
            "checkpoint": {"milestones": []},
        }
    )
    observer = kit.RecordingObserver()
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert observer.steps[-1].loss < 0.1

    adapter = tmp_path / "out" / "artifacts" / "adapter"
    in_4_bit = quantization_settings(config.tuning.quantization, compute=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=in_4_bit)
    model = PeftModel.from_pretrained(base, adapter)
    tokenizer = load_tokenizer(adapter)
    asked = [f"What is {n} plus {n * n}?" for n in range(32)]
    answerer = Answerer(
        model=model,
        tokenizer=tokenizer,
        stop_ids=[tokenizer.eos_token_id],
        limit=RowLimit(rows=32, may_halve=False),
        should_stop=lambda: False,
        on_progress=lambda answered: None,
        on_halved=lambda rows, rank=0: None,
        max_new_tokens=40,
    )
    got = answerer.answer([question_of_prompt(prompt) for prompt in asked])
    assert got is not None
    assert got == [f"It is {n + n * n}." for n in range(32)]
