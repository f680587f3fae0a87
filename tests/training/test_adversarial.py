"""Training under attack: what is perturbed, by how much, and that nothing else notices."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from datasets import Dataset

from hf_softext.functional.projected_ascent import projected_ascent
from hf_softext.losses import get_loss
from hf_softext.training.adversarial import AdversarialTrainer, AdversarialTrainingArguments
from hf_softext.training.attack import InputAttack
from hf_softext.training.softext_trainer import SoftextTrainer
from tests.training.loss_steps import SIZES, dataset, model, step
from tests.training.loss_steps import arguments as plain
from tests.training.special_steps import adversarial_arguments as arguments


def image_model():
    torch.manual_seed(0)
    sizes = {name: SIZES[name] for name in SIZES if name not in ("vocab_size", "pad_token_id")}
    config = hf.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=3, num_labels=3)
    found = hf.ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return found


def ascent(objective, start, **given):
    plain = {"size": 0.5, "steps": 6, "step_size": 0.3, "norm": "l2", "dims": (-1,)}
    return projected_ascent(objective, start, **{**plain, **given})


def test_the_ascent_finds_the_ends_of_the_ball():
    weight = torch.randn(3, 4)
    linear = lambda delta: (weight * delta).sum()  # noqa: E731
    expected = 0.5 * weight / weight.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ascent(linear, torch.zeros(3, 4), steps=2), expected)
    sign = ascent(linear, torch.zeros(3, 4), norm="linf")
    torch.testing.assert_close(sign, 0.5 * weight.sign())
    whole = ascent(linear, torch.zeros(3, 4), dims=(0, 1))
    torch.testing.assert_close(whole, 0.5 * weight / weight.norm())
    # each vector by itself, and a vector without a gradient rests
    torch.testing.assert_close(
        ascent(lambda delta: (weight[:2] * delta[:2]).sum(), torch.zeros(3, 4))[2], torch.zeros(4)
    )
    with pytest.raises(ValueError, match="norm='l1' must be one of l2, linf"):
        ascent(linear, torch.zeros(3, 4), norm="l1")


def batch(padded=2):
    ids = torch.randint(1, 40, (4, 7))
    mask = torch.ones_like(ids)
    mask[0, -padded:] = 0
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_tokens_are_moved_within_their_balls_and_padding_is_not(norm):
    inputs, labels = batch()
    bert, loss = model("classes").train(), get_loss("adv_comp_sum")
    bert.bert.pooler.eval()
    attack = InputAttack(bert, steps=4, size=0.05, norm=norm)
    rows = [f"0 {i}" for i in range(4)]

    def objective(logits, perturbed):
        return loss.attack_objective(logits, labels, perturbed)

    delta = attack.find(bert, inputs, objective, rows)
    length = delta.norm(dim=-1) if norm == "l2" else delta.abs().amax(-1)
    torch.testing.assert_close(length[1:], torch.full_like(length[1:], 0.05))
    assert (delta[0, -2:] == 0).all()
    # as it was
    assert bert.training
    assert bert.bert.encoder.training
    assert not bert.bert.pooler.training
    assert all(parameter.grad is None for parameter in bert.parameters())
    assert not bert.bert.embeddings.word_embeddings._forward_hooks
    # it does more harm than where it started
    bert.eval()
    logits = bert(**inputs).logits
    start = attack._start(delta, rows, (-1,)) * inputs["attention_mask"][..., None]
    harm = [objective(logits, attack.forward(bert, inputs, d).logits) for d in (start, delta)]
    assert harm[1] > 1.1 * harm[0] > 0
    # and a row is attacked the same whatever rows there are besides
    alone = attack.find(
        bert,
        {name: value[2:3] for name, value in inputs.items()},
        lambda logits, perturbed: loss.attack_objective(logits, labels[2:3], perturbed),
        rows[2:3],
    )
    torch.testing.assert_close(alone[0], delta[2], rtol=1e-4, atol=1e-5)


def test_pixels_are_moved_as_a_whole(tmp_path):
    vit = image_model().eval()
    inputs, labels = {"pixel_values": torch.randn(2, 3, 8, 8)}, torch.tensor([0, 2])
    # the seed of TrainingArguments
    attack = InputAttack(vit, steps=3, size=1.5, seed=42)
    loss = get_loss("dr_irat")
    delta = attack.find(
        vit, inputs, lambda z, p: loss.attack_objective(z, labels, p), ["0 0", "0 1"]
    )
    torch.testing.assert_close(delta.flatten(1).norm(dim=-1), torch.full((2,), 1.5))
    expected = vit(pixel_values=inputs["pixel_values"] + delta).logits
    torch.testing.assert_close(attack.forward(vit, inputs, delta).logits, expected)
    data = Dataset.from_dict({"pixel_values": inputs["pixel_values"].tolist(), "labels": [0, 2]})
    given = {"loss": "dr_irat", "attack_size": 1.5, "train_sampling_strategy": "sequential"}
    args = arguments(tmp_path, 2, 1, **given)
    trainer = AdversarialTrainer(model=vit, args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    losses = F.cross_entropy(expected, labels, reduction="none")
    attacked = losses.exp().mean().log().item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(attacked, rel=1e-4)
    assert attacked > 1.1 * F.cross_entropy(vit.eval()(**inputs).logits, labels).item()


def test_a_model_that_embeds_otherwise_is_refused():
    torch.manual_seed(0)
    t5 = hf.T5ForSequenceClassification(
        hf.T5Config(
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            vocab_size=40,
            decoder_start_token_id=0,
            eos_token_id=1,
        )
    )
    inputs = {"input_ids": torch.tensor([[5, 6, 1]])}
    with pytest.raises(ValueError, match="times: its input cannot be attacked"):
        InputAttack(t5, steps=1, size=0.1).find(t5, inputs, lambda z, p: p.sum(), ["0"])


def test_a_step_is_the_same_however_it_is_cut(tmp_path):
    given = {"loss": "adv_comp_sum", "loss_kwargs": {"nu": 2.0}}
    sizes = {"attack_size": 0.3, "attack_steps": 2}
    whole = step(AdversarialTrainer, "classes", arguments(tmp_path, 16, 1, **sizes), **given)
    for batch_size, count in ((4, 4), (6, 3)):
        args = arguments(tmp_path, batch_size, count, **sizes)
        cut = step(AdversarialTrainer, "classes", args, **given)
        assert cut[0] == pytest.approx(whole[0], rel=1e-4)
        torch.testing.assert_close(cut[1], whole[1], rtol=1e-3, atol=1e-5)
    clean = step(SoftextTrainer, "classes", plain(tmp_path, 16, 1), loss="comp_sum")
    assert whole[0] > clean[0] + 0.01
    # a model that is made anew is the one that is attacked
    args = arguments(tmp_path, 16, 1, **sizes, train_sampling_strategy="sequential")
    given = {"args": args, "train_dataset": dataset("classes"), **given}
    losses = []
    for trainer in (
        AdversarialTrainer(model=model("classes"), **given),
        AdversarialTrainer(model_init=lambda: model("classes"), **given),
    ):
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == losses[1]


def noisy(kind="classes"):
    config = model(kind).config
    config.hidden_dropout_prob = 0.3
    torch.manual_seed(0)
    return hf.BertForSequenceClassification(config)


def test_both_forward_passes_drop_the_same_units(tmp_path):
    # nowhere to go: what is left of the second term would be dropout
    args = arguments(tmp_path, 16, 1, attack_size=1e-7)
    trainer = AdversarialTrainer(model=noisy(), args=args, train_dataset=dataset("classes"))
    data = dataset("classes")
    inputs = {name: torch.tensor(data[name]) for name in ("input_ids", "labels")}
    trainer.model.train()
    seen = []
    hook = trainer.model.register_forward_hook(lambda m, i, out: seen.append(out.logits))
    trainer.compute_loss(trainer.model, inputs, num_items_in_batch=16)
    hook.remove()
    # two in training mode around those of the attack
    torch.testing.assert_close(seen[-1], seen[0], rtol=0, atol=1e-5)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs, num_items_in_batch=16)
    attacked = torch.rand(1)
    torch.manual_seed(5)
    trainer.model(inputs["input_ids"])
    assert torch.equal(torch.rand(1), attacked)
    assert not torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize(
    ("loss", "given"), [("adv_comp_sum", {}), ("dr_irat", {"r": 0.5, "ema": 0.3})]
)
def test_a_resumed_run_is_the_uninterrupted_one(loss, given, tmp_path):
    options = {"max_steps": 4, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}

    def trainer(folder):
        args = arguments(tmp_path / folder, 4, 2, **options)
        data = dataset("classes")
        return AdversarialTrainer(
            model=noisy(), args=args, train_dataset=data, loss=loss, loss_kwargs=given
        )

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_training_under_attack_withstands_it(tmp_path):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    # a token that gives the class away, among others
    ids = torch.randint(10, 40, (48, 6), generator=draw)
    ids[:, 0] = labels + 1
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    scores = {}
    for loss, given in (("dr_irat", {"r": 10.0}), ("adv_comp_sum", {"nu": 0.0})):
        bert = model("classes")
        # embeddings of a length that is known and stays
        bert.get_input_embeddings().weight.requires_grad_(False).normal_(std=0.25)
        more = {"max_steps": 60, "learning_rate": 0.01, "optim": "adamw_torch", "logging_steps": 60}
        trainer = AdversarialTrainer(
            model=bert,
            args=arguments(tmp_path, 16, 1, **more, attack_size=0.7),
            train_dataset=data,
            eval_dataset=data,
            loss=loss,
            loss_kwargs=given,
        )
        trainer.train()
        scores[loss] = trainer.robust_accuracy()
        clean = trainer.predict(data).predictions.argmax(-1)
        assert (clean == labels.numpy()).mean() > 0.9
    # nu=0 learns from the inputs as they are
    assert scores["dr_irat"] > scores["adv_comp_sum"] + 0.3


def test_evaluation_attacks_nothing(tmp_path):
    args = arguments(tmp_path, 4, 1, per_device_eval_batch_size=16)
    data = dataset("classes")
    trainer = AdversarialTrainer(model=model("classes"), args=args, eval_dataset=data)
    other = SoftextTrainer(
        model=model("classes"),
        args=plain(tmp_path, 4, 1, per_device_eval_batch_size=16),
        eval_dataset=data,
        loss="comp_sum",
    )
    assert trainer.evaluate()["eval_loss"] == other.evaluate()["eval_loss"]


def test_misuse_is_an_error_at_construction(tmp_path):
    def make(args, **given):
        data = dataset("classes")
        return AdversarialTrainer(model=model("classes"), args=args, train_dataset=data, **given)

    with pytest.raises(ValueError, match="'ce' takes no perturbed inputs"):
        make(arguments(tmp_path, 4, 1), loss="ce")
    with pytest.raises(ValueError, match="needs AdversarialTrainingArguments"):
        make(plain(tmp_path, 4, 1), loss="dr_irat")
    size = ("attack_size", float("inf"))
    for name, value in (("attack_steps", 0), ("attack_size", -1.0), size, ("attack_norm", "l1")):
        with pytest.raises(ValueError, match=f"{name}="):
            make(arguments(tmp_path, 4, 1, **{name: value}))
    parse = hf.HfArgumentParser(AdversarialTrainingArguments)
    (parsed,) = parse.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--attack_norm", "linf"]
    )
    assert (parsed.loss, parsed.attack_norm) == ("adv_comp_sum", "linf")
