"""Optimizer states in files: what is refused, and that files hold what memory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError, ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # where libaio is, the first run compiles for minutes
HAS_LIBAIO = Path("/usr/include/libaio.h").exists()


@pytest.mark.parametrize("folder", ["no/such/folder", "/no/such/folder"])
def test_a_folder_that_is_not_there_is_named(folder: str) -> None:
    from training.zero.nvme import take_nvme

    with pytest.raises(ConfigError, match=rf"nvme_path: {folder} is not a folder here; copy the template"):
        take_nvme(Path(folder), 0)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    from training.zero.nvme import take_nvme

    with take_nvme(tmp_path, 0), pytest.raises(ConfigError, match="is in use by another run"):
        take_nvme(tmp_path, 0)
    with take_nvme(tmp_path, 0), take_nvme(tmp_path, 1):
        pass


if HAS_LIBAIO:

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_states_in_files_are_those_in_memory(
        trial_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, precision: str
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "nvme"
        folder.mkdir(exist_ok=True)
        trial = trial_of(2, "sharding_ranks.py", str(folder), rows=7)
        files = sorted(folder.rglob("*.tensor.swp"))
        assert any("exp_avg_sq" in path.name for path in files)
        memory, in_files = (trial.facts(f"switch-{precision}-{name}") for name in ("zero3", "zero3_offload_nvme"))
        assert in_files["losses"] == memory["losses"]
        for first in (memory, in_files):
            assert first["zero3"]["same_bits"] and first["zero3_offload_nvme"]["same_bits"]
            assert first["zero3"]["loss"] == first["zero3_offload_nvme"]["loss"]

else:

    def test_without_libaio_the_packages_to_install_are_named() -> None:
        from training.zero.nvme import require_async_io

        with pytest.raises(ClusterError, match=r"needs libaio's headers.* \(Debian: libaio-dev g\+\+; pip: ninja\)"):
            require_async_io()
