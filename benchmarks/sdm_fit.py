"""Seconds and memory of fitting an SDM head.

    python benchmarks/sdm_fit.py                   # 15,000 rows of 384 features; minutes on CPU
    python benchmarks/sdm_fit.py --device cuda
    python benchmarks/sdm_fit.py --report          # prints the last run's table

Rows are of Gaussian classes that overlap. Memory is the peak beyond what was held before the fit.
"cpu_seconds" is the time that the process was computing, on all its threads: where others compute
too ("load"), it is less than the time that passed. Appends to results/sdm_fit.csv.
"""

import argparse
import os
import time

import torch
from _record import RESULTS, append, environment, markdown, peak_extra_mib, read
from torch import Tensor

from hf_softext.heads.sdm import SdmHead

CSV = RESULTS / "sdm_fit.csv"
COLUMNS = (
    "rows",
    "features",
    "exemplar_dim",
    "epochs",
    "splits",
    "index",
    "device",
    "load",
    "seconds",
    "cpu_seconds",
    "peak_mib",
)


def classes(rows: int, features: int, labels: int, device: str) -> tuple[Tensor, Tensor]:
    """Gaussian classes around means that are drawn too; nearly all rows can be told."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn((labels, features), generator=generator) * 3.2 / features**0.5
    found = torch.arange(rows) % labels
    drawn = torch.randn((rows, features), generator=generator) + means[found]
    return drawn.to(device), found.to(device)


def main() -> None:
    """Measure once, and append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--labels", type=int, default=4)
    parser.add_argument("--exemplar-dim", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--index", choices=("torch", "faiss"), default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="print what was measured last")
    args = parser.parse_args()
    if not args.report:
        features, labels = classes(args.rows, args.features, args.labels, args.device)
        heads, start, computing = [], time.perf_counter(), time.process_time()

        def fit() -> None:
            heads.append(
                SdmHead.fit_features(
                    features,
                    labels,
                    exemplar_dim=args.exemplar_dim,
                    epochs=args.epochs,
                    num_splits=args.splits,
                    index=args.index,
                )
            )

        peak = peak_extra_mib(fit, args.device)
        seconds, computing = time.perf_counter() - start, time.process_time() - computing
        test, wanted = classes(args.rows + 3_000, args.features, args.labels, args.device)
        output = heads[0](test[args.rows :])
        right = output.prediction == wanted[args.rows :]
        admitted = output.admit
        append(
            CSV,
            [
                {
                    **environment(args.device),
                    "rows": args.rows,
                    "features": args.features,
                    "labels": args.labels,
                    "exemplar_dim": args.exemplar_dim,
                    "epochs": args.epochs,
                    "splits": args.splits,
                    "index": args.index,
                    "load": f"{os.getloadavg()[1]:.1f}",
                    "seconds": f"{seconds:.1f}",
                    "cpu_seconds": f"{computing:.1f}",
                    "peak_mib": f"{peak:.0f}",
                    "accuracy": f"{right.float().mean():.4f}",
                    "admitted": f"{admitted.float().mean():.4f}",
                    "admitted_accuracy": f"{right[admitted].float().mean():.4f}",
                }
            ],
        )
    rows = read(CSV)[-1:]
    print(markdown(list(COLUMNS), [[row[name] for name in COLUMNS] for row in rows]))


if __name__ == "__main__":
    main()
