"""Rows of the catalogue: losses."""

from hf_softext.catalog.row import Method, Paper

_COMP_SUM = Paper(
    title="Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
    authors="Anqi Mao, Mehryar Mohri, Yutao Zhong",
    year=2023,
    arxiv="2304.07288",
)
_GCE = Paper(
    title=("Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels"),
    authors="Zhilu Zhang, Mert R. Sabuncu",
    year=2018,
    arxiv="1805.07836",
)
_MAE = Paper(
    title="Robust Loss Functions under Label Noise for Deep Neural Networks",
    authors="Aritra Ghosh, Himanshu Kumar, P. S. Sastry",
    year=2017,
    arxiv="1712.09482",
)
_GROKKING = Paper(
    title="Grokking at the Edge of Numerical Stability",
    authors="Lucas Prieto, Melih Barsbey, Pedro A. M. Mediano, Tolga Birdal",
    year=2025,
    arxiv="2501.04697",
)
_Z_LOSS = Paper(
    title="The Z-loss: a shift and scale invariant classification loss belonging to the Spherical "
    "Family",
    authors="Alexandre de Brébisson, Pascal Vincent",
    year=2016,
    arxiv="1604.08859",
)
_LDR = Paper(
    title=(
        "Label Distributionally Robust Losses for Multi-class Classification: Consistency, "
        "Robustness and Adaptivity"
    ),
    authors="Dixian Zhu, Yiming Ying, Tianbao Yang",
    year=2023,
    arxiv="2112.14869",
)
_ANYLOSS = Paper(
    title="AnyLoss: Transforming Classification Metrics into Loss Functions",
    authors="Doheon Han, Nuno Moniz, Nitesh V. Chawla",
    year=2024,
    arxiv="2405.14745",
)
_ENSLOSS = Paper(
    title=(
        "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification"
    ),
    authors="Ben Dai",
    year=2025,
    arxiv="2409.00908",
)
_DEXML = Paper(
    title="Dual-encoders for Extreme Multi-label Classification",
    authors=(
        "Nilesh Gupta, Devvrit Khatri, Ankit S. Rawat, Srinadh Bhojanapalli, Prateek Jain, "
        "Inderjit Dhillon"
    ),
    year=2024,
    arxiv="2310.10636",
)
_SVM = Paper(
    title="Deep Learning using Linear Support Vector Machines",
    authors="Yichuan Tang",
    year=2013,
    arxiv="1306.0239",
)
_HYPERSPHERE = Paper(
    title="Hyperspherical embedding for novel class classification",
    authors="Rafael S. Pereira, Alexis Joly, Patrick Valduriez, Fabio Porto",
    year=2021,
    arxiv="2102.03243",
)
_HYBRID = Paper(
    title=(
        "Improving Arabic Multi-Label Emotion Classification using Stacked Embeddings and Hybrid "
        "Loss Function"
    ),
    authors=(
        "Muhammad Azeem Aslam, Wang Jun, Nisar Ahmed, Muhammad Imran Zaman, Li Yanan, Hu Hongfei, "
        "Wang Shiyu, Xin Liu"
    ),
    year=2024,
    arxiv="2410.03979",
)
_AGGREGATE = Paper(
    title="Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions",
    authors=("Adel Javanmard, Lin Chen, Vahab Mirrokni, Ashwinkumar Badanidiyuru, Gang Fu"),
    year=2024,
    arxiv="2401.11081",
)
_DHKD = Paper(
    title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
    authors="Penghui Yang, Chen-Chen Zong, Sheng-Jun Huang, Lei Feng, Bo An",
    year=2024,
    arxiv="2411.08937",
)
_KD = Paper(
    title="Distilling the Knowledge in a Neural Network",
    authors="Geoffrey Hinton, Oriol Vinyals, Jeff Dean",
    year=2015,
    arxiv="1503.02531",
)
_LANDMARK = Paper(
    title=("Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks"),
    authors="Ali Pourramezan Fard, Mohammad H. Mahoor",
    year=2022,
    arxiv="2111.07047",
)
_DR_IRAT = Paper(
    title="Doubly Robust Instance-Reweighted Adversarial Training",
    authors="Daouda Sow, Sen Lin, Zhangyang Wang, Yingbin Liang",
    year=2024,
    arxiv="2308.00311",
)


