"""A trained model as it will be served, for measuring it.

U users, L window length, K interests, D vector width, N items.
"""

import numpy as np
import numpy.typing as npt
import torch

from training.fit import torch_threads
from training.model import Mind, ServedMind
from training.preset import TrainingConfig

_WINDOWS_AT_ONCE = 1024


def encode_windows(
    model: Mind,
    table: npt.NDArray[np.float32],
    windows: npt.NDArray[np.int64],
    config: TrainingConfig,
    profiles: npt.NDArray[np.int64] | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Interests of windows, as the served form of a model gives them.

    Args:
        model: trained.
        table: float32 (N+1, D), its `item_vectors`; D counts marks here.
        windows: int64 (U, L), rows, oldest click first; 0 where there is none.
        config: for its threads.
        profiles: int64 (U, P), the users' codes, for a model with a profile.

    Returns:
        Interests float32 (U, K, D), and int64 (U,), how many of the K are used.
    """
    served = ServedMind(model).eval()
    items = torch.from_numpy(table)
    parts = []
    with torch.no_grad(), torch_threads(config.threads):
        for start in range(0, max(1, len(windows)), _WINDOWS_AT_ONCE):
            part = slice(start, start + _WINDOWS_AT_ONCE)
            rows = torch.from_numpy(windows[part])
            codes = None if profiles is None else torch.from_numpy(profiles[part])
            parts.append(served(items, rows, torch.zeros(rows.shape), codes)[:2])
    interests, counts = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return interests, counts


def learned_vectors(model: Mind) -> npt.NDArray[np.float32]:
    """The item table without marks: float32 (N+1, D), row 0 zeros."""
    return item_vectors(model)[:, : model.table.shape[1]]


def item_vectors(model: Mind) -> npt.NDArray[np.float32]:
    """The item table as served: float32 (N+1, D), row 0 zeros."""
    with torch.no_grad():
        return model.served_table().numpy().astype(np.float32, copy=True)
