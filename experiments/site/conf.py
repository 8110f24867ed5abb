"""What Sphinx is told. `python -m experiments site` runs it on a copy of the pages."""

import bnjax

project = "bnjax"
author = "bnjax contributors"
copyright = author
version = release = bnjax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "experiments.site.laboratory",
    "experiments.site.mathml",
    "experiments.site.reference",
]

# The look of JAX's own sites.
html_theme = "sphinx_book_theme"
html_title = "bnjax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
highlight_language = "text"  # of blocks that name none: formulas and commands
pygments_style = "a11y-high-contrast-light"

# Pages: every cell is run by every build, in a folder of its own; an error is shown as a warning,
# which fails the build after all pages have been tried.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# What is copied is code, without prompts and without what it prints.
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = (
    "div.cell_input pre, div.highlight-python pre, div.highlight-bash pre, div.doctest pre"
)

# Reference: Google's docstrings, signatures one parameter a line, types where they are written.
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # takes two names on a line
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "DTypeLike")}
autosummary_generate = False  # the pages are written by experiments.site.reference
add_module_names = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

# A reference to a name of this package that does not exist is a warning, and so an error.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!bnjax).*|.*\._.*")]  # others' names, and private ones
