"""Train the stand-in checkpoint on synthetic scenes and save it as a Hugging Face `SamModel` folder.

    python scripts/train_standin.py --state standin.pt --log standin.jsonl --stage 256:4:6:5e-4:12000:38:4000 --stage ...
    python scripts/save_standin.py --state standin.pt --output trt_sam/data/standin

Losses are SAM's (Kirillov et al. 2023, appendix A): 20 x focal + dice on the best of the three masks, the same on the single
mask, and the squared error of the predicted IoU. Stages go from small pictures to the full 1024 px; each stage is bounded in
steps and in minutes, so it ends on any machine. The log is one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trt_sam.feeds.scenes import HELD_OUT_SEED, Scene, make_scene, sample_click, sample_prompt
from trt_sam.model import SamDecoder

PIXEL_MEAN = torch.tensor([123.675, 116.28, 103.53]).reshape(1, 3, 1, 1)
PIXEL_STD = torch.tensor([58.395, 57.12, 57.375]).reshape(1, 3, 1, 1)
KINDS = ("click", "box", "clicks", "previous mask")
KIND_SHARES = (0.4, 0.3, 0.15, 0.15)


class Trainee(nn.Module):
    """A tiny ViT image encoder and the full-size decoder."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import SamVisionConfig
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        config = SamVisionConfig(**vision_settings())
        self.encoder = SamVisionEncoder(config)
        self.decoder = SamDecoder()

    def set_size(self, size: int) -> None:
        self.encoder.patch_embed.image_size = (size, size)
        self.decoder.grid = (size // 16, size // 16)
        self.decoder.prompt_encoder.frame_size = size
        self.decoder.refresh_position_encoding()


def vision_settings() -> dict[str, object]:
    return {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "mlp_dim": 384,
        "window_size": 16,
        "global_attn_indexes": [],
        "use_abs_pos": False,
        "use_rel_pos": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="where the training state is kept (.pt)")
    parser.add_argument("--start", type=Path, help="begin from a folder of save_standin.py, where there is no state yet")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines")
    parser.add_argument(
        "--stage",
        action="append",
        required=True,
        metavar="SIZE:IMAGES:PROMPTS:LR:STEPS:MINUTES:SCENES",
        help="repeatable; picture size, pictures and prompts per picture of a step, peak learning rate, bounds, scenes",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = Trainee()
    if args.state.exists():
        model.load_state_dict(torch.load(args.state, weights_only=True))
    elif args.start:
        load_folder(model, args.start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, betas=(0.9, 0.98))
    for index, text in enumerate(args.stage):
        size, images, prompts, lr, steps, minutes, scenes = (float(x) for x in text.split(":"))
        pool = make_pool(int(scenes), int(size), seed=1000 * (args.seed + 1) * (index + 1) + 7)
        run_stage(model, optimizer, pool, int(images), int(prompts), lr, int(steps), minutes, args)
        torch.save(model.state_dict(), args.state)
        report = evaluate(model, num_scenes=12)
        log(args.log, {"stage": text, "held_out_1024": report})


def load_folder(model: Trainee, folder: Path) -> None:
    """Go on from saved weights; they are float16 there, which the first steps make up for."""
    from safetensors.torch import load_file

    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.model.naming import HF_ENCODER_PREFIX

    state = load_file(folder / "model.safetensors")
    encoder = {n.removeprefix(HF_ENCODER_PREFIX): v for n, v in state.items() if n.startswith(HF_ENCODER_PREFIX)}
    model.encoder.load_state_dict(encoder)
    model.decoder.load_state_dict(load_checkpoint(folder).decoder.state_dict())


def make_pool(count: int, size: int, seed: int) -> list[Scene]:
    """Draw the training scenes of a stage."""
    with multiprocessing.get_context("fork").Pool(2) as workers:
        return workers.starmap(make_scene, [(seed * 100_000 + i, size) for i in range(count)], chunksize=8)


def run_stage(
    model: Trainee,
    optimizer: torch.optim.Optimizer,
    pool: list[Scene],
    images: int,
    prompts: int,
    peak_lr: float,
    steps: int,
    minutes: float,
    paths: argparse.Namespace,
) -> None:
    """One stage: warm-up, then a cosine to a hundredth of `peak_lr` over steps or minutes, whichever ends first.

    `paths.log` gets the means and `paths.state` the weights of every 100 steps.
    """
    size = pool[0].image.shape[0]
    model.set_size(size)
    model.train()
    rng = np.random.default_rng(size)
    start, recent = time.monotonic(), []
    for step in range(steps):
        progress = max(step / steps, (time.monotonic() - start) / (60 * minutes))
        if progress >= 1:
            break
        rate = peak_lr * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, iou = train_step(model, [augment(rng, pool[int(rng.integers(len(pool)))]) for _ in range(images)], prompts, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append((float(loss.detach()), iou))
        if len(recent) == 100:
            mean = np.mean(recent, axis=0)
            seconds = time.monotonic() - start
            log(
                paths.log,
                {"size": size, "step": step + 1, "seconds": round(seconds), "lr": rate, "loss": mean[0], "iou": mean[1]},
            )
            recent = []
            torch.save(model.state_dict(), paths.state)


def train_step(model: Trainee, scenes: list[Scene], prompts: int, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Loss of one batch of prompts of one kind, and its best-of-three mean IoU."""
    kind = str(rng.choice(KINDS, p=KIND_SHARES))
    picks = [(i, int(rng.integers(len(s.masks)))) for i, s in enumerate(scenes) for _ in range(prompts)]
    targets = [scenes[i].masks[m] for i, m in picks]
    owner = torch.tensor([i for i, _ in picks])
    truth = low_resolution(targets)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encode(model, [s.image for s in scenes])[owner]
        first = "click" if kind == "previous mask" else kind
        coords, labels = make_prompts(first, targets, rng)
        if kind == "previous mask":
            with torch.no_grad():
                logits, iou = model.decoder(embeddings, coords, labels)
            previous = logits[torch.arange(len(picks)), 1 + iou[:, 1:].argmax(1)][:, None].float()
            coords, labels = correct(coords, labels, previous, truth, targets[0].shape[0], rng)
            logits, iou = model.decoder(embeddings, coords, labels, previous, torch.ones(len(picks)))
        else:
            logits, iou = model.decoder(embeddings, coords, labels)
    return losses(logits.float(), iou.float(), truth)


def encode(model: Trainee, images: list[np.ndarray]) -> Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return model.encoder((pixels - PIXEL_MEAN) / PIXEL_STD).last_hidden_state


def losses(logits: Tensor, iou: Tensor, truth: Tensor) -> tuple[Tensor, float]:
    """SAM's losses on logits [n, 4, h, w], predicted iou [n, 4] and soft truth [n, h, w]."""
    target = truth[:, None].expand_as(logits)
    probability = logits.sigmoid()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((probability - target).abs() ** 2 * cross_entropy).mean((2, 3))
    overlap = (probability * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    mask_loss = 20 * focal + dice
    with torch.no_grad():
        inside, real = logits > 0, target > 0.5
        actual = (inside & real).sum((2, 3)) / (inside | real).sum((2, 3)).clamp(min=1)
    best = mask_loss[:, 1:].min(dim=1).values
    iou_loss = (iou - actual).square().mean()
    return best.mean() + 0.5 * mask_loss[:, 0].mean() + iou_loss, float(actual[:, 1:].max(1).values.mean())


def make_prompts(kind: str, targets: list[np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Coordinates [n, points, 2] and labels [n, points] as Meta's predictor would send them."""
    extra = int(rng.integers(1, 5))
    prompts = [sample_prompt(rng, target, kind, extra_clicks=extra) for target in targets]
    return torch.from_numpy(np.stack([c for c, _ in prompts])), torch.from_numpy(np.stack([n for _, n in prompts]))


def correct(
    coords: Tensor, labels: Tensor, previous: Tensor, truth: Tensor, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Add one click where the previous mask is wrong, before Meta's padding point."""
    new_coords, new_labels = coords[:, -1:].clone(), labels[:, -1:].clone()
    for i, (logit, target) in enumerate(zip(previous[:, 0] > 0, truth > 0.5, strict=True)):
        wrong = (logit != target).numpy()
        if not wrong.any():
            wrong = target.numpy() if target.any() else np.ones_like(wrong)
        x, y = sample_click(rng, wrong)
        new_coords[i, 0] = torch.tensor([x, y]) * (size / len(wrong)) - 0.5
        new_labels[i, 0] = float(target[int(y), int(x)])
    pieces = [coords[:, :-1], new_coords, coords[:, -1:]], [labels[:, :-1], new_labels, labels[:, -1:]]
    return torch.cat(pieces[0], 1), torch.cat(pieces[1], 1)


def low_resolution(targets: list[np.ndarray]) -> Tensor:
    masks = torch.from_numpy(np.stack(targets)).float()
    return nn.functional.avg_pool2d(masks[:, None], 4)[:, 0]


def augment(rng: np.random.Generator, scene: Scene) -> Scene:
    """One of the eight symmetries of the square, and a permutation of the colours."""
    image, masks = np.rot90(scene.image, k := int(rng.integers(4))), np.rot90(scene.masks, k, axes=(1, 2))
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    return Scene(np.ascontiguousarray(image[..., rng.permutation(3)]), np.ascontiguousarray(masks))


@torch.no_grad()
def evaluate(model: Trainee, num_scenes: int) -> dict[str, float]:
    """Best-of-three, top-scored and single-mask mean IoU on held-out scenes at 1024 px, masks upsampled to 1024 px."""
    model.set_size(1024)
    model.eval()
    rng = np.random.default_rng(1)
    rows: dict[str, list[float]] = {}
    for index in range(num_scenes):
        scene = make_scene(HELD_OUT_SEED + index)
        embedding = encode(model, [scene.image])
        for kind in ("click", "box"):
            coords, labels = make_prompts(kind, list(scene.masks), rng)
            logits, scores = model.decoder(embedding, coords, labels)
            for mask, logit, score in zip(scene.masks, logits, scores, strict=True):
                full = nn.functional.interpolate(logit[None], (1024, 1024), mode="bilinear")[0].numpy() > 0
                iou = (full & mask).sum((1, 2)) / (full | mask).sum((1, 2))
                rows.setdefault(f"{kind} best of three", []).append(iou[1:].max())
                rows.setdefault(f"{kind} top scored", []).append(iou[1 + int(score[1:].argmax())])
                rows.setdefault(f"{kind} single", []).append(iou[0])
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items()}


def log(path: Path, row: dict[str, object]) -> None:
    text = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
    print(text, flush=True)
    with path.open("a") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
