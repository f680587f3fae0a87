"""PEFT's own tests, as they are in its source distribution, on SNNK.

    python tests/peft_acceptance/run.py [VERSION ...]

For each version of PEFT: its tests are fetched into build/, and the version itself too if another
one is installed; then those of its tests that are about any method run on this one. It fails if a
test fails, if one is skipped for a reason that docs/peft_acceptance.md does not explain, or if
fewer pass than it says there. `--write` writes the figures of that page anew.
"""

import argparse
import collections
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "peft_acceptance.md"
# the oldest that works here, and the newest
PINNED = ("0.20.0", "0.21.2")
# what their tests of images and of language models import, which do not run here
STUB = "class StableDiffusionPipeline:\n    pass\n"
FIGURES = re.compile(r"^\| (\S+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def pip(*words: str) -> None:
    """Run pip quietly."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words]
    subprocess.run(command, check=True)


def fetch(version: str, folder: Path) -> None:
    """Put the tests of a version, and the version if it is not installed, into a new folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        new = Path(name) / "new"
        new.mkdir()
        pip("download", "--no-deps", "--no-binary", ":all:", "-d", name, f"peft=={version}")
        with tarfile.open(next(Path(name).glob("peft-*.tar.gz"))) as archive:
            archive.extractall(name, filter="data")
        shutil.move(Path(name) / f"peft-{version}" / "tests", new / "tests")
        # neither is in the distribution
        (new / "tests" / "__init__.py").touch()
        (new / "pytest.ini").write_text("[pytest]\n")
        (new / "stubs").mkdir()
        (new / "stubs" / "diffusers.py").write_text(STUB)
        if importlib.metadata.version("peft") != version:
            pip("install", "--no-deps", "--target", str(new / "site"), f"peft=={version}")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def run(version: str, jobs: int) -> tuple[int, int, collections.Counter[str]]:
    """Run the tests of a version.

    Returns:
        How many passed, how many failed, and for each reason how many were skipped.
    """
    folder = ROOT / "build" / "peft_acceptance" / version
    here = importlib.metadata.version("peft") == version
    if not (folder / "tests").is_dir() or not (here or (folder / "site").is_dir()):
        fetch(version, folder)
    shutil.copy(HERE / "extension.py", folder / "tests" / "test_on_snnk.py")
    paths = [folder / "stubs", ROOT, *([] if here else [folder / "site"])]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, reversed(paths))),
    }
    check = f"import peft; assert peft.__version__ == {version!r}, peft.__file__"
    subprocess.run([sys.executable, "-c", check], env=environment, cwd=folder, check=True)
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-n", str(jobs)]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}"]
    subprocess.run([*command, "tests/test_on_snnk.py"], env=environment, cwd=folder, check=False)
    passed, failed, skipped = 0, 0, collections.Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        results = {child.tag: child for child in case}
        if "skipped" in results:
            # pytest puts the place before some of them
            skipped[results["skipped"].attrib["message"].split(": ", 1)[-1]] += 1
        elif results.keys() & {"failure", "error"}:
            failed += 1
        else:
            passed += 1
    return passed, failed, skipped


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=PINNED, metavar="VERSION")
    parser.add_argument("--jobs", type=int, default=2, help="processes of pytest [2]")
    parser.add_argument("--write", action="store_true", help="write the figures into the page")
    given = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    known = {version: int(passed) for version, passed, _ in FIGURES.findall(page)}
    mistakes, lines = [], []
    for version in given.versions:
        passed, failed, skipped = run(version, given.jobs)
        print(f"PEFT {version}: {passed} passed, {sum(skipped.values())} skipped, {failed} failed")
        for reason, count in skipped.most_common():
            print(f"  {count} skipped: {reason}")
            if f"`{reason}`" not in page:
                mistakes.append(f"PEFT {version}: {PAGE} does not explain {reason!r}")
        if failed:
            mistakes.append(f"PEFT {version}: {failed} tests fail")
        if passed < known.get(version, 1) and not given.write:
            mistakes.append(f"PEFT {version}: {passed} tests passed, {PAGE} says {known[version]}")
        lines.append(f"| {version} | {passed} | {sum(skipped.values())} |")
    if given.write and not mistakes:
        start, end = (page.index(mark) for mark in ("| --- | --- | --- |\n", "\n\nSkipped"))
        rule = "| --- | --- | --- |\n"
        PAGE.write_text(page[: start + len(rule)] + "\n".join(lines) + page[end:], "utf-8")
    print(*mistakes, sep="\n")
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
