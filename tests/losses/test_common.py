"""What every loss promises."""

import copy
import json

import pytest
import torch
from safetensors.torch import load, save
from torch.autograd import gradcheck

from hf_softext.catalog import methods
from hf_softext.losses import get_loss, list_losses
from hf_softext.losses.base import parameters
from tests.losses.cases import CASES

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def value_and_gradient(case, loss, logits, labels, **given):
    logits = logits.detach().requires_grad_()
    value = loss(logits, labels, **{**case.extras(logits), **given})
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def test_every_loss_of_the_catalogue_has_a_row():
    # bags are no rows: their loss has tests of its own
    assert {case.name for case in CASES} | {"aggregate"} == {row.name for row in methods("loss")}
    for kind in ("binary", "multiclass", "multilabel", "regression", "token"):
        assert {case.name for case in CASES if case.kind == kind} <= set(list_losses(kind))


@each
def test_an_ignored_row_is_a_row_that_is_not_there(case):
    logits, labels = case.logits(), case.labels()
    poisoned = logits.detach().clone()
    poisoned[5] = float("nan")
    if "head_weight" not in case.extras(logits):
        value, gradient = value_and_gradient(case, case.make(), poisoned, case.ignored(labels, 5))
        assert (gradient[5] == 0).all()
        short = {name: rows[:5] for name, rows in case.extras(logits.detach()).items()}
        leaf = logits.detach()[:5].requires_grad_()
        given = {**short, **{k: v[:5] for k, v in case.extras(_with(logits, leaf)).items()}}
        expected = case.make()(leaf, labels[:5], **given)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient[:5], torch.autograd.grad(expected, leaf)[0])


def _with(logits, leaf):
    """All logits, of which the first rows are the leaf's."""
    return torch.cat([leaf, logits.detach()[len(leaf) :]])


@each
def test_nothing_that_counts_is_zero_with_a_gradient_of_zero(case):
    labels = torch.full_like(case.labels(), -100)
    logits = torch.full_like(case.logits(), float("nan"))
    given = case.extras(case.logits().detach())
    logits.requires_grad_()
    value = case.make()(logits, labels, **given)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


@each
def test_order_and_leading_dimensions_do_not_matter(case):
    logits, labels = case.logits(), case.labels()
    whole = case.make()(logits, labels, **case.extras(logits))
    shaped = {
        name: rows if name == "head_weight" else rows.reshape(2, 3, *rows.shape[1:])
        for name, rows in case.extras(logits).items()
    }
    again = case.make()(logits.reshape(2, 3, -1), labels.reshape(2, 3, *labels.shape[1:]), **shaped)
    torch.testing.assert_close(again, whole)
    if case.name != "ensloss":  # a draw is dealt out by rank, ties and all, but not to the same row
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        mixed = {
            name: rows if name == "head_weight" else rows[order]
            for name, rows in case.extras(logits).items()
        }
        torch.testing.assert_close(case.make()(logits[order], labels[order], **mixed), whole)


@each
def test_parts_of_a_step_add_up(case):
    loss = case.make()
    logits, labels = case.logits(), case.labels()
    if not loss.decomposable:
        with pytest.raises(ValueError, match="no sum over rows"):
            loss(logits, labels, num_items=6, **case.extras(logits))
        return
    whole, gradient = value_and_gradient(case, case.make(), logits, labels)
    leaf = logits.detach().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    extras = case.extras(leaf)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        some = {n: rows if n == "head_weight" else rows[part] for n, rows in extras.items()}
        total = total + loss(leaf[part], labels[part], num_items=loss.count(labels), **some)
    torch.testing.assert_close(total.detach(), whole)
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], gradient)


