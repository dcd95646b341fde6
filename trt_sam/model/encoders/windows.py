"""A picture cut into square windows and put together again, as window attention has it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["from_windows", "to_windows"]


def to_windows(x: Tensor, size: int) -> Tensor:
    """[batch, height, width, C] to [batch, rows, columns, size, size, C], filled up with zeros below and on the right."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // size), -(-width // size)
    x = functional.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
    return x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """[batch, rows, columns, size, size, C] back to [batch, height, width, C], without what filled it up."""
    batch, rows, columns, size, _, channels = windows.shape
    x = windows.transpose(2, 3).reshape(batch, rows * size, columns * size, channels)
    return x[:, :height, :width]
