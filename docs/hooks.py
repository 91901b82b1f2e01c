"""What MkDocs calls while it builds the site: equations become MathML, and the reference is written from the code."""

import re
from pathlib import Path

from equations import Equations
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from reference_commands import commands_page
from reference_pages import config_page, library_page, tables_page

ROOT = Path(__file__).resolve().parent.parent
LINK_OUT = re.compile(r"\]\((\.\./[^)#\s]+)\)")
_equations = Equations()


@event_priority(-100)  # after the plugins, since the last extension has the last word on what is read in a line
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


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tell the equations which page they are in, and put the project's files that the page links to into the site."""
    _equations.page = page.file.src_uri
    folder = (Path(config.docs_dir) / page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if path.is_relative_to(config.docs_dir) or not (path.is_relative_to(ROOT) and path.is_file()):
            return match[0]
        name = f"source/{path.relative_to(ROOT).as_posix()}.txt"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=path.read_bytes()))
        return f"]({get_relative_url(name, page.file.src_uri)})"

    return LINK_OUT.sub(shown, markdown)
