"""Fixed random matrices that are the same on every machine."""

import torch
from torch import Tensor


def random_projection(
    rows: int,
    columns: int,
    generator: torch.Generator,
    orthogonal: bool = True,
    equal_norms: bool = False,
) -> Tensor:
    r"""A matrix $G$ whose rows are standard normal vectors, orthogonal or independent.

    The rows of an orthogonal matrix come in blocks of D, each uniform (Haar) over the orthogonal
    frames; their lengths are those of fresh normal vectors, so that every single row is distributed
    as $N(0, I)$ and estimates with it stay unbiased.

    Args:
        rows: R.
        columns: D.
        generator: on the CPU; the state of the global one is neither read nor changed.
        orthogonal: whether the rows of a block of D are orthogonal.
        equal_norms: all rows of an orthogonal matrix have length sqrt(D) instead. For R a multiple
            of D then $G^\top G / R = I$.

    Returns:
        (R, D), float32, on the CPU.

    Notes:
        It is drawn and factorised in float64 and rounded once. What differs between processors, the
        order of sums in a QR decomposition, thus disappears in all but a few last bits.

    Reference:
        Orthogonal random features: Felix X. Yu, Ananda Theertha Suresh, Krzysztof Choromanski,
        Daniel Holtmann-Rice, Sanjiv Kumar, "Orthogonal Random Features", 2016, arXiv 1610.09072.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    if not orthogonal:
        return normal(rows, columns).float()
    # all of it at once, so that one that memory cannot hold is an error before anything is drawn
    directions = torch.empty(rows, columns, dtype=torch.float64, device="cpu")
    for start in range(0, rows, columns):
        block = directions[start : start + columns]
        q, r = torch.linalg.qr(normal(columns, len(block)))
        # the signs that LAPACK chooses are not uniform
        block.copy_((q * r.diagonal().sign()).T)
    if equal_norms:
        return (directions * columns**0.5).float()
    lengths = torch.linalg.vector_norm(normal(rows, columns), dim=1, keepdim=True)
    return (directions * lengths).float()
