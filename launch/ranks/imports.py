"""Import what a rank trains with in less time: the libraries that are imported are the same, for every bit of a run."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# DeepSpeed's autotuner imports MLflow wherever it is installed, and with it pandas: 1300 modules, 1.5 s of every start.
# No run here uses the autotuner. A tracker that imports MLflow later finds it.
UNUSED = "mlflow"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import without what DeepSpeed tries to import and no run uses, and without garbage collection meanwhile.

    Imports make a million objects that all stay; collecting among them over and over takes a sixth of the time. They
    are then frozen, so that no later collection looks at them again.
    """
    modules: dict[str, Any] = sys.modules
    is_hidden = UNUSED not in modules
    if is_hidden:
        modules[UNUSED] = None  # an import of it raises ImportError
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if is_hidden:
            del modules[UNUSED]
