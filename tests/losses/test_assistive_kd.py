"""Two teachers: the authors' values, each region, and the side of the prediction."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.losses.assistive_kd import AssistiveKdLoss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "assistive_kd.safetensors")


def golden(**arguments):
    prediction = GOLDEN["pred"].clone().requires_grad_()
    teachers = {"teacher_tough": GOLDEN["tough"], "teacher_tolerant": GOLDEN["tolerant"]}
    return prediction, AssistiveKdLoss(**arguments)(prediction, GOLDEN["gt"], **teachers)


def test_equals_the_authors_code():
    prediction, value = golden()
    value.backward()
    # theirs has float32 constants
    torch.testing.assert_close(value, GOLDEN["loss"], rtol=0, atol=1e-7)
    torch.testing.assert_close(prediction.grad, GOLDEN["grad"], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("term", "name"), [("main", "main"), ("tough", "assist_tough"), ("tolerant", "assist_tol")]
)
def test_each_term_equals_the_authors_code(term, name):
    off = {"main": 0.0, "tough": 0.0, "tolerant": 0.0}
    del off[term]
    _, value = golden(**off)
    torch.testing.assert_close(value, GOLDEN[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (0.1, 2 * 0.3 + 0 + 0),
        (0.5, 2 * 1.5 - 0.45 * 0.5 - 0.4 * 1.5),
        (1.5, 2 * 4.5 + 1.9 * 0.5 - 0.4 * 0.5),
        (3.0, 2 * (9 + 6 - 4) + 1.9 * 2 + 1.8 * 1),
    ],
)
def test_the_regions(error, expected, side, sign):
    # errors of 1 and 2, on whatever side of the value
    y = torch.tensor([[0.7]])
    teachers = {"teacher_tough": y + sign, "teacher_tolerant": y - 2 * sign}
    value = AssistiveKdLoss()(y + side * error, y, **teachers)
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_nothing_is_lost_where_all_are_right():
    y = torch.randn(4, 3)
    p = y.clone().requires_grad_()
    value = AssistiveKdLoss()(p, y, teacher_tough=y, teacher_tolerant=y)
    assert value == 0
    value.backward()
    assert p.grad.isfinite().all()
    # right teachers pull at no side
    found = AssistiveKdLoss(main=0)(y + 1, y, teacher_tough=y, teacher_tolerant=y)
    assert found == 0


def test_the_main_term_is_continuous():
    t = torch.rand(50, 1).double() * 3
    y, loss = torch.zeros_like(t), AssistiveKdLoss(tough=0, tolerant=0)
    below, above = (
        loss(t * at, y, teacher_tough=t, teacher_tolerant=t) for at in (1 - 1e-9, 1 + 1e-9)
    )
    torch.testing.assert_close(below, above, rtol=1e-7, atol=0)


def test_the_teachers_get_no_gradient():
    p, x = torch.randn(2, 5, 2, dtype=torch.float64).unbind()
    x.requires_grad_()
    p.requires_grad_()
    loss = AssistiveKdLoss()
    loss(p, torch.zeros_like(p), teacher_tough=x, teacher_tolerant=x * 2).backward()
    assert x.grad is None
    assert p.grad.abs().min() > 0


def test_shapes_of_one_column_and_ignored_elements():
    y, p, a, b = torch.randn(4, 6)
    column = {"teacher_tough": a[:, None], "teacher_tolerant": b[:, None]}
    found = AssistiveKdLoss()(p[:, None], y, teacher_tough=a, teacher_tolerant=b)
    torch.testing.assert_close(found, AssistiveKdLoss()(p[:, None], y[:, None], **column))
    table = {name: value.reshape(3, 2) for name, value in column.items()}
    labels = y.reshape(3, 2).clone()
    labels[1, 0] = -100
    kept = torch.tensor([0, 1, 3, 4, 5])
    rest = {name: value[kept] for name, value in column.items()}
    torch.testing.assert_close(
        AssistiveKdLoss()(p.reshape(3, 2), labels, **table),
        AssistiveKdLoss()(p[kept, None], y[kept], **rest),
    )


def test_what_is_refused():
    y = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="needs teacher_tolerant, teacher_tough"):
        AssistiveKdLoss()(y + 2, y)
    assert AssistiveKdLoss().eval()(y + 2, y) == 2
    with pytest.raises(ValueError, match="teacher_tough has rows of shape"):
        AssistiveKdLoss()(y, y, teacher_tough=y[:, :2], teacher_tolerant=y)
    with pytest.raises(ValueError, match="band=2"):
        AssistiveKdLoss(band=2)
    with pytest.raises(ValueError, match=r"main=-1"):
        AssistiveKdLoss(main=-1)
