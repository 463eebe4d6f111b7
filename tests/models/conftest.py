"""Models of every family as the hub holds them, and transformers 4 beside 5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TRANSFORMERS_4 = ["transformers==4.57.6", "huggingface_hub<1", "tokenizers==0.22.*"]
PATIENT = ["--timeout", "60", "--retries", "10"]  # of pip, with a slow registry


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family, made once in a session."""
    from tests.models.families import make_family

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = make_family(name, tmp_path_factory.mktemp(name.replace(".", "_")))
        return made[name]

    return folder


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Run families.py under transformers 4 with the torch that is installed; return what failed, and why.

    Without TRANSFORMERS_4, a folder that holds it already, it is fetched once a session.
    """
    found = os.environ.get("TRANSFORMERS_4")
    target = Path(found) if found else tmp_path_factory.mktemp("transformers_4")
    if not (target / "transformers").is_dir():
        install = [sys.executable, "-m", "pip", "install", "-q", *PATIENT, "--no-deps", "--target", str(target)]
        done = subprocess.run([*install, *TRANSFORMERS_4], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"transformers 4 could not be fetched: pip install --target DIR --no-deps {TRANSFORMERS_4}"
            if os.environ.get("CI"):
                pytest.fail(f"{reason}\n{done.stderr[-1000:]}")
            pytest.skip(f"{reason}; then set TRANSFORMERS_4=DIR")

    def run(action: str, arguments: Iterable[str]) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, str(HERE / "families.py"), action, *arguments],
            env={**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        failures: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return failures

    return run
