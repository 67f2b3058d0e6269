"""Drawn faces: identities in two kinds of light, made in a second."""

import numpy as np
from numpy.typing import NDArray

SIDE = 32
LIGHTS = ("indoors", "outdoors")
"""Domains: an even light from the front; sunlight from a side, which changes from image to image."""


def draw_faces(light: str, identities: int = 60, images: int = 20) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Draws faces of persons that differ in the shapes of their parts; no person is in both domains.

    The images of a person differ in position, in the width of eyes and mouth, in noise, and in the light.

    Args:
        light: `indoors` or `outdoors`.
        identities: Number of persons.
        images: Number of images of each person.

    Returns:
        Grey images (n, 1, 32, 32), and the name of the person in each, shape (n,).
    """
    rng = np.random.default_rng(LIGHTS.index(light))
    drawn = [_draw(person, light, rng) for person in rng.normal(size=(identities, 9)) for _ in range(images)]
    names = np.repeat([f"{light} {number}" for number in range(identities)], images)
    return np.stack(drawn)[:, None], names


def _draw(person: NDArray[np.float64], light: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:SIDE, :SIDE] / (SIDE / 2) - 1
    rows, columns = rows + rng.normal(0, 0.04), columns + rng.normal(0, 0.04)
    opened = rng.normal(0, 0.02, size=2)

    def ellipse(row: float, column: float, height: float, width: float) -> NDArray[np.float64]:
        distance = ((rows - row) / max(height, 0.02)) ** 2 + ((columns - column) / max(width, 0.02)) ** 2
        inside: NDArray[np.float64] = 1 / (1 + np.exp(np.minimum(8 * (distance - 1), 50)))
        return inside

    face = ellipse(0, 0, 0.8 + 0.08 * person[0], 0.62 + 0.08 * person[1])
    hair = ellipse(-0.75, 0, 0.3 + 0.1 * person[2], 0.6)
    apart, level = 0.28 + 0.06 * person[3], -0.2 + 0.07 * person[4]
    eyes = sum(ellipse(level, side * apart, 0.08 + opened[0], 0.12 + 0.03 * person[5]) for side in (-1, 1))
    nose = ellipse(0.1, 0, 0.15 + 0.06 * person[6], 0.06)
    mouth = ellipse(0.45 + 0.05 * person[7], 0, 0.06 + opened[1], 0.25 + 0.07 * person[8])
    image = 0.15 + 0.6 * face * (1 - 0.7 * hair) * (1 - 0.8 * eyes) * (1 - 0.3 * nose) * (1 - 0.6 * mouth)
    if light == "outdoors":
        image = 0.35 + 0.55 * image * (1 + rng.uniform(-0.8, 0.8) * columns + rng.uniform(-0.2, 0.2) * rows)
    image = image + rng.normal(0, 0.04, size=image.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8)