def _row(name: str, summary: str, paper: Paper, path: str, status: str = "stable") -> Method:
    return Method(
        name=name,
        family="loss",
        summary=summary,
        paper=paper,
        path=f"hf_softext.losses.{path}",
        usage=f'SoftextTrainer(..., loss="{name}")',
        status=status,
    )


ROWS: tuple[Method, ...] = (
    _row("ce", "cross-entropy, with label smoothing", _COMP_SUM, "cross_entropy:CrossEntropyLoss"),
    _row(
        "comp_sum",
        "one family from sum-exponential over cross-entropy to the mean absolute error",
        _COMP_SUM,
        "comp_sum:CompSumLoss",
    ),
    _row("gce", "generalised cross-entropy, (1 - p^q) / q", _GCE, "comp_sum:GceLoss"),
    _row("mae", "one minus the probability of the label", _MAE, "comp_sum:MaeLoss"),
    _row(
        "stablemax_ce",
        "cross-entropy of StableMax, which cannot collapse in floating point",
        _GROKKING,
        "stablemax_ce:StableMaxCrossEntropyLoss",
    ),
    _row(
        "spherical_z",
        "the Z-loss: softplus of the label's standardised logit",
        _Z_LOSS,
        "spherical_z:SphericalZLoss",
    ),
    _row(
        "ldr_kl",
        "worst-case weights over the labels: margin cross-entropy with a temperature",
        _LDR,
        "ldr_kl:LdrKlLoss",
    ),
    _row(
        "aldr_kl",
        "ldr_kl with a temperature learned for every sample",
        _LDR,
        "aldr_kl:AldrKlLoss",
    ),
    _row(
        "anyloss",
        "a metric of the confusion matrix, made differentiable",
        _ANYLOSS,
        "anyloss:AnyLoss",
    ),
    _row(
        "ensloss",
        "another calibrated loss at every step, by random derivatives",
        _ENSLOSS,
        "ensloss:EnsLoss",
    ),
    _row(
        "decoupled_softmax",
        "softmax loss in which the positives of a row do not compete",
        _DEXML,
        "decoupled_softmax:DecoupledSoftmaxLoss",
    ),
    _row(
        "soft_topk",
        "log of a differentiable membership in the top k",
        _DEXML,
        "soft_topk:SoftTopkLoss",
    ),
    _row("l1_svm", "hinge loss, one class against the rest", _SVM, "svm:L1SvmLoss"),
    _row("l2_svm", "squared hinge loss, one class against the rest", _SVM, "svm:L2SvmLoss"),
    _row(
        "crammer_singer",
        "hinge on the margin to the best other class",
        _SVM,
        "svm:CrammerSingerLoss",
    ),
    _row(
        "normalized_softmax",
        "cross-entropy of cosines between features and class vectors",
        _HYPERSPHERE,
        "normalized_softmax:NormalizedSoftmaxLoss",
        "experimental",
    ),
    _row(
        "hybrid_multilabel",
        "weighted binary cross-entropy, label correlation and a contrast of features",
        _HYBRID,
        "hybrid_multilabel:HybridMultilabelLoss",
        "experimental",
    ),
    _row(
        "aggregate",
        "labels known as means of bags: bag loss, instance loss, or between",
        _AGGREGATE,
        "aggregate:AggregateLoss",
    ),
    _row("kd", "cross-entropy and the softened teacher", _KD, "distillation:KdLoss"),
    _row(
        "dhkd",
        "cross-entropy on one head, the teacher on another that is thrown away",
        _DHKD,
        "distillation:DualHeadLoss",
    ),
    _row(
        "assistive_kd",
        "regression helped by a tolerant and a tough teacher",
        _LANDMARK,
        "assistive_kd:AssistiveKdLoss",
    ),
    _row(
        "adv_comp_sum",
        "comp_sum with a bound on what a perturbation may change",
        _COMP_SUM,
        "adv_comp_sum:AdvCompSumLoss",
    ),
    _row(
        "dr_irat",
        "adversarial training with the weights of the worst case over the samples",
        _DR_IRAT,
        "dr_irat:DrIratLoss",
        "experimental",
    ),
)
