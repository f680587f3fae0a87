"""The pipeline task "sdm-text-classification"."""

import inspect
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import Pipeline

from hf_softext.heads.backbone import backbone
from hf_softext.heads.sdm.canonical import of_class
from hf_softext.heads.sdm.model import SdmForSequenceClassification
from hf_softext.heads.sdm.saved_model import register_config
from hf_softext.heads.token_rows import UNBOUNDED, longest_row

TASK = "sdm-text-classification"


class SdmTextClassificationPipeline(Pipeline):
    """Labels of texts, whether they may be relied on, and the training rows behind them.

    For each text: "label"; "score", the output of that class, and "score_lower", its lower bound;
    "admit" and "reason", see `reasons`; "admit_lower", whether the lower bound is admitted too;
    "similarity", "distance" (a rank: 1 as near as any calibration row, 0 farther than all) and
    "ood"; and "exemplars", the nearest training rows, each with "id", "text", "label", "predicted"
    and "squared_distance". The label is None where the model's output is not finite.

    Args:
        model: an `SdmForSequenceClassification`.
        tokenizer: of its backbone.
        top_exemplars: how many training rows are shown, 3 by default; at the call too.
        **kwargs: of `transformers.Pipeline`. What the call takes besides is the tokenizer's, such
            as `max_length`; by default texts are cut as in the fit, or to what the model takes.

    Raises:
        TypeError: another model, or an option that is none.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.model, SdmForSequenceClassification):
            raise TypeError(
                f"{TASK} needs an SdmForSequenceClassification, not {type(self.model).__name__}: "
                "make one with from_backbone, or name a folder that one was saved in. (If that is "
                "what you did, load it with SdmForSequenceClassification.from_pretrained, which "
                "says what is wrong.)"
            )
        longest = longest_row(backbone(self.model.model), self.tokenizer)
        longest = min(longest, self.model.head.config.max_length or longest)
        # a tokenizer has no length without bound
        self._cut = {"truncation": True, "max_length": longest} if longest < UNBOUNDED else {}

    def _sanitize_parameters(self, **parameters: Any):
        shown = parameters.pop("top_exemplars", None)
        known = inspect.signature(PreTrainedTokenizerBase.__call__).parameters
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            # a tokenizer would leave it out, in silence
            raise TypeError(
                f"{unknown[0]!r} is no option of {TASK}: give top_exemplars, or what a tokenizer "
                "takes, such as max_length."
            )
        return parameters, {} if shown is None else {"top_exemplars": shown}, {}

    def preprocess(self, input_: str, **parameters: Any) -> Any:
        """Tokenise a text; a mapping has "text" and "text_pair"."""
        texts = {"text": input_} if isinstance(input_, str) else dict(input_)
        if self.tokenizer is None:
            raise ValueError("tokenizer is missing: give the one of the model's backbone.")
        return self.tokenizer(**texts, return_tensors="pt", **{**self._cut, **parameters})

    def _forward(self, model_inputs: Any, top_exemplars: int = 3) -> dict[str, Any]:
        model: Any = self.model
        output = model(**model_inputs)
        prediction = output.prediction.clamp(min=0)
        return {
            "prediction": output.prediction.tolist(),
            "score": of_class(output.probs, prediction).tolist(),
            "score_lower": of_class(output.probs_lower, prediction).tolist(),
            "admit": output.admit.tolist(),
            "admit_lower": output.admit_lower.tolist(),
            "reason": output.reason,
            "ood": output.is_ood.tolist(),
            "similarity": output.similarity.tolist(),
            "distance": output.distance.tolist(),
            "exemplars": model.head.neighbours(output, top_exemplars),
        }

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Name the class."""
        # transformers takes a batch apart, but not a single text
        single = isinstance(model_outputs["prediction"], list)
        found = {name: value[0] if single else value for name, value in model_outputs.items()}
        prediction = found.pop("prediction")
        model: Any = self.model
        return {"label": model.head.label_name(prediction), **found}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write model and tokenizer; no code goes along, as this package has it."""
        self.model.save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)


def register_pipeline() -> None:
    """Make the task known to transformers; calling it again changes nothing.

    Raises:
        ValueError: another package has registered the name.
    """
    register_config()
    present = PIPELINE_REGISTRY.supported_tasks.get(TASK, {}).get("impl")
    if present is SdmTextClassificationPipeline:
        return
    if present is not None and present.__module__ != __name__:
        raise ValueError(
            f"the pipeline task {TASK!r} is taken by {present.__module__}; import hf_softext "
            "without that package."
        )
    # the module may have been reloaded, and transformers warns of a name that it has
    PIPELINE_REGISTRY.supported_tasks.pop(TASK, None)
    PIPELINE_REGISTRY.register_pipeline(
        TASK, SdmTextClassificationPipeline, SdmForSequenceClassification, type="text"
    )
