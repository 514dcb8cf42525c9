"""Take the pictures of docs/pictures: the page /learn with primer, on a desk and on a phone, light and dark.

python scripts/learn_pictures.py          needs pip install '.[browser]', Chromium and Pillow
"""

import shutil
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import sync_playwright

from numllama.benchmarks.learn import CHROMIUM, learn_server

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
STATE = {"model": "primer", "prompt": "Why is the grass green?", "seed": 4, "token": 32}
SIZES = {"learn": (1280, 800), "learn-phone": (390, 844)}

if __name__ == "__main__":
    path = next(found for name in CHROMIUM if (found := shutil.which(name)))
    with learn_server("primer") as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            for scheme, ending in (("light", ""), ("dark", "-dark")):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(f"{address}#{urlencode(STATE)}")
                page.locator(".times", has_text="decode").wait_for()
                page.wait_for_timeout(500)  # maps are drawn
                picture = Image.open(BytesIO(page.screenshot())).quantize(128)  # a third of the bytes
                picture.save(FOLDER / f"{name}{ending}.png", optimize=True)
                page.close()
