"""The last layer of a classifier of transformers: what it is given, and new weights for it."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from hf_softext.heads.backbone import backbone, evaluating, input_device
from hf_softext.heads.features import Extraction
from hf_softext.heads.labels import check_rows
from hf_softext.heads.token_rows import token_rows


def classifier_layer(model: Any) -> nn.Linear:
    """The linear layer that makes the logits of a classifier.

    Raises:
        ValueError: there is none with as many outputs as the config has labels, outside of the
            backbone; or several; or it has no bias.
    """
    classes = model.config.num_labels
    inner = {id(module) for module in backbone(model).modules()}
    found = [
        module
        for name, module in model.named_modules()
        # peft keeps the layer that it trains a copy of
        if isinstance(module, nn.Linear) and "original_module" not in name
        if id(module) not in inner and module.out_features == classes
    ]
    if len(found) != 1:
        raise ValueError(
            f"model={type(model).__name__} has {len(found)} linear layers of {classes} outputs "
            "behind its backbone, and one is needed: load it for sequence classification, with "
            "num_labels for your classes."
        )
    if found[0].bias is None:
        raise ValueError(
            f"the last layer of {type(model).__name__} has no bias, without which a probe is not "
            "the same classifier: keep the probe beside the model, with NaiveBayesProbe.fit."
        )
    return found[0]


def classifier_inputs(
    model: Any, tokenizer: Any, dataset: Any, **options: Unpack[Extraction]
) -> Tensor:
    """What the last layer of a classifier is given for each row.

    A head often has a layer or two before its last one, which stay as they are: a probe that is to
    take the last layer's place is fitted on these and not on hidden states.

    Args:
        model: a sequence classifier of transformers.
        tokenizer: of the model.
        dataset: as `extract_features` takes it.
        **options: text_column, batch_size, max_length, progress; nothing is kept in a cache.

    Returns:
        (N, D), float32, on the CPU, in the order of the dataset.

    Raises:
        ValueError: as `classifier_layer` and `extract_features` say.
    """
    layer, seen = classifier_layer(model), []
    rows = token_rows(
        dataset,
        tokenizer,
        backbone(model),
        options.get("text_column", "text"),
        options.get("max_length"),
    )
    features = torch.empty(len(rows), layer.in_features)
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad(), evaluating(model):
            size, progress = options.get("batch_size", 32), options.get("progress", True)
            for chosen in rows.batches(size, progress):
                batch = {k: one.to(input_device(model)) for k, one in rows.batch(chosen).items()}
                seen.clear()
                model(**batch)
                if len(seen) != 1 or seen[0].shape != (len(chosen), layer.in_features):
                    shapes = ", ".join(str(tuple(one.shape)) for one in seen) or "nothing"
                    raise ValueError(
                        f"the last layer of {type(model).__name__} is given {shapes} for "
                        f"{len(chosen)} rows: one vector a row is needed."
                    )
                features[chosen] = seen[0].float().cpu()
    finally:
        handle.remove()
    check_rows(features)
    return features


@torch.no_grad()
def write_classifier(model: Any, layer: nn.Linear) -> None:
    """Put a linear layer's weights into the last layer of a classifier.

    `save_pretrained` then writes a checkpoint that needs nothing of this package, and training may
    go on from there.

    Args:
        model: a sequence classifier of transformers.
        layer: fitted on `classifier_inputs`, by `NaiveBayesProbe.to_linear` or `fit_probe`.

    Raises:
        ValueError: shapes that differ, a layer without bias, or weights too large for the model's
            precision.
    """
    target = classifier_layer(model)
    if target.weight.shape != layer.weight.shape or layer.bias is None:
        raise ValueError(
            f"layer with a weight of shape {tuple(layer.weight.shape)} must have a bias and be of "
            f"shape {tuple(target.weight.shape)}, as the last layer of {type(model).__name__}."
        )
    weight, bias = layer.weight.to(target.weight), layer.bias.to(target.bias)
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(
            f"weights up to {float(layer.weight.abs().max()):.1e} do not fit into "
            f"{target.weight.dtype}: load the model in bfloat16 or float32."
        )
    target.weight.copy_(weight)
    target.bias.copy_(bias)
