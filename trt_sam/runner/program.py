"""An execution context and its recordings: an inference that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trt_sam.cuda.graphs import Graph, capture
from trt_sam.cuda.streams import Stream
from trt_sam.errors import InferenceError
from trt_sam.runner.engine import Engine, ExecutionContext

__all__ = ["Program"]


@dataclass
class Program:
    """An inference of fixed shapes and addresses, in a stream: of one bucket in one slot, or of a photo."""

    engine: Engine
    context: ExecutionContext
    stream: Stream
    recorded: bool
    """Whether its work is queued as CUDA graphs."""
    graphs: dict[tuple[Any, ...], Graph] = field(default_factory=dict)
    """The inference alone, under (), and with the copies of those who ask for the same."""

    def close(self) -> None:
        """Drop what holds device memory; it cannot run any more."""
        for graph in self.graphs.values():
            graph.close()
        self.context.close()

    def record(self, copies: tuple[Any, ...] = (), work: Callable[[], None] | None = None) -> Graph | None:
        """The graph of `work` (None: of the inference alone), recorded at the first time; None where nothing is recorded.

        In the device's context, under the runner's lock: nobody may mark an event in the stream meanwhile.

        Raises:
            InferenceError: TensorRT or CUDA could not.
        """
        if not self.recorded:
            return None
        graph = self.graphs.get(copies)
        if graph is None:
            try:
                graph = self.graphs[copies] = capture(self.stream.device, self.stream, work or self.enqueue_unrecorded)
            except InferenceError as error:
                raise InferenceError(
                    f"{error}; where this engine cannot be recorded, open the runner with graphs=False"
                ) from error
        return graph

    def enqueue(self) -> None:
        """Queue the inference; raises InferenceError where TensorRT or CUDA could not."""
        graph = self.graphs.get(())
        if graph is not None:
            graph.launch()
        else:
            self.enqueue_unrecorded()

    def enqueue_unrecorded(self) -> None:
        """The same, as TensorRT itself does it."""
        self.context.enqueue(self.stream.handle)
