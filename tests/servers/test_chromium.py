"""The browser shows pages and runs what is in them, and reaches nothing but this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Remote
from selenium.webdriver.common.by import By

from tests.servers.nginx import serve_nginx

PAGE = """<!doctype html><title>Deltas</title><p id=told></p>
<script>document.getElementById("told").textContent = [1, 2, 3].join("+")</script>"""


def test_page_is_shown_and_its_script_runs(browser: Remote, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(PAGE)
    with serve_nginx(f"root {tmp_path}; types {{ text/html html; }}") as url:
        browser.get(url)
        assert browser.title == "Deltas"
        assert browser.find_element(By.ID, "told").text == "1+2+3"
    with pytest.raises(WebDriverException, match="ERR_NAME_NOT_RESOLVED"):
        browser.get("http://deltareg.example/")
