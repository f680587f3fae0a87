"""Experts as linear layers, and back.

transformers keeps the weights of all experts of a layer in two three-dimensional parameters. To be
quantized an expert has to be a pair of linear layers: `experts.gate_up.0` and `experts.down.0` are
those of the first. In a checkpoint they keep these names; the renaming that transformers applies to
the parameters of experts does not touch them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.quantization.baq.lazy_weight import LazyWeight

# what `use_experts_implementation` of transformers writes on a module, and what it has to be
_LAYOUT = {
    "has_gate": (True, "they have no gate"),
    "has_bias": (False, "they have biases"),
    "has_post_expert_norm": (False, "they have a norm of their own"),
    "is_transposed": (False, "their weights are transposed"),
    "is_concatenated": (True, "rows of gate and up projection alternate in their weights"),
}


class LoopedExperts(nn.Module):
    """Experts that run one after the other, each on the tokens that are routed to it.

    Made from the fused module, whose parameters the layers share until one is replaced. How many
    tokens an expert gets is known only when it runs, so `torch.compile` breaks the graph here.

    Args:
        fused: the experts as transformers has them; loses its parameters to this module.

    Attributes:
        gate_up: for each expert the linear layer (2 I, H).
        down: for each expert the linear layer (H, I).
    """

    _fused: Any

    def __init__(self, fused: Any):
        super().__init__()
        self.gate_up = _linears(fused.gate_up_proj)
        self.down = _linears(fused.down_proj)
        # where it may have tensors to move; the rest of the module stays out of sight
        self.act_fn = getattr(fused, "act_fn", None)
        fused.gate_up_proj = fused.down_proj = None
        self.__dict__["_fused"] = fused

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: (N, H).
            top_k_index: (N, k) experts of each token; those past the last are skipped.
            top_k_weights: (N, k).

        Returns:
            (N, H).
        """
        experts, chosen = top_k_index.flatten(), top_k_index.shape[-1]
        count = len(self.gate_up)
        counts = torch.bincount(experts.cpu(), minlength=count).tolist()
        places = experts.argsort(stable=True).split(counts)
        weights = top_k_weights.flatten()
        total = torch.zeros_like(hidden_states)
        for gate_up, down, mine in zip(self.gate_up, self.down, places[:count], strict=True):
            if len(mine):
                tokens = mine // chosen
                inner = self._fused._apply_gate(gate_up(hidden_states[tokens]))
                found = down(inner) * weights[mine, None]
                total.index_add_(0, tokens, found.to(total.dtype))
        return total

    @property
    def gate_up_proj(self) -> Tensor:
        """The fused weight (E, 2 I, H), for code that reads it; see `LazyWeight`."""
        return _stacked(self.gate_up)

    @property
    def down_proj(self) -> Tensor:
        """The same, (E, H, I)."""
        return _stacked(self.down)

    def fuse(self) -> nn.Module:
        """The fused module with the weights that the linear layers have now."""
        for name, layers in (("gate_up_proj", self.gate_up), ("down_proj", self.down)):
            weights = _weights(layers)
            learns = any(weight.requires_grad for weight in weights)
            fused = nn.Parameter(torch.stack(weights).detach(), requires_grad=learns)
            setattr(self._fused, name, fused)
        return self._fused.train(self.training)


def split_experts(model: nn.Module) -> tuple[list[str], list[tuple[str, str]]]:
    """Replace the fused experts of a model, in place, by linear layers.

    Args:
        model: any model, also on the meta device.

    Returns:
        The names of the modules that were split, and of those that look like experts but are of a
        kind that cannot be, with the reason.
    """
    split, kept = [], []
    for name, module in list(model.named_modules()):
        if isinstance(module._parameters.get("down_proj"), nn.Parameter):
            reason = _why_not(module)
            if reason is None:
                model.set_submodule(name, LoopedExperts(module))
                split.append(name)
            else:
                kept.append((name, reason))
    return split, kept


def fuse_experts(model: nn.Module) -> list[str]:
    """Undo `split_experts` wherever all experts of a module are plain linear layers.

    Returns:
        The names of the modules that were fused.
    """
    fused = []
    for name, module in list(model.named_modules()):
        if isinstance(module, LoopedExperts):
            layers = (*module.gate_up, *module.down)
            if all("weight" in layer._parameters for layer in layers):
                model.set_submodule(name, module.fuse())
                fused.append(name)
    return fused


def _why_not(module: nn.Module) -> str | None:
    """What stands in the way of splitting, if anything."""
    forward: Any = type(module).forward
    if not hasattr(forward, "__wrapped__") or not all(hasattr(module, one) for one in _LAYOUT):
        return "they do not say how their weights lie (`use_experts_implementation`)"
    for name, (expected, reason) in _LAYOUT.items():
        if getattr(module, name) != expected:
            return reason
    if {name for name, _ in module.named_parameters()} != {"gate_up_proj", "down_proj"}:
        return "they have parameters of their own beside gate_up_proj and down_proj"
    if any(module.get_parameter(name).dim() != 3 for name in ("gate_up_proj", "down_proj")):
        return "gate_up_proj and down_proj are not three-dimensional"
    return None


def _linears(fused: nn.Parameter) -> nn.ModuleList:
    """A linear layer for each expert, in the memory of the fused parameter."""
    layers = nn.ModuleList()
    for weight in fused.detach():
        rows, columns = weight.shape
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=fused.requires_grad)
        layers.append(layer)
    return layers


def _weights(layers: Any) -> list[Tensor]:
    return [layer.weight for layer in layers]


def _stacked(layers: nn.ModuleList) -> Tensor:
    first = _weights(layers)[0]
    like = torch.empty(len(layers), *first.shape, dtype=first.dtype, device="meta")
    return LazyWeight(lambda: torch.stack(_weights(layers)).detach(), like, first.device)