@each
def test_weights_of_one_change_nothing_and_of_zero_drop_a_row(case):
    loss, logits, labels = case.make(), case.logits().detach(), case.labels()
    extras = case.extras(logits)
    if not loss.decomposable:
        with pytest.raises(ValueError, match="sample_weight"):
            loss(logits, labels, sample_weight=torch.ones(6), **extras)
        return
    plain = case.make()(logits, labels, **extras)
    ones = case.make()(logits, labels, sample_weight=torch.ones(6), **extras)
    torch.testing.assert_close(ones, plain)
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0])
    some = {n: rows if n == "head_weight" else rows[:5] for n, rows in extras.items()}
    torch.testing.assert_close(
        case.make()(logits, labels, sample_weight=weight, **extras),
        case.make()(logits[:5], labels[:5], **some),
    )
    value, gradient = value_and_gradient(
        case, case.make(), logits, labels, sample_weight=torch.zeros(6)
    )
    assert value == 0
    assert (gradient == 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(case, dtype):
    logits = case.logits().detach().to(dtype)
    value, gradient = value_and_gradient(case, case.make(), logits, case.labels())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    large = (logits.sign() * 1e4).to(dtype)
    if case.given.get("tau", 1.0) >= 1.0:  # below, a hopeless row has no finite loss
        value, gradient = value_and_gradient(case, case.make(), large, case.labels())
        assert value.isfinite()
        assert gradient.isfinite().all()


@each
def test_gradient(case):
    loss, labels = case.make(), case.labels()
    if case.moves:
        loss.eval()
    logits = case.logits()
    assert gradcheck(lambda z: loss(z, labels, **case.extras(z)), (logits,))


@each
def test_nan_stays_nan(case):
    logits = case.logits().detach().clone()
    logits[2, 0] = float("nan")
    assert case.make()(logits, case.labels(), **case.extras(logits)).isnan()


@each
def test_config_state_and_copies_come_back(case):
    loss, logits, labels = case.make(), case.logits().detach(), case.labels()
    extras = case.extras(logits)
    loss(logits, labels, **extras)
    config = json.loads(json.dumps(loss.config()))
    again = get_loss(**config)
    assert again.config() == loss.config()
    state = {name: value.contiguous() for name, value in loss.state_dict().items()}
    again.load_state_dict(load(save(state)) if state else {})
    copied = copy.deepcopy(loss)
    expected = loss(logits, labels, **extras)
    assert torch.equal(again(logits, labels, **extras), expected)
    assert torch.equal(copied(logits, labels, **extras), expected)
    assert set(parameters(type(loss))) >= {"ignore_index", "class_weight"} | set(case.given)


@each
def test_evaluation_changes_no_state(case):
    loss, logits, labels = case.make().eval(), case.logits().detach(), case.labels()
    before = copy.deepcopy(loss.state_dict())
    first = loss(logits, labels, **case.extras(logits))
    assert torch.equal(loss(logits, labels, **case.extras(logits)), first)
    assert all(torch.equal(loss.state_dict()[name], value) for name, value in before.items())


# torch's own tracing looks at the gradient of a tensor that has none, and makes a Function
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@each
def test_compiled_it_is_the_same(case):
    torch._dynamo.reset()
    logits, labels = case.logits(), case.labels()
    expected = value_and_gradient(case, case.make(), logits, labels)
    # what is dropped has a size that only the data know, so the graph breaks there
    compiled = torch.compile(case.make(), backend="eager")
    found = value_and_gradient(case, compiled, logits, labels)
    torch.testing.assert_close(found, expected)


@each
def test_wrong_labels_are_an_error(case):
    loss, logits = case.make(), case.logits().detach()
    extras = case.extras(logits)
    if case.kind in ("multiclass", "token", "binary"):
        with pytest.raises(ValueError, match=r"labels from .* do not fit"):
            loss(logits, torch.full((6,), 7), **extras)
    if case.kind == "multilabel":
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            loss(logits, torch.full((6, 5), 2.0), **extras)
    with pytest.raises(ValueError, match="do not fit"):
        loss(logits, torch.zeros(4, dtype=torch.long), **extras)
    for name in sorted(loss.needs):
        with pytest.raises(ValueError, match=name):
            loss(logits, case.labels(), **{k: v for k, v in extras.items() if k != name})


@each
def test_an_empty_batch_is_zero(case):
    logits = case.logits(0)
    value = case.make()(logits, case.labels()[:0], **case.extras(logits))
    assert value == 0
    assert torch.autograd.grad(value, logits)[0].shape == logits.shape


def test_mistakes_that_are_no_loss_in_particular():
    loss, logits, labels = get_loss("ce"), torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(TypeError, match="must be tensors, and are Tensor and NoneType"):
        loss(logits, None)
    with pytest.raises(TypeError, match=r"shape \(4, 0\) are none"):
        loss(logits[:, :0], labels)
    with pytest.raises(ValueError, match=r"sample_weight of shape \(3,\) does not fit"):
        loss(logits, labels, sample_weight=torch.ones(3))
    # what a YAML file may make of a number or a truth value
    for name, given, message in (
        (
            "ldr_kl",
            {"lam": "1e-3"},
            r"'ldr_kl' with \{'lam': '1e-3'\}: a wrong type, lam must be a",
        ),
        ("assistive_kd", {"tough_far": "2"}, "tough_far must be a number and is '2'"),
        ("ce", {"ignore_index": None}, "ignore_index must be a number and is None"),
        ("gce", {"q": True}, "q must be a number and is True"),
        ("dr_irat", {"ema": True}, "ema must be no truth value"),
        ("crammer_singer", {"squared": "false"}, "squared must be true or false and is 'false'"),
        ("dr_irat", {"base": {"name": "gce", "q": "1"}}, "'gce' with .*q must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            get_loss(name, **given)
    for weight in ([1.0, float("inf")], {0: 1.0}, "balanced", ["1", "2"], [], [[1.0]], [-1.0]):
        with pytest.raises(ValueError, match="must be a finite number >= 0 for each class"):
            get_loss("ce", class_weight=weight)


@pytest.mark.parametrize(
    ("labels", "classes", "count"),
    [
        (torch.tensor([0, 1, 2, 0]), 3, 3),
        (torch.tensor([0, 1, 1, 0]), 1, 2),
        (torch.tensor([0.0, 1, 1, 0]), 1, 2),
        (torch.tensor([[0.0], [1], [1], [0]]), 1, 2),
        (torch.eye(4)[:, :3], 3, 3),
    ],
    ids=["classes", "binary", "binary floats", "binary column", "multilabel"],
)
def test_class_weights_are_of_classes_or_of_labels(labels, classes, count):
    logits, weight = torch.randn(4, classes), torch.rand(count)
    loss = get_loss("l2_svm", class_weight=weight.tolist())
    each = torch.stack([get_loss("l2_svm")(logits[i : i + 1], labels[i : i + 1]) for i in range(4)])
    if labels.shape == (4, 3):
        sign = 2 * labels - 1
        expected = ((1 - sign * logits).relu().square() * weight).sum() / (4 * weight.sum())
    else:
        own = weight[labels.reshape(4).long()]
        expected = (each * own).sum() / own.sum()
    torch.testing.assert_close(loss(logits, labels), expected)
    for wrong in ([1.0] * (count - 1), [1.0] * (count + 1)):
        with pytest.raises(ValueError, match=f"has {len(wrong)} numbers, and there are {count}"):
            get_loss("l2_svm", class_weight=wrong)(logits, labels)
