"""Can a linear model on pixels tell the synthetic people apart? It should fail where a person would not.

Closed set: half of each identity's clean pictures train a ridge classifier on 24 x 24 RGB pixels, the other half are asked. Chance beside it.
Run: python benchmarks/linear_probe.py
"""

import numpy as np
from sklearn.linear_model import RidgeClassifier

from pipeline.render import person, render

IDENTITIES, IMAGES, SEEDS = 150, 40, 3


def accuracy(seed: int) -> float:
    pixels, names = [], []
    for number in range(IDENTITIES):
        who = person(seed, number)
        for place in range(IMAGES):
            picture = render(who, np.random.default_rng([seed, 7, number, place]), 48)
            pixels.append(picture.reshape(24, 2, 24, 2, 3).mean(axis=(1, 3)).ravel() / 255)
            names.append(number)
    data, label = np.array(pixels), np.array(names)
    train = np.arange(len(label)) % 2 == 0
    best = max(RidgeClassifier(alpha=alpha).fit(data[train], label[train]).score(data[~train], label[~train]) for alpha in (10, 100, 1000))
    return float(best)


if __name__ == "__main__":
    found = [accuracy(seed) for seed in range(SEEDS)]
    print(f"Linear probe on pixels, {IDENTITIES} identities x {IMAGES // 2} training pictures, best of three penalties on the test half:")
    print(f"top-1 accuracy {np.mean(found):.3f} (seeds: {', '.join(f'{one:.3f}' for one in found)}); chance {1 / IDENTITIES:.3f}")
