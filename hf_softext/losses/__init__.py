"""Losses by name: what turns logits into a number to minimise.

loss = get_loss("ldr_kl", lam=10.0)
loss(logits, labels).backward()
"""

from hf_softext.losses.base import SoftextLoss
from hf_softext.losses.registry import get_loss, list_losses

__all__ = ["SoftextLoss", "get_loss", "list_losses"]
