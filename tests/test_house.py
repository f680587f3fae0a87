"""The rules of the house: who imports whom, how large a file is, what a wheel holds, what an
import costs."""

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_softext
from hf_softext.catalog import CATALOG, find

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_softext"
MODULES = sorted(PACKAGE.rglob("*.py"))

# a room may import from itself and from these; the first are the deepest
BASE = {"version", "catalog", "resume", "functional", "data"}
ALLOWED = {
    "__init__": {"version"},
    "version": set(),
    "catalog": set(),
    "resume": set(),
    "functional": set(),
    "data": {"functional"},
    "attention": {"functional", "catalog"},
    "ops": {"functional"},
    "optim": {"functional"},
    "generation": {"functional"},
    "losses": {"functional", "catalog"},
    "metrics": set(),
    "quantization": BASE,
    "adapters": {"functional", "catalog"},
    "heads": {"functional", "catalog", "resume"},
    "registration": {"catalog", "attention", "quantization", "adapters", "heads"},
    "coverage": BASE | {"attention", "registration"},
    "training": BASE
    | {
        "adapters",
        "attention",
        "heads",
        "losses",
        "metrics",
        "optim",
        "quantization",
        "registration",
    },
    "demo": BASE | {"attention", "registration", "training"},
    "cli": BASE
    | {
        "adapters",
        "attention",
        "heads",
        "losses",
        "quantization",
        "registration",
        "coverage",
        "training",
        "demo",
    },
}
KNOWS_TRANSFORMERS = {
    "adapters",
    "data",
    "generation",
    "heads",
    "metrics",
    "quantization",
    "registration",
    "coverage",
    "training",
    "demo",
    "cli",
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "hf_softext" and len(parts) > 1:
            assert parts[1] == room(path) or parts[1] in ALLOWED[room(path)], name
        if parts[0] in ("transformers", "peft", "accelerate", "datasets"):
            assert room(path) in KNOWS_TRANSFORMERS, name


def test_launchable_programs_call_the_training_package_only():
    for path in (ROOT / "trainers").glob("*.py"):
        ours = {name for name in imported(path) if name.startswith("hf_softext")}
        assert all(name == "hf_softext" or name.startswith("hf_softext.training") for name in ours)
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def test_no_source_file_is_above_16_kb():
    folders = ("hf_softext", "trainers", "examples", "benchmarks", "tests")
    sizes = {str(p): p.stat().st_size for folder in folders for p in (ROOT / folder).rglob("*.py")}
    assert len(sizes) > 20
    assert {path: size for path, size in sizes.items() if size > 16_384} == {}


def test_public_names_resolve():
    for name in hf_softext.__all__:
        assert getattr(hf_softext, name) is not None
    assert set(hf_softext.__all__) == {"__version__", *hf_softext._LAZY}
    with pytest.raises(AttributeError, match="no attribute 'apply_attentoin'"):
        _ = hf_softext.apply_attentoin


def test_functional_exports_what_it_says():
    functional = importlib.import_module("hf_softext.functional")
    assert all(callable(getattr(functional, name)) for name in functional.__all__)


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_catalogue_rows_are_complete(row):
    implementation = row.load()
    # an attention method is an object with a name, a quantization method and an adapter a config, a
    # head a class, the others are functions
    if row.family == "quantization":
        assert implementation().quant_method == row.name
    elif row.family == "adapter":
        assert implementation().peft_type == row.name.upper()
    elif row.family == "head":
        assert implementation.__name__.lower().startswith(row.name.replace("_", ""))
    else:
        assert getattr(implementation, "name", None) or implementation.__name__ == row.name
    assert row.name in row.usage.lower()
    assert row.paper.year > 2000
    assert "." in row.paper.arxiv
    assert row.status in ("stable", "experimental")
    assert not any(word in row.name for word in ("/", "|", "sdpa", "flash", "flex", "paged"))


def test_catalogue_suggests_the_nearest_name():
    with pytest.raises(
        ValueError,
        match=r"Unknown attention method 'softplus_rewieghted'.*mean 'softplus_reweighted'",
    ):
        find("softplus_rewieghted", "attention")


def test_wheel_has_one_top_level_name(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    info = f"hf_softext-{hf_softext.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"hf_softext", info}
    for needed in (
        "hf_softext/py.typed",
        "hf_softext/demo/data/clinc150.json.xz",
        "hf_softext/ops/two_pass_softmax.cpp",
        f"{info}/licenses/LICENSE",
    ):
        assert needed in names


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_lean():
    code = (
        "import sys, time; start = time.process_time(); import hf_softext; "
        "print(time.process_time() - start, [m for m in ('torch', 'transformers', 'peft') if m in "
        "sys.modules])"
    )
    # the best of a few, as the machine may be busy with other tests
    outputs = [run_python(code).split(maxsplit=1) for _ in range(5)]
    assert all(loaded.strip() == "[]" for _, loaded in outputs)
    assert min(float(seconds) for seconds, _ in outputs) < 0.1


def test_help_answers_at_once():
    code = (
        "import sys, time\nfrom hf_softext.cli import app\nsys.argv = ['softext', '--help']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "print('seconds', time.process_time(), 'torch' in sys.modules)"
    )
    ends = [run_python(code).split("seconds ")[1].split() for _ in range(3)]
    assert all(loaded == "False" for _, loaded in ends)
    assert min(float(seconds) for seconds, _ in ends) < 0.5
