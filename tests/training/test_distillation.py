"""Training with teachers: theirs is looked at, not touched, and the second head leaves no trace."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from hf_softext.losses import get_loss
from hf_softext.training.distillation import HEAD, DistillationTrainer
from hf_softext.training.second_head import NAME
from tests.training.loss_steps import (
    SIZES,
    STILL,
    KeepGradient,
    arguments,
    dataset,
    model,
    step,
)
from tests.training.special_steps import teacher


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def answers(one, rows):
    with torch.no_grad():
        return one.eval()(torch.tensor(rows["input_ids"])).logits


@pytest.mark.parametrize(
    ("loss", "kind", "names"),
    [
        ("kd", "classes", ("teacher",)),
        ("dhkd", "classes", ("teacher",)),
        ("assistive_kd", "values", ("teacher_tough", "teacher_tolerant")),
    ],
)
def test_a_step_is_the_same_however_it_is_cut(loss, kind, names, tmp_path):
    given = {name: teacher(kind, seed) for seed, name in enumerate(names)}
    before = {name: dict(one.state_dict()) for name, one in given.items()}
    steps = [
        step(DistillationTrainer, kind, arguments(tmp_path, size, count), loss=loss, **given)
        for size, count in ((16, 1), (4, 4), (6, 3))
    ]
    for other in steps[1:]:
        assert other[0] == pytest.approx(steps[0][0], rel=1e-5)
        assert relative(other[1], steps[0][1]) < 1e-5
    for name, one in given.items():
        assert not one.training
        assert all(parameter.grad is None for parameter in one.parameters())
        for key, value in one.state_dict().items():
            assert torch.equal(value, before[name][key])


@pytest.mark.parametrize("loss", ["kd", "assistive_kd"])
def test_a_model_and_its_answers_in_a_column_teach_the_same(loss, tmp_path):
    kind = "classes" if loss == "kd" else "values"
    names = ["teacher_logits"] if loss == "kd" else ["teacher_tough", "teacher_tolerant"]
    teachers = {name: teacher(kind, seed) for seed, name in enumerate(names)}
    args = arguments(tmp_path, 4, 4)
    spoken = {name.removesuffix("_logits"): one for name, one in teachers.items()}
    first = step(DistillationTrainer, kind, args, loss=loss, **spoken)
    data = dataset(kind)
    for name, one in teachers.items():
        data = data.add_column(name, answers(one, data).tolist())
    keep = KeepGradient()
    trainer = DistillationTrainer(
        model=model(kind), args=args, train_dataset=data, callbacks=[keep], loss=loss
    )
    trainer.train()
    assert relative(keep.gradient, first[1]) < 1e-5
    with pytest.raises(ValueError, match="leave one of them out"):
        DistillationTrainer(model=model(kind), args=args, train_dataset=data, loss=loss, **spoken)


def test_the_loss_of_both_heads_is_that_of_the_formula(tmp_path):
    given = {"temperature": 2.0, "gamma": 0.7, "alpha": 0.3}
    one, student, data = teacher(), model("classes"), dataset("classes")
    trainer = DistillationTrainer(
        model=student, teacher=one, args=arguments(tmp_path, 16, 1), loss="dhkd", loss_kwargs=given
    )
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    found = trainer.compute_loss(
        student.train(), {"input_ids": ids, "labels": labels}, num_items_in_batch=16
    )
    features = student.bert(ids).pooler_output
    head = student.get_submodule(NAME).layers[0]
    aux = features @ head.weight.T + head.bias
    expected = get_loss("dhkd", **given)(
        student.classifier(features), labels, teacher_logits=answers(one, data), aux_logits=aux
    )
    torch.testing.assert_close(found, expected)
    found.backward()
    assert head.weight.grad.abs().max() > 1e-4
    # the layer that is kept learns from the labels alone
    own = torch.autograd.grad(
        0.7 * torch.nn.functional.cross_entropy(student.classifier(features), labels),
        student.classifier.weight,
    )
    torch.testing.assert_close(student.classifier.weight.grad, own[0])
    trainer.model.eval()
    assert list(student(ids).keys()) == ["logits"]


def trained(folder, head, **given):
    options = {"max_steps": 4, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
    config = model("classes").config
    config.hidden_dropout_prob = 0.3
    torch.manual_seed(0)
    student = hf.BertForSequenceClassification(config)
    return DistillationTrainer(
        model=student,
        teacher=teacher(),
        args=arguments(folder, 4, 2, optim="adamw_torch", **options),
        train_dataset=dataset("classes"),
        eval_dataset=dataset("classes"),
        loss="dhkd",
        aux_head=head,
        **given,
    )


@pytest.mark.parametrize(("head", "given"), [("linear", {"align_gradients": True}), ("mlp", {})])
def test_the_second_head_is_trained_and_resumed_and_gone(head, given, tmp_path):
    whole = trained(tmp_path / "whole", head, **given)
    start = {k: v.clone() for k, v in whole._head.state_dict().items()}
    whole.train()
    resumed = trained(tmp_path / "resumed", head, **given)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for one, other in ((whole.model, resumed.model), (whole._head, resumed._head)):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    for name, value in whole._head.state_dict().items():
        assert not torch.equal(value, start[name]), name
    assert (checkpoint / HEAD).is_file()
    # neither it nor the teacher
    names = hf.BertForSequenceClassification(whole.model.config).state_dict().keys()
    saved = load_file(checkpoint / "model.safetensors")
    assert saved.keys() == names
    # strictly: nothing is missing
    resumed.model.load_state_dict(saved)
    whole.save_model(str(tmp_path / "final"))
    assert load_file(tmp_path / "final" / "model.safetensors").keys() == names
    assert not (tmp_path / "final" / HEAD).exists()
    expected = torch.nn.functional.cross_entropy(
        answers(whole.model, dataset("classes")), torch.tensor(dataset("classes")["labels"])
    )
    assert whole.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    (checkpoint / HEAD).unlink()
    with pytest.raises(ValueError, match=f"has no {HEAD}"):
        trained(tmp_path / "other", head).train(resume_from_checkpoint=str(checkpoint))


def gradients(student, one, ids, labels, loss):
    extras = {"teacher_logits": one.eval()(ids).logits}
    output = student(ids)
    found = loss(output["logits"], labels, aux_logits=output["aux_logits"], **extras)
    parameters = list(student.parameters())
    made = torch.autograd.grad(found, parameters, allow_unused=True)
    pairs = zip(made, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_aligned_gradients(alpha, tmp_path):
    data, one = dataset("classes"), teacher()
    keep = KeepGradient()
    trainer = DistillationTrainer(
        model=model("classes"),
        teacher=one,
        args=arguments(tmp_path, 8, 2),
        train_dataset=data,
        callbacks=[keep],
        loss="dhkd",
        loss_kwargs={"alpha": alpha},
        align_gradients=True,
    )
    batches = list(trainer.get_train_dataloader())
    trainer.train()
    student, expected, conflicts = trainer.model.train(), 0, 0
    for batch in batches:
        labels, teach = (
            gradients(student, one, batch["input_ids"], batch["labels"], loss) / 2
            for loss in (get_loss("dhkd", alpha=0.0), get_loss("dhkd", gamma=0.0, alpha=alpha))
        )
        share = (teach @ labels) / (labels @ labels)
        conflicts += bool(share < 0)
        expected = expected + labels + teach - share.clamp(max=0) * labels
    assert relative(keep.gradient, expected) < 1e-4
    assert alpha < 1 or conflicts


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_second_head_beside_an_adapter(tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    student = get_peft_model(model("classes"), config)
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher(),
        args=arguments(tmp_path, 8, 1, learning_rate=0.1, save_strategy="steps", save_steps=1),
        train_dataset=dataset("classes"),
        loss="dhkd",
    )
    before = trainer._head.layers[0].weight.clone()
    trainer.train()
    assert not torch.equal(trainer._head.layers[0].weight, before)
    saved = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    assert saved
    assert not [name for name in saved if "second_head" in name]


def test_teachers_get_the_columns_that_the_model_does_not_take(tmp_path):
    data = dataset("classes").add_column("token_type_ids", [[0, 0, 0, 1, 1, 1, 1]] * 16)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 40}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    config = hf.DistilBertConfig(**sizes, **still, num_labels=3)
    student, one = hf.DistilBertForSequenceClassification(config), teacher()
    with torch.no_grad():
        for parameter in one.parameters():
            if parameter.dim() > 1:
                parameter.normal_()
    trainer = DistillationTrainer(
        model=student,
        teacher=one,
        args=arguments(tmp_path, 16, 1),
        train_dataset=data,
        eval_dataset=data,
        loss="kd",
    )
    trainer.train()
    columns = {name: torch.tensor(data[name]) for name in ("input_ids", "token_type_ids")}
    said = one(**columns).logits
    logits, labels = answers(student, data), torch.tensor(data["labels"])
    expected, other = (
        get_loss("kd")(logits, labels, teacher_logits=one_said).item()
        for one_said in (said, one(columns["input_ids"]).logits)
    )
    assert abs(expected - other) > 0.01 * expected
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    alone = torch.nn.functional.cross_entropy(logits, labels).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "kd"}, "no column of: the teacher's logits"),
        ({"loss": "ce", "teacher": teacher()}, "'ce' does not need teacher"),
        ({"loss": "kd", "teacher": teacher(num_labels=4)}, "has 4 classes and the model 3"),
        (
            {"loss": "kd", "teacher": teacher(id2label={0: "b", 1: "a", 2: "c"})},
            "class 0 is 'b' for teacher and 'a' for the model",
        ),
        ({"loss": "dhkd", "teacher": teacher(), "aux_head": "deep"}, "aux_head='deep' must be"),
        ({"loss": "kd", "teacher": teacher(), "align_gradients": True}, "is for loss='dhkd'"),
        (
            {"loss": "dhkd", "teacher": teacher(), "optimizers": (torch.optim.Adam, None)},
            "is made by DistillationTrainer",
        ),
    ],
)
def test_misuse_is_an_error_at_construction(given, message, tmp_path):
    config = model("classes").config
    config.id2label = {0: "a", 1: "b", 2: "c"}
    student = hf.BertForSequenceClassification(config)
    if "optimizers" in given:
        given = {**given, "optimizers": (torch.optim.Adam(student.parameters()), None)}
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(
            model=student,
            args=arguments(tmp_path, 4, 1),
            train_dataset=dataset("classes"),
            **given,
        )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_more_misuse(tmp_path):
    args, student = arguments(tmp_path, 4, 1), model("classes")
    with pytest.raises(TypeError, match="teacher is a str, not a model: load it first"):
        DistillationTrainer(model=student, args=args, teacher="bert", loss="kd")
    with pytest.raises(TypeError, match=r"teacher is a list.*teacher_tough and teacher_tolerant"):
        DistillationTrainer(model=student, args=args, teacher=[student], loss="assistive_kd")
    with pytest.raises(ValueError, match="are the same object"):
        DistillationTrainer(model=student, args=args, teacher=student, loss="kd")
    adapted = get_peft_model(student, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(ValueError, match="teacher and model share weights"):
        DistillationTrainer(model=adapted, args=args, teacher=student, loss="kd")
    student = model("classes")
    with pytest.raises(ValueError, match="teacher is on the meta device"):
        DistillationTrainer(model=student, args=args, teacher=teacher().to("meta"), loss="kd")
    one_row = arguments(tmp_path, 1, 1)
    trainer = DistillationTrainer(
        model=student,
        args=one_row,
        teacher=teacher(),
        train_dataset=dataset("classes"),
        loss="dhkd",
        aux_head="mlp",
    )
    with pytest.raises(ValueError, match="this one has a single row"):
        trainer.train()
    # as many outputs as classes, but not the output layer
    odd = hf.BertForSequenceClassification(hf.BertConfig(**SIZES, **STILL, num_labels=16))
    odd.classifier = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.Linear(4, 16))
    with pytest.raises(ValueError, match=r"16 outputs and \[4, 16\] inputs"):
        DistillationTrainer(model=odd, args=args, teacher=teacher(num_labels=16), loss="dhkd")
