"""The pages in a real browser: by mouse and by keyboard, dark and light, wide and narrow, without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.registry.pages.visits import Visitor
from tests.registry.pages.world import FIRST, SECOND
from tests.servers.deltareg_server import RunningServer

PAGES = [
    "/",
    "/?yanked=1&licence=bsd-3-clause",
    "/d/acme/shark?version=1.2.0",
    "/d/acme/hostile",
    f"/compare?first={FIRST}&second={SECOND}",
    "/compare?first=acme/shark&second=acme/none",
    "/fits",
    "/n",
    "/n/acme",
    "/tokens",
    "/audit",
    "/d/acme/none",
    "/sign-in",
]


def test_search_leads_to_a_delta(visitor: Visitor) -> None:
    visitor.one("#text").send_keys("tiger")
    visitor.follow(visitor.one("main form button"))
    assert visitor.one("#found").text == "1 version"
    visitor.follow(visitor.one(".results a"))
    assert visitor.browser.title == "acme/tiger:1.0.0 · deltareg"
    assert "deltareg pull acme/tiger:1.0.0" in visitor.text()
    visitor.follow(visitor.browser.find_element(By.PARTIAL_LINK_TEXT, "find other deltas"))
    assert visitor.browser.find_elements(By.CSS_SELECTOR, ".badge.fit")


def test_commands_are_copied(visitor: Visitor) -> None:
    visitor.go("/d/acme/tiger")
    button = visitor.one(".command button")
    assert button.accessible_name == f"Copy: deltareg pull acme/tiger:1.0.0 --remote {visitor.url}"
    button.click()
    # Whether pages may use the clipboard depends on the browser's settings.
    WebDriverWait(visitor.browser, 5).until(lambda _: button.text in ("Copied", "Marked"))
    assert visitor.one(".command [role=status]").get_attribute("textContent") in (
        f"{button.text}: deltareg pull acme/tiger:1.0.0 --remote {visitor.url}",
    )


def test_one_signs_in_where_one_wanted_to_go_and_out_again(visitor: Visitor, shown: RunningServer) -> None:
    visitor.go("/audit?namespace=acme")
    assert visitor.one("h1").text == "Sign in"
    visitor.follow(visitor.one("#token"), f"drt_wrong{Keys.ENTER}")
    assert "not known here" in visitor.text()
    assert visitor.one("#token").get_attribute("aria-invalid") == "true"
    visitor.one("#token").send_keys(shown.token)
    visitor.follow(visitor.one("main form button"))
    assert visitor.browser.current_url == f"{visitor.url}/audit?namespace=acme"
    assert visitor.browser.execute_script("return document.cookie") == "", "no script can read the token"
    visitor.follow(visitor.one(".who button"))
    assert "Sign in" in visitor.one(".who").text
    visitor.go("/tokens")
    assert visitor.one("h1").text == "Sign in"


def test_token_is_shown_once(visitor: Visitor, shown: RunningServer) -> None:
    visitor.sign_in(shown.user("bert", acme="reader"))
    visitor.go("/tokens")
    visitor.one("#name").send_keys("laptop")
    visitor.follow(visitor.one("main form.stacked button"))
    token = visitor.one("[role=status] code").text
    assert token.startswith("drt_")
    visitor.go("/tokens")
    assert token not in visitor.browser.page_source and "laptop" in visitor.text()
    visitor.follow(visitor.one("[aria-label='Revoke laptop']"))
    assert not visitor.browser.find_elements(By.CSS_SELECTOR, "[aria-label='Revoke laptop']")


def test_files_are_uploaded_and_judged(visitor: Visitor, anarcii_bf16: Mapping[str, Path]) -> None:
    visitor.go("/fits")
    visitor.one("#config").send_keys(str(anarcii_bf16["antibody_4_2"] / "config.json"))
    visitor.one("#deltas").send_keys(FIRST)
    visitor.follow(visitor.one("main form button"))
    assert visitor.one("#result").text == "1 delta judged"
    assert "lineage-unknown" in visitor.text()


def test_keyboard_alone_is_enough(visitor: Visitor, shown: RunningServer) -> None:
    visitor.go("/")
    assert visitor.press(Keys.TAB).text == "Skip to the content"
    visitor.press(Keys.ENTER)
    assert visitor.browser.switch_to.active_element.tag_name == "main"
    visitor.follow(visitor.tab_to("#text"), f"tiger{Keys.ENTER}")
    assert visitor.one("#found").text == "1 version"
    visitor.follow(visitor.tab_to(".results a"), Keys.ENTER)
    assert visitor.one("h1").text == "acme/tiger 1.0.0"
    visitor.tab_to("details summary").send_keys(Keys.ENTER)
    assert visitor.one("details").get_attribute("open") is not None
    visitor.go("/sign-in")
    visitor.follow(visitor.tab_to("#token"), shown.token + Keys.ENTER)
    assert "Signed in as" in visitor.text()
    visitor.go("/n/acme")
    visitor.tab_to("#role")
    visitor.tab_to("#public")
    visitor.go("/tokens")
    visitor.tab_to("#namespace")


def test_pages_work_without_scripts(visitor: Visitor, shown: RunningServer, anarcii_bf16: Mapping[str, Path]) -> None:
    visitor.protocol("Emulation.setScriptExecutionDisabled", value=True)
    visitor.go("/d/acme/shark?version=1.0.0")
    assert f"deltareg pull {FIRST} --remote {visitor.url}" in visitor.text()
    assert visitor.browser.find_elements(By.CSS_SELECTOR, ".command button") == []
    assert visitor.browser.find_elements(By.CSS_SELECTOR, "svg polyline")
    visitor.sign_in(shown.token)
    assert "Signed in as owner" in visitor.text()
    visitor.go("/fits")
    visitor.one("#config").send_keys(str(anarcii_bf16["antibody_4_2"] / "config.json"))
    visitor.follow(visitor.one("main form button"))
    assert "judged" in visitor.one("#result").text
    visitor.go("/n/acme")
    visitor.follow(visitor.one("#settings + form button"))
    assert visitor.browser.current_url == f"{visitor.url}/n/acme#settings"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_texts_can_be_told_from_what_is_behind_them(visitor: Visitor, shown: RunningServer, scheme: str) -> None:
    visitor.sign_in(shown.token)
    visitor.prefer(scheme)
    backgrounds: set[str] = set()
    for path in PAGES:
        visitor.go(path)
        assert visitor.faint() == [], path
        backgrounds.add(visitor.one("body").value_of_css_property("background-color"))
    assert backgrounds == {"rgba(246, 247, 249, 1)" if scheme == "light" else "rgba(18, 21, 27, 1)"}


def test_faint_texts_are_found(visitor: Visitor) -> None:
    visitor.browser.execute_script("document.querySelector('h1').style.color = '#aaa'")
    assert visitor.faint() == ["Search deltas: 2.17"]


def test_pages_fit_a_telephone(visitor: Visitor, shown: RunningServer) -> None:
    visitor.sign_in(shown.token)
    visitor.protocol("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=False)
    assert {path: visitor.overflow() for path in PAGES if visitor.go(path) is None and visitor.overflow() > 0} == {}


def test_a_word_without_end_is_broken_into_lines(visitor: Visitor) -> None:
    visitor.protocol("Emulation.setDeviceMetricsOverride", width=375, height=740, deviceScaleFactor=1, mobile=False)
    visitor.go("/")
    visitor.browser.execute_script("document.querySelector('.results p').textContent = 'x'.repeat(400)")
    assert visitor.overflow() <= 0


def test_what_a_finger_has_to_meet_is_large_enough(visitor: Visitor, shown: RunningServer) -> None:
    visitor.sign_in(shown.token)
    for path in ("/", "/n", "/n/acme", "/tokens", "/d/acme/shark?version=1.0.0"):
        visitor.go(path)
        found = visitor.browser.find_elements(
            By.CSS_SELECTOR, "main input:not([type=hidden]), main select, main button"
        )
        assert found and min(one.size["height"] for one in found) >= 24, path


def test_publisher_moves_a_channel_in_the_browser(visitor: Visitor, shown: RunningServer) -> None:
    visitor.sign_in(shown.token)
    visitor.go("/d/acme/tiger")
    visitor.one("#channel").send_keys("calm")
    visitor.follow(visitor.one("#channel"), Keys.ENTER)
    assert "calm leads to 1.0.0" in visitor.text()
    assert visitor.one("#channels").text == "Channels"
    assert visitor.faint() == []


def test_texts_that_mean_harm_do_none(visitor: Visitor, shown: RunningServer) -> None:
    visitor.sign_in(shown.token)
    for path, title in (
        ("/", "Search · deltareg"),
        ("/d/acme/hostile", "acme/hostile:1.0.0 · deltareg"),
        ("/d/acme/shark?version=1.2.0", "acme/shark:1.2.0 · deltareg"),
        ("/audit", "Audit log · deltareg"),
    ):
        visitor.go(path)
        assert visitor.browser.title == title
        assert "document.title = 'owned'" in visitor.text()
        assert visitor.console() == []


def test_browser_refuses_what_the_policy_does_not_allow(visitor: Visitor) -> None:
    script = "const one = document.createElement('script'); one.textContent = 'document.title = 1';"
    visitor.browser.execute_script(f"{script} document.body.append(one)")
    assert visitor.browser.title == "Search · deltareg"
    assert any("Content Security Policy" in line for line in visitor.console())
