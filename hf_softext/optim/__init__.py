"""What an optimizer's step is made to do differently; works on any optimizer of torch."""

from hf_softext.optim.perp_grad import perp_grad

__all__ = ["perp_grad"]
