"""The public address of `trt_sam.runner.RunnerPool`."""

from trt_sam.runner.pool import RunnerPool

__all__ = ["RunnerPool"]
