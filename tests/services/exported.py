"""Export MobileSAM into the cache, as `trt-sam serve mobile_sam` does, and print the folder of the set."""

from __future__ import annotations

from trt_sam.commands._served import cached_set

if __name__ == "__main__":
    print(cached_set("mobile_sam", None))
