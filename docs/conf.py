"""How Sphinx builds the site: every tutorial is run, and every warning is an error."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import tables  # noqa: E402

project = "famr_jax"
author = copyright = "The famr_jax developers"  # noqa: A001
release = version = version_of("famr_jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated"]
default_role = "literal"
nitpicky = True
# No inventory of another project is fetched: what is not ours is named without a link.
nitpick_ignore_regex = [("py:.*", r"(?!famr_jax\.).*")]

html_theme = "sphinx_book_theme"
html_title = "famr_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {"home_page_in_toc": True, "show_toc_level": 2, "navbar_persistent": []}

myst_enable_extensions = ["colon_fence", "substitution"]
myst_heading_anchors = 3
myst_substitutions = tables.numbers()
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
napoleon_numpy_docstring = False

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Source):")
MARKUP = re.compile(r"(``.+?``(?!`)|`[^`]*`)(\w?)|([\\*|]|(?<=\w)_(?!\w))")


def plain_text(app, what, name, obj, options, lines):
    """Keeps Sphinx from reading |x|, p* and x_ as markup, and shows equations as they are set."""
    del app, what, name, obj, options
    written, listed, literal = [], False, False
    for number, line in enumerate(lines):
        listed = (listed and (not line or line[0] == " ")) or bool(SECTION.match(line))
        indented = line.startswith("    ") and not listed
        if indented and not literal and not (number and lines[number - 1]):
            written += ["::", ""]
            literal = True
        elif line and not line.startswith(" "):
            literal = False
        written.append(line if literal else MARKUP.sub(escaped, line))
    lines[:] = written


def escaped(found):
    """Code between backticks as it is, a character that means something behind a backslash."""
    code, next_letter, character = found.groups()
    return f"{code}\\ {next_letter}" if next_letter else code or "\\" + character


def skipped(app, what, name, obj, skip, options):
    """Leaves out the fields of NamedTuples: their class describes them."""
    del app, what, name, options
    return True if type(obj).__name__ == "_tuplegetter" else skip


def setup(app):
    """Writes the generated tables, and tells Sphinx how docstrings are written here."""
    tables.write(HERE / "generated")
    app.connect("autodoc-process-docstring", plain_text, priority=100)
    app.connect("autodoc-skip-member", skipped)
