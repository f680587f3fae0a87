"""What the losses aim at, as metrics of `evaluate` that need no hub.

from hf_softext.metrics import GMean

GMean().compute(predictions=[0, 1, 1], references=[0, 1, 0])
"""

from hf_softext.metrics.balanced_accuracy import BalancedAccuracy, balanced_accuracy
from hf_softext.metrics.f_beta import FBeta, f_beta
from hf_softext.metrics.g_mean import GMean, g_mean
from hf_softext.metrics.precision_at_k import PrecisionAtK, precision_at_k
from hf_softext.metrics.selective import (
    Aurc,
    Auroc,
    SelectiveAccuracy,
    TnrAtTpr,
    aurc,
    auroc,
    selective_accuracy,
    tnr_at_tpr,
)

__all__ = [
    "Aurc",
    "Auroc",
    "BalancedAccuracy",
    "FBeta",
    "GMean",
    "PrecisionAtK",
    "SelectiveAccuracy",
    "TnrAtTpr",
    "aurc",
    "auroc",
    "balanced_accuracy",
    "f_beta",
    "g_mean",
    "precision_at_k",
    "selective_accuracy",
    "tnr_at_tpr",
]
