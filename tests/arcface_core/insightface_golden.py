"""Regenerate insightface_golden.json: insightface's own evaluation functions, run by hand on features drawn from a seed.

    git clone https://github.com/deepinsight/insightface
    python -m tests.arcface_core.insightface_golden insightface

Their scripts import MXNet, open files and parse arguments as they are loaded, so only the named functions are taken out of them, as they stand, and run
with numpy, scikit-learn and scipy (`pip install scipy`). Nothing of theirs is copied into this project. `calculate_val` calls scipy's `slinear`, which refuses
repeated values in new versions; then its documented meaning stands in (linear interpolation, at repeated values the last).
"""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_suffix(".json")
FARS = [1e-4, 1e-3, 1e-2, 1e-1]
FPIRS = [0.01, 0.1, 0.3]
_VAL_FAR = 1e-2
_DIM = 24


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pairs_case() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """(left, right, same): 3,000 pairs of unit vectors, in ten folds of 150 genuine and 150 impostor pairs."""
    rng = np.random.default_rng(1)
    same = np.tile(np.repeat([True, False], 150), 10)
    left = rng.standard_normal((3000, _DIM))
    right = np.where(same[:, None], left + 1.1 * rng.standard_normal((3000, _DIM)), rng.standard_normal((3000, _DIM)))
    return _unit(left), _unit(right), same


def templates_case() -> tuple[NDArray[Any], ...]:
    """(feature, mirrored, detector score, template, media, first, second, label): 3,000 images of 300 templates of 60 people, 20,000 pairs."""
    rng = np.random.default_rng(2)
    person_of = rng.integers(0, 60, 300)
    template = np.concatenate([np.arange(300), rng.integers(0, 300, 2700)])
    media = rng.integers(0, 4, 3000) + 10 * template
    centers = rng.standard_normal((60, _DIM))
    feature = (centers[person_of[template]] + 1.5 * rng.standard_normal((3000, _DIM))) * rng.uniform(0.5, 3, (3000, 1))
    mirrored = feature + 0.3 * rng.standard_normal((3000, _DIM))
    detector = rng.uniform(0.1, 1, 3000)
    first, second = rng.integers(0, 300, (2, 20_000))
    label = (person_of[first] == person_of[second]).astype(np.int64)
    return feature, mirrored, detector, template + 7, media, first + 7, second + 7, label


def gallery_case() -> tuple[NDArray[Any], ...]:
    """(probes, their identities, gallery, its identities): 800 probes, about half of them mated, 100 gallery entries."""
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((200, _DIM))
    probe_ids = rng.integers(0, 200, 800)
    probes = centers[probe_ids] + 1.2 * rng.standard_normal((800, _DIM))
    gallery_ids = np.arange(0, 200, 2)
    return _unit(probes), probe_ids, _unit(centers[gallery_ids] + 0.5 * rng.standard_normal((100, _DIM))), gallery_ids


def _functions(source: Path, names: set[str], **given: Any) -> SimpleNamespace:
    tree = ast.parse(source.read_text("utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names]
    scope: dict[str, Any] = {"np": np, "print": lambda *_: None, **given}
    exec(compile(tree, str(source), "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def main(checkout: Path) -> None:
    """Write GOLDEN from a checkout of insightface."""
    import sklearn.preprocessing
    from scipy import interpolate
    from sklearn.metrics import roc_curve
    from sklearn.model_selection import KFold

    def linear(x: Any, y: Any, kind: str) -> Any:
        try:
            return interpolate.interp1d(x, y, kind=kind)
        except ValueError:
            return lambda wanted: np.interp(wanted, x, y)

    torch_scripts = checkout / "recognition" / "arcface_torch"
    names = {"LFold", "calculate_roc", "calculate_accuracy", "calculate_val", "calculate_val_far"}
    theirs = _functions(torch_scripts / "eval" / "verification.py", names, KFold=KFold, interpolate=SimpleNamespace(interp1d=linear))
    left, right, same = pairs_case()
    _, _, accuracy = theirs.calculate_roc(np.arange(0, 4, 0.01), left, right, same)
    val, std, far = theirs.calculate_val(np.arange(0, 4, 0.001), left, right, same, _VAL_FAR)

    ijb = _functions(torch_scripts / "eval_ijbc.py", {"image2template_feature", "verification"}, sklearn=sklearn)
    feature, mirrored, detector, template, media, first, second, label = templates_case()
    found = {}
    for name, keep_norm, scored, flip in (("N1D1F2", True, True, True), ("N0D0F2", False, False, True), ("N0D1F0", False, True, False)):
        images = feature + mirrored if flip else feature
        images = images if keep_norm else images / np.sqrt(np.sum(images**2, -1, keepdims=True))
        images = images * detector[:, np.newaxis] if scored else images
        vectors, unique = ijb.image2template_feature(images, template, media)
        scores = ijb.verification(vectors, unique, first, second)
        false_rate, true_rate, _ = roc_curve(label, scores)
        false_rate, true_rate = np.flipud(false_rate), np.flipud(true_rate)
        at = [min(zip(abs(false_rate - wanted), range(len(false_rate)), strict=True))[1] for wanted in FARS]
        found[name] = {"scores": scores[::997].tolist(), "tar": true_rate[at].tolist()}

    one_to_many = _functions(checkout / "recognition" / "_evaluation_" / "ijb" / "ijb_evals.py", {"evaluation_1N"})
    probes, probe_ids, gallery, gallery_ids = gallery_case()
    top1, top5, top10, thresholds, recalls, _ = one_to_many.evaluation_1N(probes, gallery, probe_ids, gallery_ids, FPIRS)
    revision = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    golden = {
        "source": f"deepinsight/insightface@{revision}",
        "command": "python -m tests.arcface_core.insightface_golden insightface",
        "accuracy_of_folds": accuracy.tolist(),
        "val_far": _VAL_FAR,
        "val": [val, std, far],
        "ijb": found,
        "gallery": {
            "top": [int(top1), int(top5), int(top10)],
            "threshold": [float(threshold) for threshold in thresholds],
            "tpir": [float(recall) for recall in recalls],
        },
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
