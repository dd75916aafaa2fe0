"""Run the tests that depend on diffusers under each version that is promised.

    make versions                    # all of them
    make versions ARGS="0.41.0"      # one

Each version is installed next to the others, without its dependencies, into a folder that is in
front of the environment's own. What differs between versions lives in
`ditaccel/core/_compat.py` alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The oldest that is promised, and the newest that the tests last passed with.
DIFFUSERS = ("0.41.0", "0.42.1")
TESTS = (
    "tests/api",
    "tests/caching",
    "tests/config",
    "tests/core",
    "tests/tuning",
    "tests/pipelines",
    "tests/attention/test_seam.py",
    "tests/conformance",
)


def run(version: str, folder: Path, tests: list[str]) -> int:
    """Test one version; the exit code of pytest."""
    target = folder / version
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(target), f"diffusers=={version}"], check=True)
    env = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    check = "import diffusers, sys; sys.exit(diffusers.__version__ != sys.argv[1])"
    subprocess.run([sys.executable, "-P", "-c", check, version], env=env, check=True)
    pytest = [sys.executable, "-P", "-m", "pytest", "--import-mode=importlib", "-q", "-W", "ignore"]
    return subprocess.run([*pytest, *tests], env=env, cwd=ROOT, check=False).returncode


def main() -> int:
    """Test the versions one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=DIFFUSERS, metavar="VERSION")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for version in args.versions:
            results[version] = run(version, Path(folder), list(args.tests))
    for version, code in results.items():
        print(f"diffusers {version}: {'passed' if code == 0 else f'failed (pytest {code})'}")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
