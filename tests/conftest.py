"""What every test runs under: a seed, poisoned memory, and no memory of warnings given before."""

from collections.abc import Iterator

import pytest
import torch

# the models are so small that handing work to threads takes far longer than the work
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """Seed torch, and have torch.empty hold NaN so that a read of unwritten memory shows."""
    torch.manual_seed(0)
    # the poison is part of torch's deterministic mode
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def nothing_warned_yet() -> Iterator[None]:
    """Each test sees the warnings that a fresh process would see."""
    from hf_softext.attention.record import _WARNED

    _WARNED.clear()
    yield
    _WARNED.clear()
