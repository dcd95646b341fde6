"""Folders of photos over a cluster of machines: `segment_folder` shares them out with Ray, shard by shard."""

from __future__ import annotations

from trt_sam.cluster.folder import Report, segment_folder
from trt_sam.cluster.photo import Everything, Prompts, Task, asks_of, segmented

__all__ = ["Everything", "Prompts", "Report", "Task", "asks_of", "segment_folder", "segmented"]
