"""Equations of the pages as MathML, made when the site is built: `$...$` in a line, `$$...$$` on a line of their own."""

import re
from typing import Any
from xml.etree import ElementTree

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

# a dollar sign opens an equation if no space follows, and closes it if no space is before and no digit after: $12 is a price
EQUATION = r"(?<![\\$])(?:\$\$(?P<block>[^$]+)\$\$|\$(?![\s$])(?P<inline>(?:\\.|[^$\\])*?)(?<!\s)\$(?![\d$]))"
CODE_PRIORITY = 190
"""Of Python-Markdown's pattern for code in a line, which comes first; those of escapes and emphasis come after equations."""


class Equations(Extension):
    """Turn equations into MathML; `page` is named in errors."""

    page = ""

    def extendMarkdown(self, md: Markdown) -> None:
        r"""Add the pattern, and `\$` for a dollar sign."""
        md.ESCAPED_CHARS.append("$")
        md.inlinePatterns.deregister("mkdocs-autorefs", strict=False)  # it takes intervals such as [.1, .2] [.3, .4] for links
        md.inlinePatterns.register(_Equation(self, md), "equation", CODE_PRIORITY - 5)


class _Equation(InlineProcessor):
    def __init__(self, extension: Equations, md: Markdown) -> None:
        super().__init__(EQUATION, md)
        self.extension = extension
        self.converter = LatexToMathML(fancy_error=False)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element | str | Any, int, int]:
        """Return the MathML of one equation.

        Raises:
            PluginError: it is not valid LaTeX, or has a command that is not known.
        """
        latex = m["block"] or m["inline"]
        try:
            mathml = self.converter.convert_with_local_state(latex.strip(), displaystyle=m["block"] is not None)
        except LatexError as error:
            raise PluginError(
                f"{self.extension.page}: equation {m[0]}: {error}; mend the LaTeX, or write \\$ for a dollar sign"
            ) from error
        assert self.md is not None
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)
