"""Least squares with an L2 penalty, from sums that are taken up batch by batch."""

import warnings

import torch
from torch import Tensor

# rows that are gathered before they are multiplied: a product of few rows would spend its time on
# reading and writing the sums
_BLOCK = 1024


class NormalEquations:
    r"""The sums that a ridge regression needs: $\sum z z^\top$, $\sum z y^\top$, $\sum y^2$.

    $z$ is a row of features with a 1 behind it. The sums do not depend on the order of the rows or
    on how they are cut into batches, and those of several processes can be added.

    Args:
        features: M, the width of the rows without the 1.
        outputs: O, the width of the targets.
        device: where the sums are kept.

    Attributes:
        gram: (M + 1, M + 1), float64; its last entry is the number of rows.
        cross: (M + 1, O), float64.
        squares: (O,), float64.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, features: int, outputs: int, device: torch.device | str = "cpu"):
        for name, width in (("features", features), ("outputs", outputs)):
            if width < 1:
                raise ValueError(f"{name}={width!r}: give a whole number of at least 1.")
        options = {"dtype": torch.float64, "device": device}
        self._gram = torch.zeros(features + 1, features + 1, **options)
        self._cross = torch.zeros(features + 1, outputs, **options)
        self._squares = torch.zeros(outputs, **options)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, z: Tensor, y: Tensor) -> None:
        """Take rows up.

        Args:
            z: (N, M), any floating dtype.
            y: (N, O), any dtype.

        Raises:
            ValueError: other widths, another number of rows in y than in z, or a value that is not
                finite; the sums are then as they were.
        """
        width, outputs = len(self._gram) - 1, self._cross.shape[1]
        if z.shape[1:] != (width,) or y.shape[1:] != (outputs,) or len(z) != len(y):
            raise ValueError(
                f"features {tuple(z.shape)} and targets {tuple(y.shape)}: (N, {width}) and "
                f"(N, {outputs}) are needed."
            )
        z, y = (part.detach().to(self._gram) for part in (z, y))
        for name, part in (("features", z), ("targets", y)):
            if not part.isfinite().all():
                raise ValueError(f"the {name} hold NaN or infinity, which would spoil every sum.")
        self._waiting.append((z, y))
        if sum(len(z) for z, _ in self._waiting) >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        z, y = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        z = torch.nn.functional.pad(z, (0, 1), value=1.0)
        self._gram.addmm_(z.T, z)
        self._cross.addmm_(z.T, y)
        self._squares += y.square().sum(0)

    def sums(self) -> dict[str, Tensor]:
        """The three tensors by name, which may be changed in place."""
        self._flush()
        return {"gram": self._gram, "cross": self._cross, "squares": self._squares}

    @property
    def gram(self) -> Tensor:
        """Of the features with a 1 behind them, (M + 1, M + 1)."""
        return self.sums()["gram"]

    @property
    def cross(self) -> Tensor:
        """Of the features and the targets, (M + 1, O)."""
        return self.sums()["cross"]

    @property
    def squares(self) -> Tensor:
        """Of the targets, (O,)."""
        return self.sums()["squares"]

    @property
    def rows(self) -> int:
        """How many rows were taken up."""
        return int(self.gram[-1, -1].item())

    def solve(
        self, ridge: float = 1e-3, relative: bool = True, bias: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Weight (O, M) and bias (O,); see `solve_ridge`."""
        return solve_ridge(self.gram, self.cross, ridge, relative, bias)

    def mean_squared_error(self, weight: Tensor, bias: Tensor) -> float:
        """Of the rows that were taken up, mean over rows and outputs.

        Args:
            weight: (O, M), float64.
            bias: (O,), float64.
        """
        w = torch.cat((weight, bias[:, None]), 1).to(self._gram)
        errors = self.squares - 2 * (w.T * self.cross).sum(0) + ((w @ self.gram) * w).sum(1)
        # a perfect fit is 0 up to rounding, in either direction
        return max(errors.mean().item() / self.rows, 0.0)


def check_ridge(ridge: float) -> None:
    """Raise ValueError for what is no penalty."""
    number = isinstance(ridge, int | float) and not isinstance(ridge, bool)
    if not number or not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge={ridge!r}: give a number of at least 0.")


def solve_ridge(
    gram: Tensor, cross: Tensor, ridge: float = 1e-3, relative: bool = True, bias: bool = True
) -> tuple[Tensor, Tensor]:
    r"""$W, b = \arg\min \sum_n \lVert W z_n + b - y_n\rVert^2 + \lambda \lVert W\rVert^2$.

    The bias is not penalised: means are taken out of both sides, W is the solution of
    $(S + \lambda I) W^\top = T$ for what remains, and b makes the means fit.

    Args:
        gram: $\sum z z^\top$ of rows z with a 1 as their last entry, (M + 1, M + 1), float64.
        cross: $\sum z y^\top$, (M + 1, O), float64.
        ridge: $\lambda$, at least 0. The paper gives none; ours is 1e-3.
        relative: $\lambda$ is ridge times the mean of the diagonal of S, so that neither the number
            of rows nor the scale of the features matters.
        bias: False leaves b at 0.

    Returns:
        W (O, M) and b (O,), float64.

    Raises:
        ValueError: no rows, or a ridge below 0.

    Notes:
        By Cholesky decomposition. Where a feature is a combination of the others up to rounding, W
        is the solution of least norm, which is the limit for a ridge that goes to 0, and a warning
        says so. Sums of squares have the square of the condition number of the features, so that
        directions below about 1e-6 of the largest count as absent.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225: only the abstract, which says
        that a closed form is possible; the formula is the textbook's.
    """
    check_ridge(ridge)
    rows = gram[-1, -1].item()
    if rows < 1:
        raise ValueError("there are no rows to fit to.")
    total = gram[-1, :-1]
    matrix, right = gram[:-1, :-1], cross[:-1]
    # of the features as they are, means included: what was subtracted left rounding of that size
    second_moments = matrix.diagonal().clone()
    if bias:
        matrix = matrix - torch.outer(total, total / rows)
        right = right - torch.outer(total, cross[-1] / rows)
    penalty = ridge * matrix.diagonal().mean().clamp(min=0).item() if relative else ridge
    matrix = matrix + penalty * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    tolerance = torch.finfo(gram.dtype).eps * max(rows, len(matrix))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # the square of a pivot is what of a feature the features before it do not explain
    pivots = factor.diagonal().square() > tolerance * (second_moments + penalty)
    if failed.item() == 0 and pivots.all():
        weight = torch.cholesky_solve(right, factor).T
    else:
        warnings.warn(
            f"the {len(matrix)} features of {int(rows)} rows are linearly dependent and "
            f"ridge={ridge!r} is too small to tell them apart: the solution of least norm is "
            "taken. A larger ridge is safer.",
            stacklevel=2,
        )
        smallest = tolerance * (second_moments.sum() + penalty).item()
        weight = (torch.linalg.pinv(matrix, atol=smallest, rtol=0.0, hermitian=True) @ right).T
    if not bias:
        return weight, torch.zeros_like(cross[-1])
    return weight, (cross[-1] - weight @ total) / rows
