"""What a fit that fails on its data leaves behind: nothing that is in the way of the next."""

import pytest
import torch

from tests.training.verifier.test_run import fitted, texts_file


def test_features_that_are_equal_leave_nothing_in_the_way(bert_folder, tmp_path, monkeypatch):
    data = texts_file(tmp_path, 30)
    with monkeypatch.context() as patch:
        patch.setattr(
            "hf_softext.heads.features.pooled_features",
            lambda model, inputs, *_: torch.ones(len(inputs["input_ids"]), 4),
        )
        with (
            pytest.warns(UserWarning, match="have features that another row has too"),
            pytest.raises(ValueError, match="single distinct row"),
        ):
            fitted(tmp_path / "out", bert_folder, data)
    assert not (tmp_path / "out.partial").exists()
    fitted(tmp_path / "out", bert_folder, data, seed=1, epochs=1)
