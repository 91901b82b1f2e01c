"""Dollar signs of the documentation: equations, prices and code."""

import importlib.util
import re
from pathlib import Path

import markdown
import pytest
from mkdocs.exceptions import PluginError

SOURCE = Path(__file__).resolve().parent.parent.parent / "docs" / "equations.py"
spec = importlib.util.spec_from_file_location("equations", SOURCE)
equations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(equations)


def _html(text: str) -> str:
    extension = equations.Equations()
    extension.page = "concepts/some.md"
    return markdown.markdown(text, extensions=[extension, "fenced_code", "tables"])


def test_an_equation_in_a_line_is_mathml():
    assert _html("so $x_i$ is") == "<p>so <math><msub><mi>x</mi><mi>i</mi></msub></math> is</p>"


def test_an_equation_on_its_own_line_is_a_block():
    assert _html("so\n\n$$\na * b * c\n$$\n").startswith('<p>so</p>\n<math display="block">')
    assert "<em>" not in _html("$$\na * b * c\n$$")


def test_two_equations_of_a_line_stay_two():
    assert _html("$a$ and $b$").count("<math>") == 2
    assert _html("($a$), $b$.") == "<p>(<math><mi>a</mi></math>), <math><mi>b</mi></math>.</p>"


@pytest.mark.parametrize("text", ["$12", "from $12 to $15", "$12/$15", "$5, $6 and $7", r"a \$x\$ b", "US$ and A$"])
def test_a_price_is_no_equation(text):
    assert _html(text) == f"<p>{text.replace(chr(92), '')}</p>"


def test_code_keeps_its_dollar_signs():
    assert _html("`$x$`") == "<p><code>$x$</code></p>"
    assert _html("```\n$x$ $$y$$\n```") == "<pre><code>$x$ $$y$$\n</code></pre>"
    assert _html("`echo $HOME` or `$PATH`") == "<p><code>echo $HOME</code> or <code>$PATH</code></p>"


def test_an_equation_stands_in_a_table():
    assert "<td><math>" in _html("| a | b |\n|---|---|\n| $x$ | 1 |")


@pytest.mark.parametrize("latex", [r"\argmx x", r"\frac{1}{2"])
def test_an_equation_that_cannot_be_read_is_named_with_its_page(latex):
    with pytest.raises(PluginError, match=r"^concepts/some\.md: equation " + re.escape(f"${latex}$") + r": .*; mend the LaTeX"):
        _html(f"see ${latex}$")
