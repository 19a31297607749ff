"""The page's own files, read once: nothing else is ever served."""

from pathlib import Path

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def static_files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of every file, by the path at which it is found; the page is at `/`."""
    files = {f"/{file.name}": (file.read_bytes(), TYPES[file.suffix]) for file in FOLDER.iterdir() if file.is_file()}
    return {"/": files.pop("/index.html"), **files}
