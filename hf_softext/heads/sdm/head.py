"""The SDM head: predictions with their evidence, and whether they may be relied on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_softext.heads.features import extract_features
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.predicting import SdmPredictions


class SdmHead(SdmPredictions):
    r"""A classifier behind frozen features that says which of its predictions may be relied on.

    A linear adaptor makes a vector and logits of the features. Similarity q counts how many of the
    nearest training vectors, without a break, were predicted correctly and as this row; distance d
    ranks that of the nearest among those of calibration rows. The output is a softmax of base 2 + q
    and exponent d times the logits. Calibration rows then give the high-reliability region: the
    least similarity and outputs with which every class is as accurate as asked for. What is in it
    is admitted, all else refused, with a reason.

    Make one with `fit`, `fit_features` or `from_pretrained`.

    Args:
        config: with `num_features` and `num_labels`.

    Attributes:
        config: the settings.
        report: what the fit found: for each split its losses and its least similarity (None: no
            region), which split was kept, and how many rows went in.
        support_ids: an id for each support row.
        support_texts: its text, or None.

    Raises:
        ValueError: a config without sizes.

    Notes:
        The aim is accuracy on rows like the calibration rows, estimated on rows that also chose the
        weights: hold out a test set. Under a shift of the data with weak features it need not hold.

    Reference:
        A. Schmaltz, "Similarity-Distance-Magnitude Activations", 2025, arXiv 2509.12760; and, for
        `estimator="universal"`, "Similarity-Distance-Magnitude Universal Verification", 2025, arXiv
        2502.20167.
    """

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        train_dataset: Any,
        *,
        text_column: str = "text",
        label_column: str = "label",
        id_column: str | None = None,
        keep_texts: bool = True,
        pooling: str | None = None,
        layers: Sequence[int] = (-1,),
        max_length: int | None = None,
        feature_batch_size: int = 32,
        config: SdmConfig | None = None,
        work_dir: str | Path | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> "SdmHead":
        """Fit on texts, behind a frozen model.

        Args:
            model: of transformers, or inside of peft, quantized or not; it is not changed.
            tokenizer: of the model.
            train_dataset: a `datasets.Dataset` or a list of mappings. Half of it becomes the
                support, half is for calibration.
            text_column: of the texts; or the dataset has "input_ids".
            label_column: of the labels: names, or whole numbers from 0. Where numbers have names
                (a ClassLabel, `id2label`) and rows are of a part of the classes, these are numbered
                anew, in their order.
            id_column: of ids by which neighbours are named; None: row numbers.
            keep_texts: whether texts of the support are kept, to be shown with predictions.
            pooling: see `extract_features`; None: the config's, or what suits the model.
            layers: see `extract_features`; (-1,): the config's.
            max_length: most tokens of a text; None: the config's, or what the model takes.
            feature_batch_size: texts at once.
            config: the settings; None: the defaults.
            work_dir: a folder for what is done. The same call finds it there, and one that was
                broken off goes on; remove it once the head is saved. None: nothing is kept.
            progress: whether to show bars.
            **settings: of `SdmConfig`, in place of the config's, such as `alpha=0.9`.

        Returns:
            As `fit_features`; it knows its backbone, and refuses others.

        Raises:
            TypeError: as `fit_features` and `extract_features`.
            ValueError: as these; a missing column.
        """
        from hf_softext.heads.sdm.fit_texts import fit_texts

        return fit_texts(
            model,
            tokenizer,
            train_dataset,
            text_column=text_column,
            label_column=label_column,
            id_column=id_column,
            keep_texts=keep_texts,
            pooling=pooling,
            layers=layers,
            max_length=max_length,
            feature_batch_size=feature_batch_size,
            config=config,
            work_dir=work_dir,
            progress=progress,
            settings=settings,
        )

    @classmethod
    def fit_features(
        cls,
        features: Tensor,
        labels: Any,
        *,
        ids: Sequence[str] | None = None,
        texts: Sequence[str | None] | None = None,
        config: SdmConfig | None = None,
        work_dir: str | Path | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> "SdmHead":
        """Fit on features.

        Args:
            features: (N, D), floating point, finite. The fit runs where they are.
            labels: (N,), whole numbers from 0 to C - 1, or names of id2label, which is then to be
                among the settings.
            ids: one for each row; None: row numbers.
            texts: one for each row; None: without.
            config: see `fit`.
            work_dir: see `fit`.
            progress: whether to show a bar.
            **settings: see `fit`.

        Returns:
            The head of the split with the lowest balanced calibration loss. It may admit nothing:
            then no region holds alpha for every class, which `threshold_curve` explains.

        Raises:
            TypeError: features or labels of another kind.
            ValueError: features that are not finite, a class with fewer than two distinct rows, a
                single class, a setting outside its range, or a `work_dir` of another fit.

        Notes:
            Rows with equal features are used once, with a warning: one on each side of a split
            would vouch for the other.
        """
        from hf_softext.heads.sdm.fit import fit_rows

        return fit_rows(
            features,
            labels,
            ids=ids,
            texts=texts,
            config=config,
            work_dir=work_dir,
            progress=progress,
            settings=settings,
        )

    def extract(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Any,
        *,
        text_column: str = "text",
        batch_size: int = 32,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Features of texts, made as those of the fit: for the head itself, `add_support`,
        `recalibrate`.

            features = head.extract(model, tokenizer, texts)
            head.add_support(features, ["card lost", "card lost"], texts=texts)

        Args:
            model: the backbone that the head was fitted on.
            tokenizer: of the model.
            dataset: see `extract_features`, as for the rest.
            text_column: of the texts.
            batch_size: texts at once.
            cache_dir: where features are kept.
            progress: whether to show a bar.

        Returns:
            (N, D), float32, on the CPU.

        Raises:
            ValueError: another backbone, a head that was fitted on features, or as
                `extract_features`.
        """
        from hf_softext.heads.sdm.saving import check_attached

        check_attached(self, model)
        return extract_features(
            model,
            tokenizer,
            dataset,
            text_column=text_column,
            pooling=self.config.pooling,
            layers=self.config.layers,
            batch_size=batch_size,
            max_length=self.config.max_length,
            cache_dir=cache_dir,
            progress=progress,
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `sdm_config.json`, `sdm_head.safetensors`, `sdm_support.jsonl`, and a README where
        there is none."""
        from hf_softext.heads.sdm.saving import save_head

        save_head(self, Path(save_directory))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, model: Any = None, **download: Any
    ) -> "SdmHead":
        """Load a head.

        Args:
            name_or_path: a folder, or a repository of the hub.
            model: the backbone, to be compared with the one that the head was fitted on; None: it
                is compared when the head is attached.
            **download: of `huggingface_hub.hf_hub_download`, such as `revision` or `token`.

        Raises:
            ValueError: files that do not fit together, or another backbone.
            OSError: files that are not there.
        """
        from hf_softext.heads.sdm.saving import load_head

        return load_head(name_or_path, model, download)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes.

        Args:
            repo_id: is made if it is not there.
            private: whether a new one is.
            **options: of `huggingface_hub.HfApi.upload_folder`, such as `revision`, `token`,
                `commit_message` or `create_pr`.

        Returns:
            The address of the commit.
        """
        from hf_softext.heads.sdm.saving import push_head

        return push_head(self, repo_id, private, options)
