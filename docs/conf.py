"""Settings of the documentation's build: ``make docs``."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "syncserver"
author = "the syncserver developers"
copyright = f"2026, {author}"
release = re.findall(r'__version__ = "(.+)"', (ROOT / "syncserver/version.py").read_text("utf-8"))[
    0
]

extensions: list[str] = []
exclude_patterns = ["_build"]
nitpicky = True
highlight_language = "none"

html_theme = "alabaster"
html_theme_options = {
    "description": "Lists in browsers that stay equal to rows in a database",
    "fixed_sidebar": True,
    "page_width": "60rem",
}
html_copy_source = False
