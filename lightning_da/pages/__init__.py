"""HTML pages in one file, which need neither a network nor a script."""

import io
import xml.etree.ElementTree as ET
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

SVG = "http://www.w3.org/2000/svg"
_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def render(template: str, **values: Any) -> str:
    """Fills a template of this folder. What is no `Markup` is escaped: names of runs and classes may hold HTML.

    Args:
        template: Name of the file.
        **values: The values of its variables.
    """
    return _TEMPLATES.get_template(template).render(values)


def svg(figure: Figure, label: str) -> Markup:
    """A figure as an SVG element that is as wide as the page. The pointer shows the value of a marked point.

    Args:
        figure: The figure. Each line with a marker gets the texts `label, place: value`.
        label: What the figure shows, for those who cannot see it.
    """
    texts = {}
    for place, (axes, line) in enumerate((part, line) for part in figure.axes for line in part.lines):
        if line.get_marker() not in (None, "None", ""):
            line.set_gid(f"line{place}")
            x, y = (np.asarray(numbers, float).tolist() for numbers in line.get_data())
            texts[f"line{place}"] = [
                f"{line.get_label()}, {_place(axes, at)}: {value:.4g}"
                for at, value in zip(x, y, strict=True)
                if np.isfinite(value)  # others have no mark
            ]
    written = io.BytesIO()
    # a constant salt: equal parts of several figures of a page have equal ids
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightning_da"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(written.getvalue())
    for group in root.iter(f"{{{SVG}}}g"):
        marks = list(group.iter(f"{{{SVG}}}use")) if group.get("id") in texts else []
        for mark, text in zip(marks, texts.get(group.get("id", ""), ()), strict=False):
            ET.SubElement(mark, f"{{{SVG}}}title").text = text
        group.attrib.pop("id", None)
    for unused in ("metadata", "style"):
        for parent in [parent for parent in root.iter() if parent.find(f"{{{SVG}}}{unused}") is not None]:
            parent.remove(parent.find(f"{{{SVG}}}{unused}"))  # type: ignore[arg-type]
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ET.tostring(root, encoding="unicode"))


def _place(axes: Axes, x: float) -> str:
    formatter = axes.xaxis.get_major_formatter()
    return str(formatter(x)) if isinstance(formatter, FuncFormatter) else f"{axes.get_xlabel()} {x:g}".strip()


def picture(path: Path, width: int) -> str:
    """An image file as the address of an `img` element, in WebP.

    Args:
        path: The file.
        width: The largest width in pixels; a wider image is reduced.

    Raises:
        OSError: If the file cannot be read.
        PIL.Image.DecompressionBombError: If it has more than 179 million pixels.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, "WEBP", quality=60, method=6)
    return "data:image/webp;base64," + b64encode(written.getvalue()).decode()
