"""`python -m trt_sam` is `trt-sam`."""

import sys

from trt_sam.cli import main

sys.exit(main())
