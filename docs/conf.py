"""Sphinx configuration. The references are generated from the code at build time, never by hand."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import generate

import magnum

project = "Magnum"
author = "The Magnum authors"
version = release = magnum.__version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Magnum"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

generate.all_pages(pathlib.Path(__file__).parent / "generated")
