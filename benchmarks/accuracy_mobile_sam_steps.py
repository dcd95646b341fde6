"""The steps of accuracy_mobile_sam.py: photographs and prompts, graphs, figures, each kept in a folder; then the tables."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mobile_sam_photos import PHOTOS, fetch, split

CALIBRATION_PROMPTS = 16
Feed = Mapping[str, np.ndarray]


class Work:
    """The steps and where their results are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self._folder = args, args.work
        self._split = split(PHOTOS, args.split)
        self._graphs = args.work / f"graphs-{args.split}-{args.seed}"
        kinds = f"-{args.kinds}" if args.kinds else ""
        self._judged = args.work / f"judged-{args.split}-{args.seed}-{args.prompts_per_image}{kinds}"
        count, _, names = args.few.partition("=")
        self.few = dict.fromkeys(names_in(names), int(count or 0))
        """By variant that is judged by the first prompts of each photograph alone, how many."""
        for folder in (self._graphs, self._judged, args.work / "embeddings"):
            folder.mkdir(parents=True, exist_ok=True)

    def graph(self, name: str) -> Path:
        """Where a variant's graph is kept."""
        return (self._folder if name in ("fp32", "fp16") else self._graphs) / f"{name}.onnx"

    def rows(self, name: str) -> Path:
        """Where its figures are kept."""
        few = f"-{self.few[name]}" if name in self.few else ""
        return self._judged / f"rows-{name}{few}.npz"

    def prepare(self, _: str) -> None:
        """Photographs, embeddings, float graphs, prompts and what FP32 says to them."""
        from trt_sam.graph.export import export_decoder
        from trt_sam.imaging.embeddings import embed_photo, save_embedding
        from trt_sam.model.checkpoint import load_checkpoint
        from trt_sam.recipe import GraphOptions

        checkpoint = load_checkpoint(self._args.checkpoint)
        if any(not self._embedding(photo.name).exists() for photo in PHOTOS):
            fetch(PHOTOS, self._folder / "photos")
            encoder = checkpoint.image_encoder()
            for photo in PHOTOS:
                if not self._embedding(photo.name).exists():
                    save_embedding(
                        self._embedding(photo.name), embed_photo(self._folder / "photos" / f"{photo.name}.png", encoder)
                    )
        for precision in ("fp32", "fp16"):
            if not self.graph(precision).exists():
                options = GraphOptions(precision=precision, target="gpu", mask_input=True)
                export_decoder(checkpoint.decoder, self.graph(precision), options, checkpoint_sha256=checkpoint.sha256)
        self._prompts(checkpoint)

    def _prompts(self, checkpoint: Any) -> None:
        from trt_sam.accuracy.examples import make_examples, stored
        from trt_sam.feeds.feeds import Image
        from trt_sam.imaging.embeddings import load_embedding
        from trt_sam.runtime.torch_runner import TorchRunner

        decoder = TorchRunner(checkpoint.decoder)
        for number, name in enumerate(self._split["judging"]):
            if self._judged_file(name).exists():
                continue
            loaded = load_embedding(self._embedding(name))
            image = stored([(name, Image(loaded.image_embeddings, loaded.original_size))])
            parts: dict[str, list[np.ndarray]] = {}
            for example in make_examples(
                image,
                self._args.prompts_per_image,
                prompts_per_call=self._args.prompts_per_image,
                seed=self._args.seed * 1000 + number,
                decode=decoder.run,
                earlier_masks=True,
                order=names_in(self._args.kinds) or None,
            ):
                feed = {key: array for key, array in example.feed.items() if key != "image_embeddings"}
                for rows in _fours(len(example.kinds)):
                    few = {key: array[rows] for key, array in feed.items()}
                    outputs = decoder.run({**few, "image_embeddings": example.feed["image_embeddings"]})
                    for key, array in {**few, **outputs, "kinds": np.array(example.kinds[rows])}.items():
                        parts.setdefault(key, []).append(array)
            stored_parts = {key: np.concatenate(arrays) for key, arrays in parts.items()}
            stored_parts["mask_input"] = stored_parts["mask_input"].astype(np.float16)
            np.savez(self._judged_file(name), **stored_parts)

    def calibrate(self, text: str) -> None:
        """Quantized graphs of the same tiers."""
        import onnx

        from calibrators.feeds import FeedOptions, calibration_feeds
        from calibrators.variants import parse_variant, write_variants
        from trt_sam.model.checkpoint import load_checkpoint
        from trt_sam.runtime.torch_runner import TorchRunner

        folder = self._graphs / "calibration"
        folder.mkdir(exist_ok=True)
        for photo in self._split["calibration"]:
            if not (folder / f"{photo}.npz").exists():
                (folder / f"{photo}.npz").symlink_to(self._embedding(photo).resolve())
        names = names_in(text)
        options = FeedOptions(prompts_per_image=CALIBRATION_PROMPTS, seed=self._args.seed, mask_input=True)
        kept = self._graphs / "feeds.pickle"
        if not kept.exists():
            # Drawing prompts takes as long as calibrating on them.
            decoder = load_checkpoint(self._args.checkpoint).decoder
            kept.write_bytes(pickle.dumps(calibration_feeds(folder, options, decode=TorchRunner(decoder).run)))
        feeds = pickle.loads(kept.read_bytes())
        plain, half = onnx.load(self.graph("fp32")), onnx.load(self.graph("fp16"))
        start = time.monotonic()
        if names[0].startswith("modelopt-"):
            for name in names:
                self._modelopt(name, plain, feeds)
            return
        for made in write_variants([parse_variant(name) for name in names], plain, half, feeds, self._graphs):
            facts = {**made.facts, "description": made.description, "feeds": feeds.to_dict()}
            # The time is that of all before it in this call too; the load says what else the cores did.
            facts |= {"seconds": time.monotonic() - start, "load": os.getloadavg()[1], "cores": len(os.sched_getaffinity(0))}
            self.graph(made.name).with_suffix(".json").write_text(json.dumps(facts, indent=1, default=str) + "\n")

    def _modelopt(self, name: str, plain: Any, feeds: Any) -> None:
        from modelopt_ptq import modelopt_graph, modelopt_versions, quantized_products, store_feeds

        from trt_sam.quantize.share import find_products

        versions = modelopt_versions(self._args.modelopt_python)
        _, method, chosen = name.split("-")
        stored = self._graphs / "feeds"
        if not stored.exists():
            store_feeds(feeds, stored)
        nodes = None if chosen == "own" else [product.name for product in find_products(plain, tuple(chosen))]
        path = self.graph(name)
        model = modelopt_graph(self._args.modelopt_python, self.graph("fp32"), stored, path, method, nodes)
        share, products, others = quantized_products(plain, model)
        which = "its own choice of nodes" if nodes is None else f"the products of tiers {', '.join(chosen)}"
        facts = {
            "description": f"ModelOpt {versions['nvidia-modelopt']}, INT8, {method}, {which}, float32 elsewhere: "
            f"{100 * share:.0f} % of the multiply-adds",
            "quantized_share": share,
            "products": products,
            "other_readers": others,
            "versions": versions,
            "feeds": feeds.to_dict(),
        }
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")

    def measure(self, name: str) -> None:
        """One variant's rows."""
        from trt_sam.accuracy.measurement import Variant, measure
        from trt_sam.runtime.emulated_runner import EmulationRunner
        from trt_sam.runtime.onnx_runner import OnnxRunner

        def opened() -> Any:
            runner = OnnxRunner(self.graph(name), threads=self._args.threads, emulate_quantization=True)
            return EmulationRunner(self.graph(name), runner) if name == "fp16" else runner

        few = self.few.get(name)
        reference = _Stored(self._outputs(few))
        seen = measure(reference, [Variant(name, opened)], self._examples(few), keep_worst=0)
        columns = {f"column {key}": array for key, array in seen.variants[name].items()}
        np.savez(self.rows(name), kinds=seen.kinds, areas=seen.areas, **columns)

    def report(self, names: Sequence[str]) -> None:
        """The table, from the rows."""
        from accuracy_mobile_sam_report import write_report

        facts = {}
        for name in names:
            path = self.graph(name).with_suffix(".json")
            facts[name] = json.loads(path.read_text()) if path.exists() else {}
        rows = {name: dict(np.load(self.rows(name))) for name in names}
        write_report(rows, facts, self._split, self._args)

    def _outputs(self, few: int | None) -> Iterator[Feed]:
        for name in self._split["judging"]:
            with np.load(self._judged_file(name)) as stored:
                held = {key: stored[key] for key in ("kinds", "low_res_masks", "iou_predictions")}
                for rows in _fours(len(held["kinds"][:few])):
                    yield {key: held[key][rows] for key in ("low_res_masks", "iou_predictions")}

    def _examples(self, few: int | None) -> Iterator[Any]:
        from trt_sam.accuracy.examples import Example, PromptedImage
        from trt_sam.imaging.embeddings import load_embedding

        for name in self._split["judging"]:
            loaded = load_embedding(self._embedding(name))
            image = PromptedImage(name, loaded.image_embeddings, loaded.original_size, np.zeros((256, 256, 3), np.uint8))
            with np.load(self._judged_file(name)) as held:
                kept = dict(held)
            for rows in _fours(len(kept["kinds"][:few])):
                feed = {key: kept[key][rows] for key in ("point_coords", "point_labels", "has_mask_input")}
                feed["mask_input"] = kept["mask_input"][rows].astype(np.float32)
                yield Example({**feed, "image_embeddings": image.embedding}, tuple(kept["kinds"][rows].tolist()), image)

    def _embedding(self, name: str) -> Path:
        return self._folder / "embeddings" / f"{name}.npz"

    def _judged_file(self, name: str) -> Path:
        return self._judged / f"{name}.npz"


class _Stored:
    """What FP32 said, in the order of the examples, in the place of a runner."""

    def __init__(self, outputs: Iterator[Feed]) -> None:
        self._outputs = outputs

    def run(self, _: Feed) -> Feed:
        return next(self._outputs)


def names_in(text: str) -> list[str]:
    """What stands between the commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _fours(count: int) -> Iterator[slice]:
    return (slice(start, min(start + 4, count)) for start in range(0, count, 4))
