"""Write tests/data/modelopt_scales.npz: the ranges that ModelOpt's torch histogram calibrator chooses on twenty arrays.

The package is not for the project's own environment; in one of its own:

  python -m venv /tmp/modelopt && /tmp/modelopt/bin/pip install nvidia-modelopt scipy torch
  /tmp/modelopt/bin/python scripts/modelopt_scales.py

ModelOpt 0.47 passes num_bits and unsigned in the places of fake_tensor_quant's bias and num_bits, and so always takes the
first candidate of "mse"; the call is mended here.

For each array: its SHA-256, ModelOpt's histogram of |x| (2048 bins), and the ranges by entropy, mse, percentile 99.99 and max.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import modelopt
import numpy as np
import torch
from modelopt.torch.quantization.calib import HistogramCalibrator, histogram
from modelopt.torch.quantization.tensor_quant import fake_tensor_quant

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
METHODS = ("entropy", "mse", "percentile")


def main() -> None:
    sys.path.insert(0, str(DATA))
    from modelopt_scales import ARRAYS, make_array

    histogram.fake_tensor_quant = lambda x, amax, num_bits, unsigned: fake_tensor_quant(x, amax, None, num_bits, unsigned)
    arrays = [make_array(name) for name in ARRAYS]
    counts, ranges = [], []
    for name, array in zip(ARRAYS, arrays, strict=True):
        calibrator = HistogramCalibrator(num_bits=8, unsigned=False, num_bins=2048)
        calibrator.collect(torch.from_numpy(array))
        counts.append(calibrator._calib_hist.int().numpy())
        chosen = [float(calibrator.compute_amax(method, percentile=99.99)) for method in METHODS]
        ranges.append([*chosen, float(np.abs(array).max())])
        print(f"{name:30}", *(f"{value:12.6g}" for value in ranges[-1]))
    np.savez_compressed(
        DATA / "modelopt_scales.npz",
        names=np.array(list(ARRAYS)),
        sha256=np.array([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]),
        counts=np.array(counts, np.int32),
        methods=np.array([*METHODS, "max"]),
        ranges=np.array(ranges, np.float32),
        versions=np.array([f"nvidia-modelopt {modelopt.__version__}", f"torch {torch.__version__}", f"numpy {np.__version__}"]),
    )


if __name__ == "__main__":
    main()
