"""The references are what they are said to be, and the report adds up."""

import torch
from length_extrapolation_report import print_report, save_plot
from reference_attentions import REFERENCES

SCORES = torch.tensor([[[[-1.0, 0.5, 2.0, 7.0], [3.0, -2.0, -4.0, 1.0]]]])
KEEP = torch.tensor([[[[True, True, True, False], [False, True, True, False]]]])


def test_reference_weights_follow_their_formulas():
    weights = {method.name: method.weights(SCORES, KEEP) for method in REFERENCES}
    for row, visible in ((0, [0, 1, 2]), (1, [1, 2])):
        scores = SCORES[0, 0, row, visible]
        count = len(visible)
        sigmoid = 1 / (1 + (-scores).exp())
        relu = scores.clamp(min=0)
        expected = {
            "sigmoid_l1": sigmoid / sigmoid.sum(),
            "relu_l1": relu / relu.sum() if relu.any() else relu,
            "sigmoid_plain": scores.exp() / (scores.exp() + count),
            "relu_plain": relu / count,
        }
        assert weights.keys() == expected.keys()
        for name, values in expected.items():
            found = weights[name][0, 0, row]
            torch.testing.assert_close(found[visible], values)
            assert (found[[k for k in range(4) if k not in visible]] == 0).all()


def lines(label, losses, seed):
    return [
        {
            "attention": label,
            "seed": str(seed),
            "length": str(64 * factor),
            "factor": str(factor),
            "loss": str(loss),
            "passkey": "0.5",
        }
        for factor, loss in zip((1, 8), losses, strict=True)
    ]


def test_report_gives_means_spreads_and_the_share_of_the_baseline(capsys, tmp_path):
    table = [
        *lines("softmax", (1.0, 3.0), 0),
        *lines("softmax", (1.2, 3.4), 1),
        *lines("softmax + QK-norm + log N", (1.0, 2.0), 0),
        *lines("softmax + QK-norm + log N", (1.0, 2.2), 1),
        *lines("softplus", (1.0, 1.2), 0),
        *lines("stablemax", (1.0, 4.0), 0),
    ]
    table += [*lines("ReLU", (1.0, 2.4), 0), *lines("ReLU", (1.0, 3.0), 1)]
    labels = ["ReLU", "softmax", "softmax + QK-norm + log N", "softplus", "stablemax", "never run"]
    print_report(table, labels)
    printed = capsys.readouterr().out
    assert "| softmax | 2 | 1.100 ± 0.141 | 3.200 ± 0.283 |" in printed
    assert "| softplus | 1 | 1.000 | 1.200 |" in printed
    # the one seed that all three have: softmax 3.0, baseline 2.0, softplus 1.2
    assert "| 8x | softplus | 1 | 1.800 | 1.000 | 56% |" in printed
    assert "| 8x | stablemax | 1 | -1.000 | 1.000 | no gain |" in printed
    assert "| 8x | ReLU | 2 | 0.500 | 1.100 | all |" in printed
    assert "never run" not in printed
    save_plot(table, labels, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").count("</svg>") == 1
