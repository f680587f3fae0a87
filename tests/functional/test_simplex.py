"""The nearest point of the probability simplex."""

import torch

from hf_softext.functional.simplex import nearest_on_simplex


def test_the_nearest_on_simplex():
    x = torch.randn(50, 4, dtype=torch.float64)
    found = nearest_on_simplex(x)
    torch.testing.assert_close(found.sum(-1), torch.ones(50, dtype=torch.float64))
    # (x - p) points away from every other point of the simplex
    corners = torch.eye(4, dtype=torch.float64)
    inner = torch.einsum("nc,nkc->nk", x - found, corners - found[:, None])
    assert (found >= 0).all()
    assert inner.max() < 1e-12
    torch.testing.assert_close(nearest_on_simplex(found), found)
