"""Arguments of the fit of an SDM head; nothing heavy is imported for `--help`."""

from dataclasses import dataclass, field
from typing import Any

# the settings of `SdmConfig` among the arguments
SETTINGS = (
    "alpha",
    "exemplar_dim",
    "max_q",
    "estimator",
    "index",
    "num_splits",
    "epochs",
    "learning_rate",
    "batch_size",
    "stratify",
    "refresh_every",
    "rescaler_epochs",
    "rescaler_patience",
    "rescaler_learning_rate",
    "rescaler_batch_size",
    "seed",
)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class VerifierArguments:
    """Behind which model to fit an SDM head, on which rows, and how.

    `model`, `data` and `output_dir` are needed. Defaults are those of `SdmConfig`.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Encoder, classifier or language model: a folder or a hub id."},
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Labelled rows that the model was not trained on: .jsonl, .json, .csv, .tsv, "
            ".parquet, or a dataset's name."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "New folder for the head.", "aliases": ["--out"]}
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a dataset that has several."}
    )
    test_data: str | None = field(
        default=None,
        metadata={"help": "What to test on; by default a share of the data that is held out."},
    )
    held_out: float = field(
        default=0.1,
        metadata={"help": "Share of the data that is tested on, without test_data; 0: no test."},
    )
    task: str = field(
        default="auto",
        metadata={
            "help": "classification (a text and its label), generation (a prompt, its completion, "
            "and whether that is good), or auto: by the columns of the data."
        },
    )
    text_column: str = field(default="text", metadata={"help": "The column of the texts."})
    label_column: str = field(
        default="label", metadata={"help": "The column of the labels: names or numbers."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "The column of the prompts."})
    completion_column: str = field(
        default="completion", metadata={"help": "The column of the completions."}
    )
    good_column: str = field(
        default="is_good",
        metadata={"help": "The column that says whether a completion is good: true or false."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "A hub id or a folder; by default that of the model."}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "How hidden states become a vector: cls, last, mean, cls_mean or last_mean; by "
            "default what suits the model; last_mean for generation."
        },
    )
    layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Which hidden states; -1 is the last."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens: longer texts are cut, longer completions are an error. By "
            "default as many as the model takes."
        },
    )
    feature_batch_size: int = field(default=32, metadata={"help": "Rows at once in the model."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Of the model: auto (as stored), float32, bfloat16, float16. The head belongs "
            "to this precision."
        },
    )
    alpha: float = field(
        default=0.95, metadata={"help": "Accuracy to hold among admitted rows, in every class."}
    )
    exemplar_dim: int = field(
        default=128, metadata={"help": "Width of the vectors that are compared."}
    )
    max_q: int = field(
        default=2048, metadata={"help": "Longest run of neighbours that is counted."}
    )
    estimator: str = field(
        default="sdm_hr", metadata={"help": "sdm_hr, or universal, the author's earlier one."}
    )
    index: str = field(
        default="torch", metadata={"help": "Exact search: torch, or faiss where installed."}
    )
    num_splits: int = field(
        default=3, metadata={"help": "How often rows are divided anew; the best is kept."}
    )
    epochs: int = field(default=100, metadata={"help": "Passes over the rows of each split."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of Adam."})
    batch_size: int = field(default=50, metadata={"help": "Rows in a step."})
    stratify: bool = field(
        default=True, metadata={"help": "Same share of every class in both halves of a split."}
    )
    refresh_every: int = field(
        default=1, metadata={"help": "Epochs between two searches of neighbours; more is faster."}
    )
    rescaler_epochs: int = field(
        default=1000, metadata={"help": "Most epochs of the universal estimator's rescaling."}
    )
    rescaler_patience: int = field(
        default=10, metadata={"help": "Epochs above its best loss after which that ends."}
    )
    rescaler_learning_rate: float = field(default=1e-4, metadata={"help": "Of its Adam."})
    rescaler_batch_size: int = field(default=1, metadata={"help": "Rows in its steps."})
    seed: int = field(default=0, metadata={"help": "Of held-out rows, splits, weights and order."})
    keep_texts: bool = field(
        default=True, metadata={"help": "Save the texts of the support, to show them."}
    )
    save_model: bool = field(
        default=False,
        metadata={"help": "Save model and tokenizer beside the head: one folder that loads alone."},
    )
    report: bool = field(
        default=False,
        metadata={"help": "Write report.html beside the head; needs the extra plots."},
    )
    use_cpu: bool = field(
        default=False, metadata={"help": "Stay on the CPU where there is an accelerator."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})

    def __post_init__(self):
        # a YAML file may say 1 where the command line has 1.0: they are the same run
        for name in ("alpha", "held_out"):
            if type(getattr(self, name)) is int:
                setattr(self, name, float(getattr(self, name)))

    def config(self) -> Any:
        """The `SdmConfig` that these arguments ask for.

        Raises:
            ValueError: a value out of its range.
        """
        from hf_softext.heads.sdm.config import SdmConfig

        return SdmConfig(**{name: getattr(self, name) for name in SETTINGS})

    def check(self) -> None:
        """Raise ValueError for a value that is out of range."""
        from hf_softext.heads.pooling import check_pooling

        self.config()
        if self.task not in ("auto", "classification", "generation"):
            raise ValueError(f"task={self.task!r}: use classification, generation or auto.")
        if self.pooling is not None:
            check_pooling(self.pooling)
        if self.test_data is None and not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out!r} must be a share from 0 to below 1.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length!r} must be at least 2.")
        if self.feature_batch_size < 1:
            raise ValueError(f"feature_batch_size={self.feature_batch_size!r} must be at least 1.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: use {', '.join(DTYPES)}.")
