"""Looking at pages with a real browser: what it is told by its protocol, and what readers of all kinds need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from selenium.webdriver import Remote
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.file_detector import UselessFileDetector
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

__all__ = ["Visitor"]

_CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = element => {
  for (let one = element; one; one = one.parentElement) {
    const found = rgb(getComputedStyle(one).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found;
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("title, desc, option")) continue;
  const style = getComputedStyle(element);
  const text = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(rgb(text)), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) found.push(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return found;
"""


@dataclass(frozen=True)
class Visitor:
    """Somebody with a browser."""

    browser: Remote
    url: str

    def arrive(self) -> None:
        """Open the first page without a cookie."""
        # The browser runs on this machine: files need not be sent to it.
        self.browser.file_detector = UselessFileDetector()
        connection = cast(RemoteConnection, self.browser.command_executor)
        connection.add_command("protocol", "POST", "/session/$sessionId/goog/cdp/execute")
        connection.add_command("log", "POST", "/session/$sessionId/se/log")
        self.browser.get(self.url)
        self.browser.delete_all_cookies()
        self.go("/")
        self.console()

    def leave(self) -> None:
        """Leave the browser as it was."""
        self.protocol("Emulation.setScriptExecutionDisabled", value=False)
        self.protocol("Emulation.setEmulatedMedia", features=[])
        self.protocol("Emulation.clearDeviceMetricsOverride")
        self.browser.delete_all_cookies()

    def go(self, path: str) -> None:
        """Open a page."""
        self.browser.get(self.url + path)

    def protocol(self, command: str, **values: Any) -> Any:
        """Tell the browser something that WebDriver has no words for."""
        return self.browser.execute("protocol", {"cmd": command, "params": values})["value"]

    def prefer(self, scheme: str) -> None:
        """Prefer dark or light pages."""
        self.protocol("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def console(self) -> list[str]:
        """What was written to the console since it was asked for last; that an answer was a 4xx is no error here."""
        lines = self.browser.execute("log", {"type": "browser"})["value"]
        return [line["message"] for line in lines if "responded with a status of 4" not in line["message"]]

    def sign_in(self, token: str) -> None:
        """Sign in by the form."""
        self.go("/sign-in")
        self.one("#token").send_keys(token)
        self.follow(self.one("main form button"))

    def follow(self, element: WebElement, keys: str | None = None) -> None:
        """Click an element, or press keys on it, and wait for the page that it leads to: WebDriver may not."""
        before = self.one("html")
        if keys is None:
            element.click()
        else:
            element.send_keys(keys)
        waiting = WebDriverWait(self.browser, 20, 0.02)
        waiting.until(staleness_of(before))
        waiting.until(lambda browser: browser.find_elements(By.TAG_NAME, "footer"))

    def one(self, selector: str) -> WebElement:
        """The first element that a selector finds."""
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self) -> str:
        """What the page says."""
        return self.one("body").text

    def press(self, keys: str) -> WebElement:
        """Press a key; the element that has the focus then."""
        self.browser.switch_to.active_element.send_keys(keys)
        return self.browser.switch_to.active_element

    def tab_to(self, selector: str) -> WebElement:
        """Press Tab until an element has the focus, and see that the focus can be seen wherever it comes."""
        wanted = self.one(selector)
        for _ in range(80):
            found = self.press(Keys.TAB)
            outline = self.browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", found.get_attribute("outerHTML")
            if found == wanted:
                return found
        raise AssertionError(f"Tab does not come to {selector}")

    def faint(self) -> list[str]:
        """Texts whose contrast with what is behind them is less than WCAG 2.2 AA asks for."""
        return cast("list[str]", self.browser.execute_script(_CONTRAST))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return cast(int, self.browser.execute_script("return document.documentElement.scrollWidth - innerWidth"))
