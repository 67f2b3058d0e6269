"""Draws the example <domain>/<class>/*.png into a folder. Delete this file when you have data of your own."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

root = Path(*sys.argv[1:2] or ["data/example"])
for domain in ("plain", "noisy"):
    for label, corners in {"triangle": 3, "square": 4, "disc": 60}.items():
        folder = root / domain / label
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(120):
            rng = np.random.default_rng([corners, number, domain == "noisy"])
            size, x, y = rng.uniform(9, 13), *rng.uniform(13, 19, 2)
            image = Image.new("RGB", (32, 32), "white")
            shape = ((x, y, size), corners, int(rng.integers(-15, 15)))
            ImageDraw.Draw(image).regular_polygon(*shape, fill=tuple(rng.integers(0, 160, 3).tolist()))
            if domain == "noisy":
                pixels = 0.6 * np.asarray(image) + rng.normal(0, 40, (32, 32, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{number:03d}.png")
