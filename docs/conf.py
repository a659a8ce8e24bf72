"""How Sphinx builds the documentation: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "arctic_training"
author = copyright = "the arctic_training developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "recipe_reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = "arctic_training"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# docstrings name classes and keys between single backticks
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
