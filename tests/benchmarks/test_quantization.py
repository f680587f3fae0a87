"""The benchmark's layers take the bits they are said to, and its report shows what was measured."""

from types import SimpleNamespace

import quantization
import torch


def test_layers_are_measured_and_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(quantization, "CSV", tmp_path / "results.csv")
    quantization.measure_layers(SimpleNamespace(size=256, rows=(1, 16), rounds=1))
    found = quantization.layers(256)
    for bits in quantization.BITS:
        taken, layer = found[f"BAQ, {bits} bits"]
        assert taken <= bits < taken + 0.01
        assert 8 * sum(t.nbytes for t in layer.state_dict().values()) == taken * 256**2
        assert len(layer.levels.unique()) > 2
    quantization.record(
        [{"what": "Llama, 1 x 8", "implementation": "bfloat16", "rows": 1, "used_mib": "77"}]
    )
    printed = quantization.report()
    assert "| BAQ, 3 bits, decoded | 2.9" in printed
    assert "| bfloat16 | 16.000 | 1.00 (" in printed
    assert "77 |" in printed


def test_int4_peer_computes_the_product():
    torch.manual_seed(3)
    product = quantization.int4_layer(64)
    torch.manual_seed(3)
    codes = torch.randint(0, 16, (64, 64), dtype=torch.int32)
    scale, zero = torch.rand(2, 64, 2).bfloat16().float().repeat_interleave(32, 0).unbind(2)
    x = torch.randn(3, 64).bfloat16()
    expected = x.float() @ ((codes.T - 8) * scale + zero)
    torch.testing.assert_close(product(x).float(), expected, atol=0.5, rtol=0.02)
