"""What the benchmarks share: where a figure was taken, how it is kept, how memory is measured."""

import csv
import ctypes
import gc
import platform
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_softext

RESULTS = Path(__file__).parent / "results"


def environment(device: str = "cpu") -> dict[str, str]:
    """Date, device and versions: what places a figure."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}"
    return {
        "date": date.today().isoformat(),
        "device": f"{name}, {torch.get_num_threads()} threads",
        "hf_softext": hf_softext.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, with a header where it is new.

    Raises:
        ValueError: the file has other columns.
    """
    rows = list(rows)
    path.parent.mkdir(exist_ok=True)
    present = read(path)
    if present and rows and list(present[0]) != list(rows[0]):
        raise ValueError(f"{path} has other columns: move it away first.")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if not present:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table for the README."""
    lines = [header, ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def peak_extra_mib(run: Callable[[], Any], device: str = "cpu") -> float:
    """Memory that a call needs beyond what is held before it, in MiB.

    On CPU this is the peak of the process's resident memory, which Linux counts anew after a
    write to `clear_refs`; on CUDA the allocator's.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # what was freed goes back to the system, so that it cannot hide what the call takes
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))
