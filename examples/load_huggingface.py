"""Purified faces as a Hugging Face data set; wants `pip install datasets`. Nothing is downloaded, nothing of this project is imported.

    purify export RUN --to hf --out FACES
    python examples/load_huggingface.py FACES

The folder can be handed to `load_dataset` from anywhere, or be uploaded as it is: it has its card. Exports to `webdataset` and `imagefolder` load too:

    load_dataset("webdataset", data_files={"train": "DIR/train-*.tar"}, split="train", streaming=True)
    load_dataset("imagefolder", data_dir="DIR/train", split="train")
"""

import json
import sys
from pathlib import Path

from datasets import load_dataset


def main(folder: Path) -> None:
    faces = load_dataset(str(folder))
    names = json.loads((folder / "identities.json").read_text("utf-8"))
    for split, rows in faces.items():
        first = rows[0]  # {"image": a PIL picture, "label": 17, "identity": ..., "sample_id": ..., "angle_deg": ..., ...}
        assert names[split][first["label"]]["identity"] == first["identity"]
        print(f"{split}: {len(rows)} samples of {len(names[split])} identities, {first['image'].size[0]} x {first['image'].size[1]} pixels")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
