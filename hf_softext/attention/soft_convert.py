"""A vision transformer whose attention modules become SOFT's."""

from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_softext.attention.record import BLOCK, KEY
from hf_softext.attention.soft_module import SoftAttention, SoftKernel

Target = TypeVar("Target")

# model type -> tokens before the grid of patches
_PREFIX = {"vit": 1, "deit": 2, "dinov2": 1}
_DEFAULTS = {"ratio": 2, "conv_size": 3, "norm": True, "iterations": 20}
# the key in config.softext; and, in place of an attention implementation, what stops transformers
# from loading the checkpoint into softmax attention with random keys
_RECORD = "convert_to_soft"


def convert_to_soft(
    model: Target,
    *,
    ratio: int | None = None,
    conv_size: int | None = None,
    norm: bool | None = None,
    iterations: int | None = None,
) -> Target:
    """Replace each attention module of a ViT, DeiT or DINOv2 by SOFT's module.

    The projections of query, value and output are kept; the one of the key is dropped, as SOFT has
    one projection for both. The landmark convolution starts as a mean over its square, the local
    branch at 0. This changes the function: train the model before you use it. Class and
    distillation tokens, of which SOFT has none, are landmarks of their own. Attention dropout is
    not applied, and no attention weights are returned.

    Args:
        model: a transformers model, changed in place; or a model class, to load what was saved.
        ratio: side of the square of patches that makes a landmark; 2 by default.
        conv_size: side of the filters on the values, odd; 3 by default, 0 for none.
        norm: SOFT++ (default), which keeps the scale of the output closer to softmax's, or SOFT.
        iterations: of the pseudo-inverse; 20 by default.

    Returns:
        `model`; for a class a subclass of it, whose `from_pretrained` loads a converted checkpoint.

    Raises:
        ValueError: another kind of model, one that is converted already, bad numbers, or a class
            with a checkpoint that was not converted.

    Notes:
        The projections have to be named q_proj, k_proj, v_proj and o_proj, which older releases of
        transformers 5 do not do in DINOv2.

        The numbers are saved in `config.softext`, and `config.json` names "convert_to_soft" as
        attention implementation, which makes plain `from_pretrained` refuse the checkpoint instead
        of filling in random weights.

    Example:
        ```python
        model = convert_to_soft(ViTForImageClassification.from_pretrained("any/vit"))
        ...  # train
        model.save_pretrained("out")
        again = convert_to_soft(ViTForImageClassification).from_pretrained("out")
        ```
    """
    given = {"ratio": ratio, "conv_size": conv_size, "norm": norm, "iterations": iterations}
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(model, type):
        if given:
            raise ValueError(f"The checkpoint says what {', '.join(given)} is: leave it out.")
        if not hasattr(model, "base_model_prefix"):
            raise ValueError(
                f"convert_to_soft takes a model class, such as ViTForImageClassification, not "
                f"{model.__name__}."
            )
        return _loader(model)
    return _convert(model, _DEFAULTS | given)


def _loader(model_class: Any) -> Any:
    def __init__(self, config: Any, *args: Any, **kwargs: Any):  # noqa: N807
        model_class.__init__(self, config, *args, **kwargs)
        record = (getattr(config, BLOCK, None) or {}).get(_RECORD)
        if record is None:
            raise ValueError(
                f"The checkpoint was not saved from a converted model: load it with "
                f"{model_class.__name__}.from_pretrained, then convert_to_soft(model)."
            )
        _convert(self, record)

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = super(loader, cls).from_pretrained(
            *args, **{"attn_implementation": "sdpa"} | kwargs
        )
        # with output_loading_info the model comes with a report
        (loaded[0] if isinstance(loaded, tuple) else loaded).__class__ = model_class
        return loaded

    members = {
        "__init__": __init__,
        "from_pretrained": classmethod(from_pretrained),
        "__doc__": model_class.__doc__,
        # transformers translates the names of weights for classes of its own modules only
        "__module__": model_class.__module__,
    }
    loader = type(model_class.__name__, (model_class,), members)
    return loader


