"""The estimator against the authors' own code: training, evidence, region, bounds, flags.

The vectors were made with ReexpressAI/reexpress_mcp_server (Apache-2.0, estimator format 2.0.0) on
three Gaussian classes, with alpha 0.9.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.functional.empirical_cdf import class_lists
from hf_softext.functional.sdm import sdm, sdm_loss
from hf_softext.heads.sdm import SdmConfig
from hf_softext.heads.sdm.adaptor import ExemplarAdaptor
from hf_softext.heads.sdm.fit import head_of_splits, split_state
from hf_softext.heads.sdm.training import Half, SplitTraining
from tests.heads.sdm.cases import may_be_empty

GOLDEN = load_file(Path(__file__).parents[2] / "golden/sdm_estimator.safetensors")
CONFIG = SdmConfig(
    alpha=0.9,
    exemplar_dim=6,
    epochs=12,
    learning_rate=5e-3,
    batch_size=32,
    num_features=12,
    num_labels=3,
)


def weights(name):
    """Theirs under our names."""
    return {
        "exemplar.weight": GOLDEN[f"{name}.conv.weight"].squeeze(1),
        "exemplar.bias": GOLDEN[f"{name}.conv.bias"],
        "classifier.weight": GOLDEN[f"{name}.fc.weight"],
        "classifier.bias": GOLDEN[f"{name}.fc.bias"],
        "feature_mean": GOLDEN["embed_mean"],
        "feature_std": GOLDEN["embed_std"],
    }


@cache
def trained(index="torch"):
    """A training from their first weights in their order, with the last weights of it."""
    adaptor = ExemplarAdaptor(12, 6, 3)
    adaptor.load_state_dict(weights("init"))
    adaptor.standardize_by(GOLDEN["x_train"])
    halves = (
        Half(adaptor.standardize(GOLDEN[f"x_{name}"]), GOLDEN[f"y_{name}"])
        for name in ("train", "cal")
    )
    config = replace(CONFIG, index=index)
    training = SplitTraining(
        *halves, adaptor, config, torch.Generator(), permutations=GOLDEN["perms"]
    )
    last = {}
    training.run(lambda training: last.update(training._weights()))
    return training, last


def close(found, name, atol=1e-6):
    expected = GOLDEN[name].reshape(found.shape)
    torch.testing.assert_close(found.to(expected.dtype), expected, atol=atol, rtol=1e-5)


def test_training_takes_their_steps():
    training, last = trained()
    assert torch.equal(training.adaptor.feature_mean, GOLDEN["embed_mean"])
    assert torch.equal(training.adaptor.feature_std, GOLDEN["embed_std"])
    for name, found in (("last", last), ("best", training.adaptor.state_dict())):
        for key, expected in weights(name).items():
            torch.testing.assert_close(found[key], expected, atol=1e-6, rtol=1e-5)
    names = {
        "minibatch_loss": "epoch_minibatch_mean_loss",
        "train_loss": "epoch_train_balanced_loss",
        "calibration_loss": "epoch_cal_balanced_loss",
        "calibration_similarity": "epoch_cal_balanced_q",
    }
    for ours, theirs in names.items():
        close(torch.tensor([epoch[ours] for epoch in training.history]), theirs)


def test_gradients_are_theirs():
    adaptor = ExemplarAdaptor(12, 6, 3)
    adaptor.load_state_dict(weights("best"))
    _, logits = adaptor(adaptor.standardize(GOLDEN["x_train"][:20]))
    q, d = GOLDEN["tr_q"][:20, 0], GOLDEN["tr_d"][:20]
    loss = sdm_loss(logits, GOLDEN["y_train"][:20], q, d).mean()
    loss.backward()
    close(loss.detach(), "grad_loss")
    for layer, name in ((adaptor.exemplar, "conv"), (adaptor.classifier, "fc")):
        close(layer.weight.grad, f"grad.{name}.weight", atol=1e-8)
        close(layer.bias.grad, f"grad.{name}.bias", atol=1e-8)


@pytest.mark.parametrize("index", ["torch", "faiss"])
def test_evidence_of_both_halves_is_theirs(index):
    if index == "faiss":
        pytest.importorskip("faiss")
    training, _ = trained(index)
    for half, name in ((training.train, "tr"), (training.calibration, "cal")):
        assert torch.equal(half.evidence.similarity, GOLDEN[f"{name}_q"][:, 0])
        close(half.evidence.squared_distance, f"{name}_d0sq", atol=1e-5)
        assert torch.equal(half.distance, GOLDEN[f"{name}_d"])
        close(half.exemplars, f"{name}_exemplar", atol=1e-5)
        close(half.logits, f"{name}_logits", atol=1e-5)
        close(sdm(half.logits, half.evidence.similarity, half.distance), f"{name}_sdm")
        kept = half.evidence.similarity > 0
        lists = class_lists(half.evidence.squared_distance[kept], half.labels[kept], 3)
        prefix = "train" if name == "tr" else name
        theirs = [GOLDEN[f"{prefix}_dcdf_class{label}"] for label in range(3)]
        assert lists.sizes.tolist() == [len(one) for one in theirs]
        torch.testing.assert_close(lists.values, torch.cat(theirs), atol=1e-5, rtol=1e-5)


def golden_head():
    training, _ = trained()
    head = head_of_splits(CONFIG, [split_state(training)], 0, torch.device("cpu"))
    head.support_ids = [str(row) for row in range(150)]
    head.support_texts = [None] * 150
    return head


def test_calibration_is_theirs():
    head = golden_head()
    scores = head._scores()
    close(scores.similarity, "cal_qprime", atol=1e-5)
    lists = head._lists("similarity").values.split(head._lists("similarity").sizes.tolist())
    for label in range(3):
        close(lists[label], f"cal_qprime_sorted_class{label}", atol=1e-5)


@may_be_empty
def test_regions_are_theirs_for_six_accuracies():
    head = golden_head()
    found = []
    for alpha, least, thresholds in zip(
        GOLDEN["alphas"].tolist(), GOLDEN["alpha_qmin"], GOLDEN["alpha_psi"], strict=True
    ):
        region = head.recalibrate(alpha)
        torch.testing.assert_close(region.min_similarity, least.float(), atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(region.thresholds, thresholds, atol=1e-6, rtol=1e-6)
        found.append(float(region.min_similarity))
    # a higher accuracy never asks for less similarity, and the last cannot be had
    assert found == sorted(found)
    assert found[-1] == float("inf")
    output = head(GOLDEN["x_test"])
    assert not output.admit.any()
    assert not output.admit_lower.any()
    assert set(output.reason) == {"nothing_admitted"}


def test_predictions_are_theirs():
    output = golden_head()(GOLDEN["x_test"])
    for ours, theirs in (
        ("prediction", "pred"),
        ("nearest", "nn"),
        ("is_ood", "is_ood"),
        ("admit", "is_high_reliability_region"),
        ("admit_lower", "is_high_reliability_region_lower"),
        ("effective_sample_size", "cumulative_effective_sample_sizes"),
    ):
        assert torch.equal(output[ours], GOLDEN[f"te_{theirs}"].to(output[ours].dtype)), ours
    assert torch.equal(output.similarity, GOLDEN["te_q"][:, 0])
    assert torch.equal(output.distance, GOLDEN["te_d"])
    for ours, theirs in (
        ("distance_raw", "d0sq"),
        ("exemplars", "exemplar"),
        ("logits", "logits"),
        ("probs", "sdm"),
        ("rescaled_similarity", "qprime"),
        ("rescaled_similarity_lower", "rescaled_similarity_lower"),
        ("d_lower", "d_lower"),
        ("d_upper", "d_upper"),
        ("probs_lower", "sdm_output_d_lower"),
        ("probs_upper", "sdm_output_d_upper"),
    ):
        close(output[ours], f"te_{theirs}", atol=1e-5)
    for reason, admit, ood in zip(
        output.reason, output.admit.tolist(), output.is_ood.tolist(), strict=True
    ):
        expected = "admitted" if admit else "out_of_distribution" if ood else "low_similarity"
        assert reason == expected
    assert len(set(output.reason)) == 3
