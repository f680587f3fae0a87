"""The Trainer with a loss by name: the same numbers however a step is cut, and after a resume."""

import warnings

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch.utils.data import IterableDataset

from hf_softext.losses import get_loss
from hf_softext.training.compute_loss_func import make_compute_loss_func
from hf_softext.training.loss_state import STATE
from hf_softext.training.softext_trainer import SoftextTrainer, SoftextTrainerMixin
from tests.processes import run_two
from tests.training.loss_steps import KeepGradient, arguments, dataset, model, step

# the kinds of model on which each loss is tried
DECOMPOSABLE = [
    ("ce", "classes"),
    ("comp_sum", "classes"),
    ("gce", "classes"),
    ("mae", "classes"),
    ("stablemax_ce", "classes"),
    ("spherical_z", "classes"),
    ("ldr_kl", "classes"),
    ("aldr_kl", "classes"),
    ("crammer_singer", "classes"),
    ("normalized_softmax", "classes"),
    ("l2_svm", "classes"),
    ("l1_svm", "binary"),
    ("l2_svm", "multilabel"),
    ("decoupled_softmax", "multilabel"),
    ("soft_topk", "multilabel"),
    ("ce", "causal"),
    ("gce", "causal"),
    ("stablemax_ce", "causal"),
    ("spherical_z", "causal"),
    ("ldr_kl", "causal"),
    ("l2_svm", "causal"),
    ("crammer_singer", "causal"),
]
ARGUMENTS = {"soft_topk": {"k": 2}}


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("loss", "kind"), DECOMPOSABLE)
def test_a_step_is_the_same_however_it_is_cut(loss, kind, tmp_path):
    given = {"loss": loss, "loss_kwargs": ARGUMENTS.get(loss, {})}
    whole = step(SoftextTrainer, kind, arguments(tmp_path, 16, 1), **given)
    cut = step(SoftextTrainer, kind, arguments(tmp_path, 4, 4), **given)
    uneven = step(SoftextTrainer, kind, arguments(tmp_path, 6, 3), **given)
    assert whole[1].abs().max() > 1e-4
    for other in (cut, uneven):
        assert other[0] == pytest.approx(whole[0], rel=1e-5)
        assert relative(other[1], whole[1]) < 1e-5


@pytest.mark.parametrize("loss", ["ce", "spherical_z", "l2_svm"])
def test_the_fused_loss_is_the_loss(loss, tmp_path):
    args = arguments(tmp_path, 4, 4)
    plain = step(SoftextTrainer, "causal", args, loss=loss, fused="off")
    fused = step(SoftextTrainer, "causal", args, loss=loss, fused="on")
    assert fused[0] == pytest.approx(plain[0], rel=1e-5)
    assert relative(fused[1], plain[1]) < 1e-5


@pytest.mark.parametrize("fused", ["off", "on"])
def test_what_tokens_count_goes_with_their_labels(fused, tmp_path):
    data = dataset("causal")
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    weight = torch.rand(labels.shape) * (labels != -100)
    logits = model("causal")(ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
    )
    expected = losses @ weight[:, 1:].flatten() / weight[:, 1:].sum()
    for one, right in ((weight, expected.item()), (torch.zeros_like(weight), 0.0)):
        keep = KeepGradient()
        trainer = SoftextTrainer(
            model=model("causal"),
            args=arguments(tmp_path, 4, 4),
            train_dataset=data.add_column("sample_weight", one.tolist()),
            callbacks=[keep],
            fused=fused,
        )
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(right, rel=1e-5)
    # nothing counted, and nothing is NaN
    assert (keep.gradient == 0).all()


