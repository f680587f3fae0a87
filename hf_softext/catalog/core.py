"""Rows of the catalogue: attention, optimizers, ops, quantization, adapters, heads."""

from hf_softext.catalog.row import Method, Paper

_SOFTPLUS = Paper(
    title=(
        "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models"
    ),
    authors="Bo Gao, Michael W. Spratling",
    year=2025,
    arxiv="2501.13428",
)
_TWO_PASS = Paper(
    title="The Two-Pass Softmax Algorithm",
    authors="Marat Dukhan, Artsiom Ablavatski",
    year=2020,
    arxiv="2001.04438",
)
_BAQ = Paper(
    title="BAQ: Efficient Bit Allocation Quantization for Large Language Models",
    authors="Chao Zhang, Li Wang, Samson Lasaulce, Merouane Debbah",
    year=2025,
    arxiv="2506.05664",
)
_SNNK = Paper(
    title="Scalable Neural Network Kernels",
    authors=(
        "Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii "
        "Likhosherstov"
    ),
    year=2024,
    arxiv="2310.13225",
)
_SDM = Paper(
    title="Similarity-Distance-Magnitude Activations",
    authors="Allen Schmaltz",
    year=2025,
    arxiv="2509.12760",
)
_MAHALANOBIS = Paper(
    title=(
        "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial "
        "Attacks"
    ),
    authors="Kimin Lee, Kibok Lee, Honglak Lee, Jinwoo Shin",
    year=2018,
    arxiv="1807.03888",
)
_NAIVE_BAYES = Paper(
    title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    authors="Chenyu Zheng, Guoqiang Wu, Fan Bao, Yue Cao, Chongxuan Li, Jun Zhu",
    year=2023,
    arxiv="2302.02334",
)
_GROKKING = Paper(
    title="Grokking at the Edge of Numerical Stability",
    authors="Lucas Prieto, Melih Barsbey, Pedro A. M. Mediano, Tolga Birdal",
    year=2025,
    arxiv="2501.04697",
)
_SOFT = Paper(
    title="SOFT: Softmax-free Transformer with Linear Complexity",
    authors=(
        "Jiachen Lu, Jinghan Yao, Junge Zhang, Xiatian Zhu, Hang Xu, Weiguo Gao, Chunjing Xu, Tao "
        "Xiang, Li Zhang"
    ),
    year=2021,
    arxiv="2110.11945",
)
_SOFT_NORM = Paper(
    title="Softmax-free Linear Transformers",
    authors="Jiachen Lu, Junge Zhang, Xiatian Zhu, Jianfeng Feng, Tao Xiang, Li Zhang",
    year=2024,
    arxiv="2207.03341",
)

_ATTENTION = 'from_pretrained(..., attn_implementation="{}")'

ROWS: tuple[Method, ...] = (
    Method(
        name="softplus",
        family="attention",
        summary="softplus of length-scaled cosine scores instead of exp (LSSA)",
        paper=_SOFTPLUS,
        path="hf_softext.attention.softplus:SOFTPLUS",
        usage=_ATTENTION.format("softplus"),
    ),
    Method(
        name="softplus_reweighted",
        family="attention",
        summary="softplus attention whose weights are sharpened by a power (LSSAR)",
        paper=_SOFTPLUS,
        path="hf_softext.attention.softplus:SOFTPLUS_REWEIGHTED",
        usage=_ATTENTION.format("softplus_reweighted"),
    ),
    Method(
        name="stablemax",
        family="attention",
        summary="StableMax of the scaled scores: linear instead of exponential growth",
        paper=_GROKKING,
        path="hf_softext.attention.stablemax:STABLEMAX",
        usage=_ATTENTION.format("stablemax"),
    ),
    Method(
        name="soft",
        family="attention",
        summary="Gaussian kernel of query and key, not normalised; low rank for images (SOFT)",
        paper=_SOFT,
        path="hf_softext.attention.soft:SOFT",
        usage=_ATTENTION.format("soft"),
    ),
    Method(
        name="soft_norm",
        family="attention",
        summary="Gaussian kernel, rows divided by their sum; low rank for images (SOFT++)",
        paper=_SOFT_NORM,
        path="hf_softext.attention.soft:SOFT_NORM",
        usage=_ATTENTION.format("soft_norm"),
    ),
    Method(
        name="perp_grad",
        family="optimizer",
        summary="takes out of every gradient what only changes the length of the weights",
        paper=_GROKKING,
        path="hf_softext.optim.perp_grad:perp_grad",
        usage="hf_softext.perp_grad(optimizer)",
    ),
    Method(
        name="two_pass_softmax",
        family="op",
        summary="softmax and log-sum-exp of long CPU rows in fewer passes over memory",
        paper=_TWO_PASS,
        path="hf_softext.ops:two_pass_softmax",
        usage="hf_softext.ops.two_pass_softmax(logits)",
        status="experimental",
    ),
    Method(
        name="baq",
        family="quantization",
        summary="columns of weights get the bits that lower the loss most, to any average",
        paper=_BAQ,
        path="hf_softext.quantization.baq.config:BaqConfig",
        usage="from_pretrained(..., quantization_config=BaqConfig(bits=2.5, dataset=...))",
    ),
    Method(
        name="snnk",
        family="adapter",
        summary="adapters of random features and a trained readout, from scalable kernels (SNNK)",
        paper=_SNNK,
        path="hf_softext.adapters.snnk.config:SnnkConfig",
        usage="peft.get_peft_model(model, hf_softext.SnnkConfig(num_features=16))",
    ),
    Method(
        name="sdm",
        family="head",
        summary="admits a prediction where training rows near it speak for it, else refuses (SDM)",
        paper=_SDM,
        path="hf_softext.heads.sdm.head:SdmHead",
        usage="SdmHead.fit(model, tokenizer, train_dataset, alpha=0.95)",
    ),
    Method(
        name="mahalanobis",
        family="head",
        summary="flags inputs far from every class a classifier was trained on",
        paper=_MAHALANOBIS,
        path="hf_softext.heads.mahalanobis:MahalanobisDetector",
        usage="hf_softext.MahalanobisDetector().fit(model, tokenizer, train)",
    ),
    Method(
        name="naive_bayes",
        family="head",
        summary="linear probe in closed form: Gaussian naive Bayes with one variance",
        paper=_NAIVE_BAYES,
        path="hf_softext.heads.naive_bayes:NaiveBayesProbe",
        usage="hf_softext.heads.naive_bayes.NaiveBayesProbe().fit(model, tokenizer, train)",
    ),
)
