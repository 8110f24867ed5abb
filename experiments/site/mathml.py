"""Formulas as MathML, written while the site is built.

MathJax and KaTeX, the usual ways, are either fetched from a network or a megabyte of script and
fonts that no package of PyPI keeps up to date, and both draw after the page is there. MathML is
drawn by the browsers themselves, by all of them since January 2023.
"""

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def setup(app: Sphinx) -> ExtensionMetadata:
    """Makes `html_math_renderer = "mathml"` known to Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    translator.body.append(converter.convert(node.astext()))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def _display(translator: nodes.NodeVisitor, node: nodes.math_block) -> None:
    formula = converter.convert(_aligned(node.astext()), display="block")
    # It scrolls by itself where it is wider than a phone, so it must be reached by the keyboard.
    translator.body.append(  # type: ignore[attr-defined]
        f'<div class="formula" role="group" tabindex="0" aria-label="formula">{formula}</div>\n'
    )
    raise nodes.SkipNode


def _aligned(latex: str) -> str:
    r"""As MathJax has it in Sphinx: lines that end with ``\\`` stand below one another."""
    if r"\\" in latex and r"\begin" not in latex:
        return rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return latex
