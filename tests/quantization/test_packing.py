"""Bit planes: where each bit lies, round trips at odd sizes, and what they take."""

import pytest
import torch

from hf_softext.quantization.baq import packing
from hf_softext.quantization.baq.grid import width
from hf_softext.quantization.baq.packing import (
    Run,
    overhead_bits,
    pack,
    plane_bits,
    runs_of,
    spread,
    unpack,
)

POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
ANY = [1, 3, 5, 6, 7, 11, 12, 17, 200, 255]


def random_codes(rows, columns, choice):
    levels = torch.tensor(choice)[torch.randint(len(choice), (columns,))].to(torch.int16)
    return (torch.rand(rows, columns) * levels).to(torch.uint8), levels


def planes_reference(codes, levels):
    """Bit by bit, as the format is described."""
    rows, columns = codes.shape
    order = sorted(range(columns), key=lambda j: (int(levels[j]), j))
    planes = []
    for column in order:
        for bit in range(width(int(levels[column]))):
            plane = [0] * ((rows + 7) // 8)
            for row in range(rows):
                plane[row // 8] |= (int(codes[row, column]) >> bit & 1) << (row % 8)
            planes.append(plane)
    return torch.tensor(planes, dtype=torch.uint8).reshape(len(planes), (rows + 7) // 8)


@pytest.mark.parametrize("choice", [POWERS, ANY, [1], [256], [2]])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 9), (8, 3), (63, 60), (64, 1)])
def test_round_trip(rows, columns, choice):
    codes, levels = random_codes(rows, columns, choice)
    planes = pack(codes, levels)
    assert torch.equal(planes, planes_reference(codes, levels))
    found = unpack(planes, levels, rows)
    assert found.dtype == torch.uint8
    assert torch.equal(found, codes.T[levels.argsort(stable=True)])


def test_both_ways_to_spread_bits_agree(monkeypatch):
    planes = torch.randint(0, 256, (7, 8, 5), dtype=torch.uint8)
    by_table = [spread(planes[:, :bits]) for bits in range(9)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(spread(planes[:, :bits]), by_table[bits]) for bits in range(9))


def test_what_is_packed_may_lie_anywhere_in_memory():
    codes, levels = random_codes(24, 10, POWERS)
    planes = pack(codes.T.contiguous().T, levels)
    assert torch.equal(planes, pack(codes, levels))
    wide = torch.zeros(len(planes), 6, dtype=torch.uint8)
    wide[:, ::2] = planes
    assert torch.equal(unpack(wide[:, ::2], levels, 24), unpack(planes, levels, 24))


def test_codes_beyond_the_levels_are_refused():
    codes = torch.tensor([[0, 2], [1, 3]], dtype=torch.uint8)
    pack(codes, torch.tensor([2, 4]))
    for levels in ([2, 3], [1, 4]):
        with pytest.raises(ValueError, match="not below the number of levels of its column"):
            pack(codes, torch.tensor(levels))


def test_runs_are_in_the_order_of_the_planes():
    runs = runs_of(torch.tensor([8, 1, 3, 8, 4, 1, 3]))
    assert runs == (Run(1, 2), Run(3, 2), Run(4, 1), Run(8, 2))
    assert [run.width for run in runs] == [0, 2, 2, 3]


def test_what_lies_beside_the_planes_is_little():
    assert overhead_bits(4096, 4096) / 4096**2 <= 0.02
    assert overhead_bits(4096, 4096, zero_point=True) / 4096**2 <= 0.02
    assert [plane_bits(rows) for rows in (1, 8, 9, 4096)] == [8, 8, 16, 4096]
    codes, levels = random_codes(12, 20, POWERS)
    planes = pack(codes, levels)
    assert planes.numel() * 8 == len(planes) * plane_bits(12)
    assert packing.WIDTHS == 9
