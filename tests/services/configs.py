"""Print the three config.pbtxt of a set as JSON, by name: python tests/services/configs.py SET [--plan]."""

from __future__ import annotations

import json
import sys

from trt_sam.engine.manifest import open_manifest
from trt_sam.serve.triton.config import decoder_config, encoder_config, sam_config


def main() -> None:
    manifest, plan = open_manifest(sys.argv[1], verify=False), "--plan" in sys.argv
    decoder = manifest.graph("decode_mask")
    configs = (
        encoder_config(dtype="float16" if plan else "float32", plan=plan),
        decoder_config(decoder.inputs, decoder.outputs, plan=plan, profiles=3),
        sam_config(takes_masks=True, on_gpu=plan, images=64),
    )
    json.dump({config.name: config.text() for config in configs}, sys.stdout)


if __name__ == "__main__":
    main()
