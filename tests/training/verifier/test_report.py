"""The report of an SDM head: its figures, its diagnosis, and that it fetches nothing."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from hf_softext import SdmHead
from hf_softext.heads.sdm.diagnosis import calibration_scores, diagnose, highest_alpha
from hf_softext.training.html_page import picture
from hf_softext.training.verifier import plots
from hf_softext.training.verifier.folder_report import report_folder
from hf_softext.training.verifier.judged import Judged, judge_calibration, judge_rows
from hf_softext.training.verifier.report import MeasuredRows, write_sdm_report
from tests.heads.sdm.cases import may_be_empty

QUICK = {"epochs": 15, "exemplar_dim": 8, "num_splits": 2, "learning_rate": 1e-2, "alpha": 0.85}
NAMES = {0: "first", 1: "second", 2: "third"}


def rows(count, seed=1, apart=1.0):
    """Gaussian classes that overlap a little; the nearer to 0 `apart` is, the more."""
    draw = torch.Generator().manual_seed(0)
    means = apart * torch.randn((3, 10), generator=draw)
    draw.manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    return torch.randn((count, 10), generator=draw) + means[labels], labels


def fitted(apart=1.0, count=400, **changed):
    settings = {**QUICK, "id2label": NAMES, **changed}
    features, labels = rows(count, apart=apart)
    texts = [f"text <{row}>" for row in range(count)]
    return SdmHead.fit_features(features, labels, texts=texts, progress=False, **settings)


def page(folder, head, test=None, **facts):
    path = folder / "report.html"
    write_sdm_report(path, "small", head, test, facts)
    assert [one.name for one in folder.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def judged_rows(head, count=200):
    features, labels = rows(count, seed=2)
    judged, output = judge_rows(head, features, labels.tolist())
    return MeasuredRows(judged, output, [f"asked {row}" for row in range(count)], "test.csv")


@may_be_empty
def test_what_a_head_keeps_of_its_calibration_rows_is_what_it_says_of_them():
    head = fitted()
    features, labels = rows(400)
    places = [row for row in range(400) if str(row) not in head.support_ids]
    output = head(features[places])
    # the calibration rows in their own order
    order = head.calibration.squared_distance.argsort()
    mine = output.nearest_distance.argsort()
    kept = judge_calibration(head)
    assert kept is not None
    assert kept.wanted[order].tolist() == labels[places][mine].tolist()
    assert kept.admit[order].tolist() == output.admit[mine].tolist()
    # distances that are computed anew may change places with their neighbours in rank
    assert np.allclose(kept.distance[order], output.distance[mine], atol=0.02)
    assert 0 < kept.admit.sum() < len(places)
    assert judge_calibration(fitted(estimator="universal", rescaler_epochs=2)) is None


def test_completions_are_right_where_they_are_good():
    features, labels = rows(300)
    settings = {**QUICK, "id2label": {0: "bad", 1: "good"}, "pooling": "last_mean"}
    head = SdmHead.fit_features(features, labels.clamp(max=1), progress=False, **settings)
    asked, wanted = rows(200, seed=3)
    wanted = wanted.clamp(max=1)
    judged, output = judge_rows(head, asked, wanted.tolist())
    good = output.prediction == 1
    assert judged.right.tolist() == (wanted == 1).tolist()
    assert judged.admit.tolist() == (output.admit & good).tolist()
    assert 0 < judged.admit.sum() < int(output.admit.sum())
    assert judged.reasons is not None
    assert judged.reasons.count("predicted_bad") == int((~good).sum())
    scores = judged.scores(0.85)["admitted"]
    assert scores["accuracy"] == pytest.approx(float(wanted[output.admit & good].float().mean()))
    assert set(scores) == {"accuracy", "admitted"}


def test_another_alpha_admits_what_a_head_would_that_is_recalibrated():
    head = fitted()
    test = judged_rows(head)
    shares = []
    for alpha in (0.6, 0.85, 0.95):
        admit = test.judged.admitted_in(calibration_scores(head).region(alpha))
        head.recalibrate(alpha=alpha)
        assert admit.tolist() == head(rows(200, seed=2)[0]).admit.tolist()
        shares.append(admit.mean())
    assert min(shares) > 0
    assert len(set(shares)) == 3


@may_be_empty
@pytest.mark.parametrize("apart", [1.0, 0.5, 0.0])
def test_the_highest_alpha_is_the_highest(apart):
    head = fitted(apart, alpha=0.99)
    found = highest_alpha(head)
    empty = {
        step: bool(head.recalibrate(alpha=step / 1000).min_similarity.isinf())
        for step in range(501, 1001, 1 if apart == 0.5 else 7)
    }
    for step, is_empty in empty.items():
        assert is_empty == (found is None or step / 1000 > found)


@may_be_empty
def test_a_head_that_admits_nothing_says_which_class_is_in_the_way(tmp_path):
    # of the third class, half the labels are another's
    features, labels = rows(500)
    noisy = labels.clone()
    third = (labels == 2).nonzero()[:, 0]
    noisy[third[::2]] = 1
    settings = {**QUICK, "alpha": 0.95, "id2label": NAMES}
    head = SdmHead.fit_features(features, noisy, progress=False, **settings)
    found = diagnose(head)
    assert not found.admits
    assert found.classes[0].name == "third"
    assert found.classes[0].mistaken_for == "second"
    right = head.calibration.labels == head.calibration.predictions
    third = head.calibration.labels == 2
    assert found.classes[0].right == pytest.approx(float(right[third].float().mean()))
    assert found.classes[0].rows == int(third.sum())
    assert found.highest_alpha is None or found.highest_alpha < 0.95
    text = page(tmp_path, head, judged_rows(head))
    for said in ("Nothing is admitted", "mostly taken for second", "What helps: a lower alpha"):
        assert said in text
    # and a curve that never reaches alpha is drawn all the same
    assert text.count("<svg") == 3


def test_the_page_has_every_part_and_fetches_nothing(tmp_path):
    head = fitted()
    test = judged_rows(head)
    text = page(tmp_path, head, test, source="org/<tiny>")
    assert text.count("<svg") == 3
    assert "org/&lt;tiny&gt;" in text
    addresses = set(re.findall(r"(?:src|href)=[\"']([^\"']{1,30})", text))
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in text
    assert "url(http" not in text
    scores = test.judged.scores(0.85)
    assert list(scores) == [
        "all",
        "admitted",
        "admitted by the lower bound",
        "softmax of at least 0.85",
    ]
    for one in scores.values():
        assert f"<td>{one['accuracy']:.3f}</td><td>{one['admitted']:.3f}</td>" in text
    assert "text &lt;" in text
    # errors: those admitted first, then by their score; each with its neighbours
    wrong = np.nonzero(~test.judged.right)[0]
    admitted = test.judged.admit[wrong]
    best = sorted(wrong, key=lambda row: (not test.judged.admit[row], -test.judged.score[row]))
    shown = [int(row) for row in re.findall(r"<pre>asked (\d+)\n", text)]
    assert shown == best[:10]
    assert f"{len(wrong)} rows are wrong, {admitted.sum()} of them were admitted" in text
    (near,) = head.neighbours(head(rows(200, seed=2)[0][best[:1]]))
    assert f"<td>{near[0]['squared_distance']:.4g}</td>" in text
    assert page(tmp_path, head, test, source="org/<tiny>") == text


@may_be_empty
def test_a_page_without_test_rows_says_that_it_flatters(tmp_path):
    head = fitted()
    text = page(tmp_path, head)
    assert "the figures flatter" in text
    assert "Worst errors" not in text
    assert text.count("<svg") == 3
    universal = fitted(estimator="universal", rescaler_epochs=2)
    text = page(tmp_path, universal)
    assert "keeps too little of its calibration rows" in text
    assert text.count("<svg") == bool(len(universal.threshold_curve()[0]))


def test_risk_is_that_of_the_rows_so_far():
    right = np.array([True, False, True, True, False])
    coverage, risk = plots.risk_curve(right, np.array([0.9, 0.8, 0.8, 0.3, 0.1]))
    # the two with equal scores come together
    assert coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 3, 1 / 4, 2 / 5])


def test_pictures_hold_what_they_were_given():
    head = fitted()
    judged = judged_rows(head).judged
    figure = plots.risk_plot(judged, 0.85)
    points = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    admit = judged.admit
    assert points["admitted"].tolist() == [[admit.mean(), (~judged.right[admit]).mean()]]
    assert points["output of the head"][-1].tolist() == [1.0, (~judged.right).mean()]
    figure = plots.evidence_plot(judged)
    for axes in figure.axes:
        assert sum(patch.get_height() for patch in axes.patches) == pytest.approx(200)
    candidates, thresholds = (one.numpy() for one in head.threshold_curve())
    similarity = calibration_scores(head).valid_similarity.numpy()
    figure = plots.region_plot(
        candidates, thresholds, list(NAMES.values()), similarity, 0.85, float("inf")
    )
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines["second"].tolist() == thresholds[:, 1].tolist()
    svg = picture(figure)
    ElementTree.fromstring(svg)
    # a range within one decade has several numbers, and none that say 3 times 10 to the 0
    figure.axes[1].set_xlim(1, 7)
    figure.canvas.draw()
    shown = figure.axes[1].get_xticklabels(which="both")
    inside = [one.get_text() for one in shown if 1 <= one.get_position()[0] <= 7]
    assert [text for text in inside if text] == ["1", "2", "5"]
    # many classes: some are named, all are drawn
    many = np.tile(np.linspace(0, 1, 30, dtype=np.float32), (5, 1))
    figure = plots.region_plot(
        np.arange(1, 6), many, [f"c{one}" for one in range(30)], np.ones(4), 0.9, 2.0
    )
    assert len(figure.legends[0].get_texts()) == 8
    assert len(figure.axes[0].lines) == 32


def test_rows_without_a_number_are_wrong_and_drawn(tmp_path):
    head = fitted()
    features, labels = rows(50, seed=2)
    features[3] = torch.nan
    judged, output = judge_rows(head, features, labels.tolist())
    assert isinstance(judged, Judged)
    assert not judged.right[3]
    assert judged.score[3] == -1
    assert judged.reasons is not None
    assert judged.reasons[3] == "non_finite"
    text = page(tmp_path, head, MeasuredRows(judged, output, ["one"] * 50, "test.csv"))
    assert "answered: None" in text


def test_folders_that_hold_no_head_and_models_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        report_folder(str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="it is no folder of an SDM head"):
        report_folder(str(tmp_path))
    head = fitted()
    head.save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match="is of use with data only"):
        report_folder(str(tmp_path / "head"), model="somewhere")
    with pytest.raises(ValueError, match="dtype='int8'"):
        report_folder(str(tmp_path / "head"), dtype="int8")
    with pytest.raises(ValueError, match=r"model is missing: .* an unnamed model"):
        report_folder(str(tmp_path / "head"), "test.csv")
    assert report_folder(str(tmp_path / "head")).name == "report.html"
    other = report_folder(str(tmp_path / "head"), out=tmp_path / "deep" / "page.html")
    assert other.is_file()
    (tmp_path / "head" / "eval_results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not JSON"):
        report_folder(str(tmp_path / "head"))
