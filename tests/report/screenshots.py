"""python3 -m tests.report.screenshots PAGE DIR: the report's page in a headless Chromium, as pictures DIR/page-*.png.

The browser is $CHROMIUM, else `chromium`, `chromium-browser`, `google-chrome` or
`chrome` on the PATH; Debian has it as the package chromium. What could go wrong on
the page ends the command: something that is loaded, or that is wider than the screen.
"""

import argparse
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from k1.errors import K1Error, command
from k1.files import write_atomically
from tests.report.chromium import Chromium

MAX_BYTES = 300_000


class View(NamedTuple):
    """A part of the page on a screen `width` CSS pixels wide: `height` pixels from the element `start` on."""

    name: str
    width: int
    scheme: str
    start: str
    height: int


VIEWS = (
    View("light", 1280, "light", "body", 1400),
    View("pictures", 1280, "light", "#pictures", 1100),
    View("dark", 1280, "dark", "#texts", 1400),
    View("phone", 390, "light", "body", 1400),
    View("phone-texts", 390, "dark", "#texts", 1400),
)


def loaded_from_elsewhere(browser: Chromium, page: Path) -> list[str]:
    """The addresses that the open page has asked for, apart from its own and from what it holds itself."""
    requests = [event for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    addresses = [event["params"]["request"]["url"] for event in requests]
    return [address for address in addresses if not address.startswith((page.resolve().as_uri(), "data:"))]


def take(browser: Chromium, page: Path, view: View) -> bytes:
    """A PNG of `view`; raises `K1Error` if the page is too wide for it or loads anything."""
    browser.open(page, view.width, view.scheme)
    if found := loaded_from_elsewhere(browser, page):
        raise K1Error(f"{page} is not self-contained: it loads {', '.join(found)}")
    width, bottom = browser.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    if width > view.width:
        raise K1Error(f"{page} is {width} pixels wide on a screen of {view.width}")
    top = browser.evaluate(f"document.querySelector('{view.start}').getBoundingClientRect().top + window.scrollY")
    picture = Image.open(io.BytesIO(browser.screenshot(int(top), min(view.height, bottom - int(top)), view.width)))
    small = io.BytesIO()
    picture.convert("RGB").save(small, "png", optimize=True)
    if small.tell() > MAX_BYTES:
        raise K1Error(f"the picture of view '{view.name}' has {small.tell():,} bytes; lower its height in VIEWS")
    return small.getvalue()


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.report.screenshots", description=__doc__)
    parser.add_argument("page", type=Path, help="what python3 -m k1.report --html has written")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    if not arguments.page.is_file():
        parser.error(f"{arguments.page} is not a file; python3 -m k1.report --html FILE writes one")
    with Chromium() as browser:
        for view in VIEWS:
            picture = take(browser, arguments.page, view)
            write_atomically(
                arguments.folder / f"page-{view.name}.png", lambda file, picture=picture: file.write(picture)
            )


if __name__ == "__main__":
    main()
