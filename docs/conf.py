"""Settings of the documentation's build: ``make docs``."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "syncserver"
author = "the syncserver developers"
copyright = f"2026, {author}"
release = re.findall(r'__version__ = "(.+)"', (ROOT / "syncserver/version.py").read_text("utf-8"))[
    0
]

sys.path.insert(0, str(Path(__file__).parent))
extensions = ["links"]
exclude_patterns = ["_build"]
nitpicky = True
highlight_language = "none"

html_theme = "furo"
html_title = "syncserver"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f6f5e", "color-brand-content": "#2f6f5e"},
    "dark_css_variables": {"color-brand-primary": "#7cc4b0", "color-brand-content": "#7cc4b0"},
}
html_copy_source = False
html_show_sourcelink = False
