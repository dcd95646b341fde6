"""The low-latency runner of engines on a GPU."""

from trt_sam.runner.call import Decoded, DecodedOnDevice
from trt_sam.runner.counters import Counters
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.images.submitted import SubmittedImage
from trt_sam.runner.pool import RunnerPool
from trt_sam.runner.submission import Submission

__all__ = ["Counters", "Decoded", "DecodedOnDevice", "DecoderRunner", "RunnerPool", "Submission", "SubmittedImage"]
