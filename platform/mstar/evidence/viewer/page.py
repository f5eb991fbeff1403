"""The page and the files beside it: no build step, and no address outside the folder."""

import html
from pathlib import Path

from mstar.evidence.viewer.content import ViewContent, data_script
from mstar.schema import RESEARCH_ONLY

ASSETS = Path(__file__).parents[1] / "assets"
STYLES = "viewer.css"
SCRIPTS = ("openseadragon.min.js", "overlay.js", "patch.js", "viewer.js")
LICENCE = "openseadragon-LICENSE.txt"
INDEX, DATA, TILES = "index.html", "data.js", "slide_files"
POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; "
    "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".txt": "text/plain; charset=utf-8"}  # fmt: skip


def page_files(content: ViewContent) -> dict[str, bytes]:
    """Name → bytes of everything but the tiles, the page last."""
    named = (STYLES, *SCRIPTS, LICENCE)
    files = {name: (ASSETS / name).read_bytes() for name in named}
    files[DATA] = data_script(content).encode()
    files[INDEX] = page(content).encode()
    return files


def page(content: ViewContent) -> str:
    """The page; what is on it comes from `data.js`."""
    scripts = "\n".join(f'<script src="{name}"></script>' for name in (DATA, *SCRIPTS))
    return _PAGE.format(
        policy=html.escape(POLICY, quote=True),
        title=html.escape(content.slide_id),
        warning=html.escape(RESEARCH_ONLY[0].upper() + RESEARCH_ONLY[1:]),
        styles=STYLES,
        scripts=scripts,
        licence=LICENCE,
    )


_PAGE = (ASSETS / "viewer.html").read_text(encoding="utf-8")
