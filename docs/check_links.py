"""Checks that all links within a built site lead somewhere, and that no page loads from outside.

Usage: `python docs/check_links.py build/docs`.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to.

    Args:
        text: The HTML.
    """

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = {name: value for name, value in attributes if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


def faults_of(site: Path) -> list[str]:
    """Returns a line for each link or load of a site that is wrong."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    faults = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in page.links + page.loaded:
            target = urlsplit(address)
            if target.scheme or target.netloc:
                if address in page.loaded and target.scheme != "data":
                    faults.append(f"{where} loads {address}")
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                faults.append(f"{where} links to {address}, which does not exist")
            elif file in pages and unquote(target.fragment) not in pages[file].anchors:
                faults.append(f"{where} links to {address}, which has no such place")
    return faults


if __name__ == "__main__":
    site = Path(sys.argv[1]).resolve()
    found = faults_of(site)
    print("\n".join(found) or f"All links in {len(list(site.rglob('*.html')))} pages are right.")
    sys.exit(bool(found))
