"""Data for the tests of SDM heads."""

import pytest
import torch
from torch import Tensor

from hf_softext.heads.sdm import SdmHead

# of tests of something else
may_be_empty = pytest.mark.filterwarnings(
    "ignore::hf_softext.heads.sdm.diagnosis.EmptyRegionWarning"
)
# quick, and enough for a region
QUICK = {
    "epochs": 15,
    "exemplar_dim": 8,
    "num_splits": 2,
    "learning_rate": 1e-2,
    "alpha": 0.9,
    "progress": False,
}


def rows(count: int, seed: int = 1, labels: int = 3, width: int = 10) -> tuple[Tensor, Tensor]:
    """Gaussian classes that overlap a little."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn((labels, width), generator=draw)
    draw.manual_seed(seed)
    found = torch.randint(labels, (count,), generator=draw)
    return torch.randn((count, width), generator=draw) + means[found], found


def head(**settings) -> SdmHead:
    """One fitted on 400 rows."""
    return SdmHead.fit_features(*rows(400), **QUICK | settings)


def equal(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, on any device; NaN is NaN."""
    return torch.equal(one.nan_to_num(nan=-7.0).cpu(), other.nan_to_num(nan=-7.0).cpu())


def same(one: SdmHead, other: SdmHead) -> bool:
    """Bit by bit."""
    first, second = one.state_dict(), other.state_dict()
    return (
        first.keys() == second.keys()
        and all(equal(first[name], second[name]) for name in first)
        and one.config == other.config
        and one.report == other.report
        and one.support_ids == other.support_ids
        and one.support_texts == other.support_texts
    )
