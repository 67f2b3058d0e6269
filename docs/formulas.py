"""A hook of mkdocs: formulas become MathML, which browsers draw without a script and without a network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Replaces what pymdownx.arithmatex has marked as LaTeX."""

    def drawn(found: re.Match[str]) -> str:
        formula = unescape(found[2]).strip()
        if found[1] == "span":
            return str(convert(formula))
        return f'<div class="formula">{convert(formula, display="block")}</div>'

    return FORMULA.sub(drawn, html)
