"""The activation: golden vectors, its gradient, and what it becomes at its ends."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.functional.sdm import (
    log_sdm,
    rescaled_similarity,
    sdm,
    sdm_loss,
    softmax_similarity,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden/sdm_estimator.safetensors")


def test_equals_the_authors_code():
    z = GOLDEN["act_z"].requires_grad_()
    # theirs may give each class a distance of its own
    q, d = GOLDEN["act_q"][:, 0], GOLDEN["act_d"]
    assert torch.equal(d, d[:, :1].expand_as(d))
    d = d[:, 0]
    torch.testing.assert_close(sdm(z, q, d), GOLDEN["act_sdm"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(log_sdm(z, q, d), GOLDEN["act_log_base"], atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(log_sdm(z, q, d)[:, 1].sum(), z)
    torch.testing.assert_close(gradient, GOLDEN["act_grad_logp1"], atol=1e-6, rtol=1e-6)


def test_is_softmax_at_one_similarity():
    z, y = torch.randn(7, 5) * 3, torch.randint(5, (7,))
    q, d = torch.full((7,), softmax_similarity()), torch.ones(7)
    torch.testing.assert_close(sdm(z, q, d), z.softmax(1))
    expected = torch.nn.functional.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(sdm_loss(z, y, q, d), expected)


def test_gradient_is_distance_times_the_error():
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y, q = torch.randint(4, (6,)), torch.tensor([0.0, 1, 5, 40, 300, 2048])
    d = torch.tensor([1.0, 0.7, 0.0, 0.3, 0.9, 0.5])
    (gradient,) = torch.autograd.grad(sdm_loss(z, y, q, d).sum(), z)
    onehot = torch.nn.functional.one_hot(y, 4)
    torch.testing.assert_close(gradient, d.double()[:, None] * (sdm(z, q, d) - onehot))
    assert torch.autograd.gradcheck(lambda z: sdm_loss(z, y, q, d), z)
    # d = 0: uniform, nothing to learn
    assert torch.equal(sdm(z, q, d)[2], torch.full((4,), 0.25, dtype=torch.float64))
    assert float(sdm_loss(z.detach(), y, q, d)[2]) == pytest.approx(math.log(4) / math.log(7))
    assert not gradient[2].any()


def test_similarity_and_closeness_sharpen_and_never_change_the_class():
    z = torch.randn(50, 6)
    top = z.argmax(1)
    low = sdm(z, torch.full((50,), 3.0), torch.full((50,), 0.4))
    for q, d in ((9.0, 0.4), (3.0, 0.9)):
        high = sdm(z, torch.full((50,), q), torch.full((50,), d))
        assert torch.equal(high.argmax(1), top)
        assert (high.amax(1) > low.amax(1)).all()


def test_half_precision_is_computed_in_float32():
    z = (torch.randn(9, 4) * 20).bfloat16()
    q, d = torch.full((9,), 2048.0), torch.ones(9)
    assert torch.equal(sdm(z, q, d), sdm(z.float(), q, d))
    assert log_sdm(z, q, d).isfinite().all()


def test_rescaled_similarity_is_zero_only_without_similarity():
    q = torch.tensor([0.0, 0, 1, 1, 7, 2048])
    p = torch.tensor([0.5, 1, 0.2, 1, 0.25, 0.9])
    found = rescaled_similarity(q, p)
    assert torch.equal(found == 0, q == 0)
    assert (found[q > 0] >= 1).all()
    assert (found <= q).all()
    assert float(found[4]) == pytest.approx(9**0.25)