@pytest.mark.parametrize(
    ("loss", "kind", "fused"),
    [
        ("ce", "causal", "on"),
        ("normalized_softmax", "classes", "off"),
        ("aldr_kl", "classes", "off"),
    ],
)
def test_a_model_that_is_made_anew_is_trained_as_one_that_was_given(loss, kind, fused, tmp_path):
    keep, given = KeepGradient(), {"loss": loss, "fused": fused}
    trainer = SoftextTrainer(
        model_init=lambda: model(kind),
        args=arguments(tmp_path, 16, 1),
        train_dataset=dataset(kind),
        callbacks=[keep],
        **given,
    )
    expected = step(SoftextTrainer, kind, arguments(tmp_path, 16, 1), **given)
    for _ in range(2):
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected[0], rel=1e-5)
        assert relative(keep.gradient, expected[1]) < 1e-5


def test_class_weights_divide_by_the_weights(tmp_path):
    weights = [1.0, 5.0, 0.5]
    given = {"loss": "ce", "loss_kwargs": {"class_weight": weights}}
    cut = step(SoftextTrainer, "classes", arguments(tmp_path, 4, 4), **given)
    data = dataset("classes")
    logits = model("classes")(torch.tensor(data["input_ids"])).logits
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(data["labels"]), weight=torch.tensor(weights)
    )
    assert cut[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_stock_trainer_is_wrong_where_ours_is_right(tmp_path):
    stock = [
        step(hf.Trainer, "classes", arguments(tmp_path, size, count))
        for size, count in ((16, 1), (4, 4))
    ]
    assert stock[1][0] == pytest.approx(4 * stock[0][0], rel=1e-5)
    ours = step(SoftextTrainer, "classes", arguments(tmp_path, 4, 4), loss="ce")
    assert ours[0] == pytest.approx(stock[0][0], rel=1e-5)
    assert relative(ours[1], stock[0][1]) < 1e-5


@pytest.mark.parametrize(("loss", "kind"), [("gce", "causal"), ("soft_topk", "multilabel")])
def test_a_loss_for_the_stock_trainer(loss, kind, tmp_path):
    function = make_compute_loss_func(loss, model(kind), **ARGUMENTS.get(loss, {}))
    stock = step(hf.Trainer, kind, arguments(tmp_path, 4, 4), compute_loss_func=function)
    given = {"loss": loss, "loss_kwargs": ARGUMENTS.get(loss, {})}
    ours = step(SoftextTrainer, kind, arguments(tmp_path, 16, 1), **given)
    assert stock[0] == pytest.approx(ours[0], rel=1e-5)
    assert relative(stock[1], ours[1]) < 1e-5


def test_the_fused_loss_of_a_sharded_model():
    run_two("tests.training.sharded_loss")


@pytest.mark.parametrize(("loss", "kind"), [("aldr_kl", "classes"), ("ce", "causal")])
def test_two_processes_take_the_step_of_one(loss, kind, tmp_path):
    one = step(SoftextTrainer, kind, arguments(tmp_path / "one", 16, 1), loss=loss)
    run_two("tests.training.loss_steps", str(tmp_path), loss, kind)
    two = load_file(tmp_path / "gradient.safetensors")
    assert relative(two["gradient"], one[1]) < 1e-5
    assert two["loss"].item() == pytest.approx(one[0], rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "kind", "given"),
    [
        ("aldr_kl", "classes", {}),
        ("ensloss", "binary", {"boxcox_lambda": 0.5, "resample_every": 1}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(loss, kind, given, tmp_path):
    options = {"max_steps": 6, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 3}

    def trainer(folder):
        args = arguments(tmp_path / folder, 4, 1, **options)
        return SoftextTrainer(
            model=model(kind), args=args, train_dataset=dataset(kind), loss=loss, loss_kwargs=given
        )

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert (tmp_path / "whole" / "checkpoint-3" / STATE).is_file()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for name, value in whole.loss.state_dict().items():
        assert torch.equal(resumed.loss.state_dict()[name], value), name
    other = SoftextTrainer(
        model=model(kind),
        args=arguments(tmp_path / "other", 4, 1, **options),
        train_dataset=dataset(kind),
        loss={"classes": "ce", "binary": "anyloss"}[kind],
    )
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    with pytest.raises(ValueError, match=f"was trained with the loss .*{loss}"):
        other.train(resume_from_checkpoint=str(checkpoint))
    if loss == "aldr_kl":
        fewer = trainer("fewer")
        fewer.loss.fit(torch.zeros(12))
        with pytest.raises(ValueError, match=r"'lambdas' of shape \(16,\).* training set \(12,\)"):
            fewer.train(resume_from_checkpoint=str(checkpoint))
    whole_state = (checkpoint / STATE).read_bytes()
    (checkpoint / STATE).write_bytes(whole_state[:-1])
    with pytest.raises(ValueError, match="checkpoint-3: the state of the loss is damaged"):
        trainer("damaged").train(resume_from_checkpoint=str(checkpoint))


def test_evaluation_has_logits_where_they_are_asked_for(tmp_path):
    def evaluate(**given):
        trainer = SoftextTrainer(
            model=model("causal"),
            args=arguments(tmp_path, 4, 1, per_device_eval_batch_size=16),
            eval_dataset=dataset("causal"),
            loss="ce",
            fused="on",
            **given,
        )
        return trainer.evaluate()

    shapes = []
    alone = evaluate()
    seen = evaluate(compute_metrics=lambda p: shapes.append(p.predictions.shape) or {})
    assert shapes == [(16, 7, 40)]
    assert alone["eval_loss"] == pytest.approx(seen["eval_loss"], rel=1e-5)


def test_models_that_scale_or_cap_their_logits(tmp_path):
    sizes = {"head_dim": 8, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": None}
    shared = model("causal").config.to_dict()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    common = {name: shared[name] for name in (*names, "vocab_size", "pad_token_id")}
    made = [
        hf.Gemma2ForCausalLM(hf.Gemma2Config(**common, **sizes, final_logit_softcapping=0.5)),
        hf.CohereForCausalLM(
            hf.CohereConfig(**common, logit_scale=0.25, bos_token_id=None, eos_token_id=None)
        ),
    ]
    for one in made:
        losses = [
            SoftextTrainer(
                model=one,
                args=arguments(tmp_path, 4, 1, per_device_eval_batch_size=16),
                eval_dataset=dataset("causal"),
                fused=how,
            ).evaluate()["eval_loss"]
            for how in ("off", "on")
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_logits_that_are_more_than_the_output_layer_are_not_fused(tmp_path):
    class Shifted(hf.LlamaForCausalLM):
        def forward(self, input_ids=None, labels=None, **kwargs):
            output = super().forward(input_ids, **kwargs)
            output.logits = output.logits * 3
            return output

    def trainer(how):
        one = Shifted(model("causal").config)
        given = {"args": arguments(tmp_path, 4, 1), "eval_dataset": dataset("causal")}
        return SoftextTrainer(model=one, fused=how, **given)

    with pytest.raises(ValueError, match="fused='on': Shifted does more to its logits"):
        trainer("on").evaluate()
    with pytest.warns(UserWarning, match="computed from the logits: Shifted does more"):
        trainer("auto").evaluate()


def test_predictions_need_neither_labels_nor_a_model_that_knows_the_columns(tmp_path):
    class Strict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(40, 3)

        def forward(self, input_ids, labels=None):
            return {"logits": self.table(input_ids).mean(1)}

    strict = Strict()
    trainer = SoftextTrainer(model=strict, args=arguments(tmp_path, 4, 1), loss="ce")
    data = dataset("classes").remove_columns("labels").add_column("sample_weight", [1.0] * 16)
    expected = strict(torch.tensor(data["input_ids"]))["logits"].detach().numpy()
    assert (trainer.predict(data).predictions == expected).all()


TEXTS = [{"input_ids": [1, 2], "labels": "cat"}]


class Stream(IterableDataset):
    def __iter__(self):
        yield from dataset("classes")


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("classes", {"loss": "soft_topk"}, "'soft_topk' is for multilabel problems"),
        # what needs a teacher, an attack or bags would fail here next
        ("classes", {"loss": "soft_topk"}, r"Losses that fit: aldr_kl, (?!.*(kd|adv_|aggre|irat))"),
        ("classes", {"train_dataset": TEXTS}, "column 'labels' has texts such as 'cat'.*number th"),
        ("causal", {"loss": "aldr_kl"}, "'aldr_kl' is for multiclass problems"),
        ("classes", {"loss": "dhkd"}, "needs 'aux_logits', which SoftextTrainer does not compute"),
        ("classes", {"loss": "kd"}, "no column of: the teacher's logits"),
        ("classes", {"loss": "ldr_lk"}, "Did you mean 'ldr_kl'"),
        ("classes", {"loss": "ldr_kl", "loss_kwargs": {"lamb": 1}}, "Did you mean 'lam'"),
        ("classes", {"loss": "ce", "fused": "on"}, "is no causal language model"),
        ("classes", {"loss": "ce", "fused": "yes"}, "must be 'auto', 'on' or 'off'"),
        ("classes", {"compute_loss_func": print}, "exclude each other"),
        ("classes", {"loss": "aldr_kl", "train_dataset": Stream()}, "is a stream"),
    ],
)
def test_misuse_is_an_error_at_construction(kind, given, message, tmp_path):
    given = {"train_dataset": dataset(kind), **given}
    with pytest.raises(ValueError, match=message):
        SoftextTrainer(model=model(kind), args=arguments(tmp_path, 4, 1), **given)


def test_more_misuse(tmp_path):
    data = dataset("classes")
    numbered = data.add_column("sample_index", [100 + i for i in range(len(data))])
    args = arguments(tmp_path, 4, 1)
    twice = data.add_column("sample_index", [i // 2 for i in range(len(data))])
    for wrong, message in ((numbered, "goes up to 115"), (twice, "has 8 numbers for 16 samples")):
        given = {"model": model("classes"), "args": args, "train_dataset": wrong}
        with pytest.raises(ValueError, match=f"'sample_index' .*{message}"):
            SoftextTrainer(**given, loss="aldr_kl")
    with pytest.raises(ValueError, match="compute_loss_func and loss exclude each other"):
        SoftextTrainer(model("classes"), args, None, data, None, None, None, print)
    smoothed = arguments(tmp_path, 4, 1, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="label_smoothing_factor has no effect"):
        SoftextTrainer(model=model("classes"), args=smoothed, train_dataset=data)
    refused = [("aldr_kl", {}), ("ensloss", {}), ("ce", {"class_weight": [1, 1, 1]})]
    for loss, given in (*refused, ("ce", {"ignore_index": 0})):
        with pytest.raises(ValueError, match="use SoftextTrainer"):
            make_compute_loss_func(loss, model("classes"), **given)
    for loss, name in (("dhkd", "Distill"), ("dr_irat", "Adversarial"), ("aggregate", "Aggregate")):
        with pytest.raises(ValueError, match=f"use {name}.*Trainer"):
            make_compute_loss_func(loss, model("classes"))
    unlabelled = data.rename_column("labels", "target")
    trainer = SoftextTrainer(model=model("classes"), args=args, train_dataset=unlabelled)
    with pytest.raises(ValueError, match="no 'labels'"), warnings.catch_warnings():
        trainer.train()


def test_it_composes_with_seq2seq(tmp_path):
    class Ours(SoftextTrainerMixin, hf.Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            vocab_size=40,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )
    fields = arguments(tmp_path, 4, 1, per_device_eval_batch_size=16).to_dict()
    keep = ("output_dir", "use_cpu", "report_to", "disable_tqdm", "per_device_eval_batch_size")
    args = hf.Seq2SeqTrainingArguments(**{name: fields[name] for name in keep})
    trainer = Ours(model=t5, args=args, eval_dataset=dataset("causal"), loss="ce")
    data = dataset("causal")
    labels = torch.tensor(data["labels"])
    own = t5.eval()(input_ids=torch.tensor(data["input_ids"]), labels=labels).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own.item(), rel=1e-5)


def test_a_loss_object_is_taken_as_it_is(tmp_path):
    loss = get_loss("ldr_kl", lam=3.0)
    trainer = SoftextTrainer(model=model("classes"), args=arguments(tmp_path, 4, 1), loss=loss)
    assert trainer.loss is loss
