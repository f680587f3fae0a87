"""Perpendicular gradients in the stock Trainer."""

import copy

import pytest
import torch
import transformers as hf

from hf_softext.functional.perp_grad import project_out
from hf_softext.optim import perp_grad
from hf_softext.training.perp_grad import PerpGradCallback
from tests.models import model

LLAMA = model("llama")
QUICK = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 0.3,
    "save_steps": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}


class Gradients(hf.TrainerCallback):
    """What the optimizer gets, and what it has used afterwards."""

    def __init__(self):
        self.clipped, self.used, self.weights = [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.clipped.append({n: p.grad.clone() for n, p in model.named_parameters()})
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.used.append({n: p.grad.clone() for n, p in model.named_parameters()})


def rows():
    ids = torch.randint(3, 50, (24, 9), generator=torch.Generator().manual_seed(4))
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(folder, *callbacks, llama=None, **given):
    args = hf.TrainingArguments(str(folder), **{**QUICK, **given})
    llama = LLAMA.build() if llama is None else llama
    return hf.Trainer(llama, args, train_dataset=rows(), callbacks=list(callbacks))


def test_clipped_gradients_are_projected(tmp_path):
    seen = Gradients()
    trained = trainer(tmp_path, PerpGradCallback(exclude=["norm"]), seen, save_strategy="no")
    trained.train()
    assert len(seen.used) == 6
    for clipped, used, weights in zip(seen.clipped, seen.used, seen.weights, strict=True):
        norm = torch.cat([gradient.flatten() for gradient in clipped.values()]).norm()
        torch.testing.assert_close(norm, torch.tensor(0.3), rtol=1e-3, atol=0)
        for name, gradient in clipped.items():
            expected = gradient if "norm" in name else project_out(gradient, weights[name])
            assert torch.equal(used[name], expected)
            assert torch.equal(used[name], gradient) == ("norm" in name)
    assert not trained.optimizer.optimizer._optimizer_step_pre_hooks


def test_accumulated_batches_equal_a_large_one(tmp_path):
    found = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        seen = Gradients()
        trainer(
            tmp_path, PerpGradCallback(), seen, save_strategy="no", max_steps=1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        ).train()  # fmt: skip
        found.append(seen.used[0])
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "whole", PerpGradCallback())
    whole.train()
    plain = trainer(tmp_path / "plain")
    plain.train()
    again = trainer(tmp_path / "whole", PerpGradCallback())
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.state.global_step == 6
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    pairs = zip(whole.model.parameters(), plain.model.parameters(), strict=True)
    assert not any(torch.equal(p, q) for p, q in pairs)
    rates = [line["learning_rate"] for line in again.state.log_history if "loss" in line]
    assert rates == [line["learning_rate"] for line in whole.state.log_history if "loss" in line]


def test_second_run_also_after_an_exception_projects_once(tmp_path):
    class Stop(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("ours")

    callback, stop = PerpGradCallback(), Stop()
    trained = trainer(tmp_path, callback, stop, save_strategy="no")
    with pytest.raises(RuntimeError, match="ours"):
        trained.train()
    trained.remove_callback(stop)
    trained.train()
    assert not trained.optimizer.optimizer._optimizer_step_pre_hooks
    callback.remove()


def test_hooked_optimizer_is_not_hooked_again(tmp_path):
    llama = LLAMA.build()
    optimizer = torch.optim.SGD(llama.parameters(), lr=0.1)
    perp_grad(optimizer)
    args = hf.TrainingArguments(str(tmp_path), **{**QUICK, "save_strategy": "no"})
    trained = hf.Trainer(
        llama, args, train_dataset=rows(), optimizers=(optimizer, None),
        callbacks=[PerpGradCallback()],
    )  # fmt: skip
    with pytest.raises(ValueError, match="optimizer=SGD has perp_grad already"):
        trained.train()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"exclude": ["nrom"]}, ValueError, "exclude='nrom' matches no parameter's name"),
        ({"granularity": "column"}, ValueError, "granularity='column' must be"),
    ],
)
def test_wrong_options_are_named(given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        trainer(tmp_path, PerpGradCallback(**given), save_strategy="no").train()


def test_exclude_is_a_list():
    with pytest.raises(TypeError, match="exclude='norm' must be a list"):
        PerpGradCallback("norm")


# peft asks transformers by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_projected_each_by_itself(tmp_path):
    from peft import LoraConfig, get_peft_model

    llama = get_peft_model(LLAMA.build(), LoraConfig(r=4, target_modules=["q_proj"]))
    before = copy.deepcopy(dict(llama.named_parameters()))
    seen = []

    class Keep(hf.TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            for name, p in model.named_parameters():
                if p.requires_grad and p.grad.norm() > 0 and before[name].norm() > 0:
                    # the weight has moved since, by one small step
                    seen.append((p.grad * p).sum().abs() / (p.grad.norm() * p.norm()))

    trainer(
        tmp_path, PerpGradCallback(), Keep(), llama=llama, save_strategy="no", learning_rate=1e-7
    ).train()
    # matrix B is zero at first, and so is the first gradient of A
    assert len(seen) == 2 * 5
    assert max(seen) < 1e-4
