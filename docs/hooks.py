"""What MkDocs calls while it builds the site: equations become MathML, and the reference is written from the code."""

from equations import Equations
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference_commands import commands_page
from reference_pages import config_page, library_page, tables_page

_equations = Equations()


def on_config(config: MkDocsConfig) -> None:
    """Read equations in every page."""
    config.markdown_extensions.append(_equations)  # type: ignore[arg-type]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of the reference."""
    for name, write in {
        "config": config_page,
        "commands": commands_page,
        "tables": tables_page,
        "library": library_page,
    }.items():
        files.append(File.generated(config, f"reference/{name}.md", content=write()))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Tell the equations which page they are in."""
    _equations.page = page.file.src_uri
