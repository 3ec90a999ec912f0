"""The face that the network imagines for an identity: the inversion of its dominant sub-center, as a PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open

from arcface_core.inversion import invert
from pipeline.config import Config
from pipeline.embedders import load_embedder
from pipeline.layout import RoundLayout
from pipeline.models import pick_device
from pipeline.receipts import Progress


def imagine(
    raw: Path, round_: RoundLayout, identities: Sequence[str], config: Config, *, progress: Progress | None = None
) -> dict[str, tuple[bytes, float]]:
    """identity -> (PNG, its angle in degrees to the identity's dominant sub-center), by the backbone of `round_`.

    Identities without a center are left out; all are where the embedder has no gradients to follow, as an ONNX file has none. Nothing of the
    crawl is read: the picture comes from the weights alone.
    """
    steps = config.audit.inversion_steps
    rows = _rows_of(raw, identities)
    if not rows or steps == 0:
        return {}
    with safe_open(round_.noise / "centers.safetensors", framework="pt") as file:
        slices = file.get_slice("dominant")
        centers_BD = torch.cat([slices[row : row + 1] for row in rows.values()])
    has_center_B = centers_BD.norm(dim=1) > 0
    names = [name for name, known in zip(rows, has_center_B.tolist(), strict=True) if known]
    if not names:
        return {}
    device = pick_device(config.device)
    embedder = load_embedder(round_.train, device)
    if embedder.module is None:
        return {}
    result = invert(
        embedder.module,
        centers_BD[has_center_B].to(device),
        input_px=embedder.input_px,
        steps=steps,
        seed=config.seed,
        device=device,
        on_step=(lambda step, _: progress(step, steps)) if progress else None,
    )
    return {
        name: (_png(image), float(angle)) for name, image, angle in zip(names, result.images.cpu(), result.angle_deg.cpu(), strict=True)
    }


def why_none(round_: RoundLayout, config: Config) -> str | None:
    """Why no inversion is drawn in such a run, for people; None where they are."""
    if config.audit.inversion_steps == 0:
        return "audit.inversion_steps is 0."
    if (round_.train / "model.onnx").exists():
        return "the model that was given is an ONNX file, and has no gradients to follow."
    return None


def _rows_of(raw: Path, identities: Sequence[str]) -> dict[str, int]:
    """identity -> its row among the identities that have a sample, which is the order of centers.safetensors."""
    names = pq.read_table(raw / "identities.parquet", columns=["identity"], filters=[("samples", ">", 0)])["identity"].to_pylist()
    wanted = set(identities)
    place = {name: row for row, name in enumerate(names) if name in wanted}
    return {name: place[name] for name in identities if name in place}


def _png(image_CHW: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).resize((112, 112), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
