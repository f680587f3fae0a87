"""Hinges against scikit-learn's machine, torch's hinges and the authors' code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.svm import LinearSVC

from hf_softext.losses.svm import CrammerSingerLoss, L1SvmLoss, L2SvmLoss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "crammer_singer_loss.safetensors")
both = pytest.mark.parametrize("kind", [L1SvmLoss, L2SvmLoss])


@pytest.mark.parametrize(
    ("kind", "name", "tolerance"),
    [(L2SvmLoss, "squared_hinge", 1e-6), (L1SvmLoss, "hinge", 1e-4)],
)
def test_scikit_learns_machine_is_its_minimum(kind, name, tolerance):
    inputs, labels = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 3, (40,))
    cost = 0.7
    machine = LinearSVC(C=cost, loss=name, fit_intercept=False, tol=1e-10, max_iter=1_000_000)
    machine.fit(inputs.numpy(), labels.numpy())
    head = torch.from_numpy(machine.coef_)
    loss = kind(class_reduction="sum", penalty=1 / (cost * len(inputs)))

    def at(weight):
        return loss(inputs @ weight.T, labels, head_weight=weight)

    best = at(head)
    for _ in range(50):
        direction = torch.randn_like(head)
        direction = direction / direction.norm()
        # strongly convex: further away by t, higher by penalty t^2 / 2 at least
        assert at(head + 0.01 * direction) >= best + 0.5 * loss.penalty * 1e-4 - 0.01 * tolerance


@both
def test_equals_torch(kind):
    logits = torch.randn(7, 5, dtype=torch.float64)
    multi_hot = (torch.rand(7, 5) < 0.4).double()
    torch_margin = torch.nn.functional.hinge_embedding_loss
    # torch's is max(0, margin - x) where the target is -1
    signed = (2 * multi_hot - 1) * logits
    element = torch_margin(signed, -torch.ones_like(signed), margin=1.0, reduction="none")
    element = element if kind is L1SvmLoss else element.square()
    torch.testing.assert_close(kind()(logits, multi_hot), element.mean())
    classes = torch.randint(0, 5, (7,))
    one_hot = torch.nn.functional.one_hot(classes, 5).double()
    torch.testing.assert_close(kind()(logits, classes), kind()(logits, one_hot))
    torch.testing.assert_close(
        kind(class_reduction="sum")(logits, classes), 5 * kind()(logits, classes)
    )


@both
def test_zero_scores_cost_one_and_satisfied_margins_nothing(kind):
    labels = torch.tensor([0, 2])
    assert kind()(torch.zeros(2, 3), labels) == 1.0
    logits = (4 * torch.nn.functional.one_hot(labels, 3) - 2.0).requires_grad_()
    value = kind()(logits, labels)
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@both
def test_one_logit_is_a_binary_problem(kind):
    logits, labels = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, -100])
    expected = kind()(logits[:5], labels[:5, None].float())
    torch.testing.assert_close(kind()(logits, labels), expected)
    torch.testing.assert_close(kind()(logits, labels[:, None]), expected)


@both
def test_the_penalty_is_one_however_a_step_is_cut(kind):
    logits, labels, head = torch.randn(6, 4), torch.tensor([0, 1, -100, 2, 3, 0]), torch.ones(4, 3)
    loss, plain = kind(penalty=0.5), kind()
    whole = loss(logits, labels, head_weight=head)
    # 0.5 * 0.5 * 12
    torch.testing.assert_close(whole, plain(logits, labels) + 3.0)
    parts = [
        loss(logits[cut], labels[cut], num_items=5, head_weight=head)
        for cut in (slice(0, 1), slice(1, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)
    multi_hot = torch.tensor([[1.0, -100, 0, 1], [0, 1, 1, 0]])
    torch.testing.assert_close(
        loss(logits[:2], multi_hot, head_weight=head), plain(logits[:2], multi_hot) + 3.0
    )


def test_the_penalty_needs_the_weight_in_training_alone():
    loss, logits, labels = L2SvmLoss(penalty=0.1), torch.randn(2, 3), torch.tensor([0, 1])
    assert L2SvmLoss.needs == L2SvmLoss().needs == frozenset()
    with pytest.raises(ValueError, match="needs head_weight"):
        loss(logits, labels)
    assert loss.eval()(logits, labels) == L2SvmLoss()(logits, labels)


def test_crammer_singer_equals_the_authors_code():
    logits = GOLDEN["logits"].clone().requires_grad_()
    value = CrammerSingerLoss()(logits, GOLDEN["labels"])
    value.backward()
    torch.testing.assert_close(value, GOLDEN["loss"])
    torch.testing.assert_close(logits.grad, GOLDEN["grad"])


@pytest.mark.parametrize("squared", [False, True])
def test_crammer_singer_of_two_classes_is_a_hinge_on_the_difference(squared):
    logits, labels = 2 * torch.randn(9, 2), torch.randint(0, 2, (9,))
    kind = L2SvmLoss if squared else L1SvmLoss
    difference = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(
        CrammerSingerLoss(squared)(logits, labels), kind()(difference, labels)
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"class_reduction": "max"}, "class_reduction='max'"), ({"penalty": -1.0}, "penalty=-1.0")],
)
def test_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        L1SvmLoss(**arguments)
