"""Pure tensor functions, one idea a file. Nothing here knows a model, a config or another part of
this package."""

from hf_softext.functional.chunked_attention import chunked_attention
from hf_softext.functional.extended_sum import ExtendedSum
from hf_softext.functional.fused_attention import fused_attention
from hf_softext.functional.gaussian import gaussian_attention, gaussian_kernel
from hf_softext.functional.gradient_alignment import align_gradients
from hf_softext.functional.gram_spherical import gram_standardized
from hf_softext.functional.kernel_features import linear_features, relu_features
from hf_softext.functional.label_dp import (
    bag_risk,
    optimal_bag_size,
    private_bag_means,
    release_epsilon,
)
from hf_softext.functional.linear_logsumexp import linear_logsumexp
from hf_softext.functional.linear_loss import linear_loss
from hf_softext.functional.logistic_regression import logistic_regression
from hf_softext.functional.low_rank_gaussian import low_rank_gaussian
from hf_softext.functional.masked_softmax import masked_softmax
from hf_softext.functional.naive_bayes import naive_bayes_linear
from hf_softext.functional.nearest_rows import leading_matches, nearest_rows
from hf_softext.functional.newton_pinv import newton_pinv
from hf_softext.functional.perp_grad import project_out
from hf_softext.functional.projected_ascent import projected_ascent
from hf_softext.functional.random_projection import random_projection
from hf_softext.functional.sdm import log_sdm, sdm, sdm_loss
from hf_softext.functional.shifted_exp import shifted_exp_
from hf_softext.functional.simplex import nearest_on_simplex
from hf_softext.functional.soft_topk import soft_topk
from hf_softext.functional.softmax_collapse import softmax_collapse
from hf_softext.functional.softplus import log_softplus, sharpen, softplus_normalize
from hf_softext.functional.stablemax import log_stablemax, stablemax, stablemax_logits
from hf_softext.functional.tied_gaussian import tied_covariance, tied_gaussian_scores, whitening
from hf_softext.functional.trig_features import cos_features, cos_weights, exponential_tower
from hf_softext.functional.unit_rows import unit_rows

__all__ = [
    "ExtendedSum",
    "align_gradients",
    "bag_risk",
    "chunked_attention",
    "cos_features",
    "cos_weights",
    "exponential_tower",
    "fused_attention",
    "gaussian_attention",
    "gaussian_kernel",
    "gram_standardized",
    "leading_matches",
    "linear_features",
    "linear_logsumexp",
    "linear_loss",
    "log_sdm",
    "log_softplus",
    "log_stablemax",
    "logistic_regression",
    "low_rank_gaussian",
    "masked_softmax",
    "naive_bayes_linear",
    "nearest_on_simplex",
    "nearest_rows",
    "newton_pinv",
    "optimal_bag_size",
    "private_bag_means",
    "project_out",
    "projected_ascent",
    "random_projection",
    "release_epsilon",
    "relu_features",
    "sdm",
    "sdm_loss",
    "sharpen",
    "shifted_exp_",
    "soft_topk",
    "softmax_collapse",
    "softplus_normalize",
    "stablemax",
    "stablemax_logits",
    "tied_covariance",
    "tied_gaussian_scores",
    "unit_rows",
    "whitening",
]