def _convert(model: Any, numbers: dict[str, Any]) -> Any:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if config is None or kind not in _PREFIX:
        raise ValueError(f"convert_to_soft takes {', '.join(_PREFIX)} models, not {kind!r}.")
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if all(isinstance(getattr(child, f"{x}_proj", None), nn.Linear) for x in "qkvo")
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention modules with q_proj, k_proj, v_proj and "
            f"o_proj: it is converted already, or of another version of transformers."
        )
    unknown = set(numbers) - set(_DEFAULTS)
    if unknown:
        raise ValueError(f"config.{BLOCK} has unknown numbers for convert_to_soft: {unknown}.")
    image, patch = _pair(config.image_size), _pair(config.patch_size)
    grid = (image[0] // patch[0], image[1] // patch[1])
    made = [(p, n, SoftVisionAttention(c, grid, _PREFIX[kind], **numbers)) for p, n, c in found]
    for parent, name, module in made:
        setattr(parent, name, module)
    for module in model.modules():
        if hasattr(getattr(module, "embeddings", None), "patch_embeddings"):
            module.register_forward_pre_hook(partial(_with_grid, patch), with_kwargs=True)
    model.set_attn_implementation("sdpa")
    setattr(config, BLOCK, {_RECORD: dict(numbers)})
    setattr(config, KEY, _RECORD)
    return model


def _with_grid(patch: tuple[int, int], module: nn.Module, inputs: tuple, given: dict) -> Any:
    # only the pixels tell 2 rows of 8 patches from 4 of 4; an argument and no attribute, so that
    # checkpointing recomputes each pass with its own grid
    pixels = inputs[0] if inputs else given.get("pixel_values")
    if isinstance(pixels, Tensor) and pixels.dim() == 4:
        height, width = pixels.shape[2:]
        given = given | {"patch_grid": (height // patch[0], width // patch[1])}
    return inputs, given


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class SoftVisionAttention(SoftAttention):
    """`SoftAttention` in the place of a transformers attention module.

    Args:
        attention: the module that it replaces, whose projections it takes.
        grid: height and width of the patches' grid at the model's own resolution.
        prefix: tokens before the grid.
        ratio: see `SoftAttention`, as the others.
        conv_size: odd, or 0.
        norm: SOFT++.
        iterations: of the pseudo-inverse.
    """

    def __init__(
        self,
        attention: Any,
        grid: tuple[int, int],
        prefix: int,
        ratio: int,
        conv_size: int,
        norm: bool,
        iterations: int,
    ):
        nn.Module.__init__(self)
        self.heads, self.grid, self.prefix = attention.num_attention_heads, grid, prefix
        self.q_proj, self.v_proj, self.o_proj = (
            attention.q_proj,
            attention.v_proj,
            attention.o_proj,
        )
        head_dim = self.q_proj.out_features // self.heads
        kernel = SoftKernel(head_dim, self.heads, ratio, conv_size, norm, iterations)
        with torch.no_grad():
            mean = torch.eye(head_dim)[:, :, None, None] / ratio**2
            kernel.landmark_conv.weight.copy_(mean.expand_as(kernel.landmark_conv.weight))
            if kernel.conv is not None:
                kernel.conv.weight.zero_()
        self.kernel = kernel.to(self.q_proj.weight)
        self.train(attention.training)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        patch_grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend as the module that was replaced.

        Args:
            hidden_states: (B, N, dim).
            attention_mask: has to be None.
            patch_grid: height and width of the patches' grid, which a converted model passes; the
                model's own by default.
            **kwargs: what else the model passes; informational.

        Returns:
            (B, N, dim), and None for the weights.

        Raises:
            ValueError: a mask; or a grid that has not as many cells as there are patches.
        """
        if attention_mask is not None:
            raise ValueError(
                "attention_mask is not supported by a model from convert_to_soft: its landmarks "
                "are made of all patches."
            )
        patches = hidden_states.shape[1] - self.prefix
        grid = patch_grid or self.grid
        if patches != grid[0] * grid[1]:
            raise ValueError(
                f"{patches} patches are no grid of {grid}: pass their height and width as "
                f"patch_grid, as the whole model does where it gets pixel_values."
            )
        return super().forward(hidden_states, grid), None
