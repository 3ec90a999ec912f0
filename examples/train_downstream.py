"""Train a face embedder on purified shards with webdataset and torch alone; nothing of this project is imported.

    python examples/train_downstream.py RUN/clean            # or a folder of `purify export RUN --to webdataset`

Prints the mean loss and the share of right identities of each epoch, and writes the backbone to embedder.pt. A start to change, no recipe.
"""

import argparse
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import nn
from torch.nn import functional


def crop_and_class(sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
    """Decoded by hand: webdataset's `.decode()` would also unpickle what a foreign shard holds."""
    with Image.open(io.BytesIO(sample["jpg"]), formats=["JPEG"]) as picture:
        pixels = np.asarray(picture.convert("RGB").resize((56, 56)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1, int(sample["cls"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("embedder.pt"))
    args = parser.parse_args()
    wanted = "Give RUN/clean, or DIR of `purify export RUN --to webdataset --out DIR`."
    if not (args.folder / "dataset.json").is_file():
        parser.error(f"{args.folder} has no dataset.json. {wanted}")
    facts = json.loads((args.folder / "dataset.json").read_text("utf-8"))
    names = [one["name"] for one in facts.get("shards") or facts["files"]]
    tars = [str(args.folder / name) for name in names if name.endswith(".tar") and not name.startswith("val-")]
    if not tars:
        parser.error(f"{args.folder} holds no tars to train on: it has the form {facts.get('format', 'webdataset')!r}. {wanted}")
    classes = facts["identities"] if "shards" in facts else facts["splits"]["train"]["identities"]
    torch.manual_seed(0)
    faces = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(2000).map(crop_and_class).batched(args.batch)
    loader = wds.WebLoader(faces, batch_size=None, num_workers=min(args.workers, len(tars)))
    widths = (3, 32, 64, 128, 128)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.PReLU(b)) for a, b in pairwise(widths)]
    backbone = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 128))
    centers = nn.Parameter(torch.randn(classes, 128))
    optimizer = torch.optim.AdamW([*backbone.parameters(), centers], lr=2e-3)
    for epoch in range(args.epochs):
        losses, right, seen = [], 0, 0
        for images, labels in loader:
            cosines = functional.linear(functional.normalize(backbone(images)), functional.normalize(centers))
            loss = functional.cross_entropy(32 * (cosines - 0.2 * functional.one_hot(labels, classes)), labels)  # CosFace's margin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            right, seen = right + int((cosines.argmax(1) == labels).sum()), seen + len(labels)
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, right {right / seen:.3f} of {seen}")
    torch.save(backbone.state_dict(), args.out)


if __name__ == "__main__":
    main()
