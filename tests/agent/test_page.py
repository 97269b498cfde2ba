"""The page in a real browser: Debian's chromium, with 10,000 Services, by mouse, by keyboard, in light and dark."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from ipvs_proxy.kube.objects import KubernetesObject
from tests.agent.test_controller import Rig
from tests.agent.test_view import shown
from tests.support.objects import endpoint, endpoint_slice, real, service, virtual

CHROMIUM = shutil.which("chromium")
#: Where pictures are kept for people to look at, if somewhere.
PICTURES = os.environ.get("PAGE_PICTURES", "")
SERVICES = 10_000
NAME = re.compile(r"shop-\d+/service-\d+")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def cluster() -> Iterator[KubernetesObject]:
    for number in range(SERVICES):
        namespace, name = f"shop-{number % 40:02}", f"service-{number:05}"
        yield service(
            name, namespace=namespace, cluster_ip=f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}"
        )
        pods = [f"10.{128 + number // 16384}.{number // 64 % 256}.{number % 64 * 4 + pod}" for pod in range(3)]
        endpoints = [
            endpoint(pod, node=f"node-{pod[-1]}", ready=index < 2 or number % 7 != 0) for index, pod in enumerate(pods)
        ]
        yield endpoint_slice(*endpoints, name=f"{name}-x", of=name, namespace=namespace)
    yield service("<b>bold</b>", namespace="markup", cluster_ip="10.200.0.1")


@asynccontextmanager
async def opened(
    *objects: KubernetesObject, viewport: dict[str, int] | None = None, scheme: str = "light"
) -> AsyncIterator[tuple[Page, Rig, list[str]]]:
    """Open the page; give it with the agent, and all requests that the browser made elsewhere, and its complaints."""
    assert CHROMIUM, "the browser is missing: make setup installs it"
    async with shown(*(objects or tuple(cluster()))) as (url, rig, _), async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page(viewport=viewport or DESKTOP, color_scheme=scheme)  # type: ignore[arg-type]
            page.set_default_timeout(60_000)
            strange: list[str] = []
            page.on(
                "request",
                lambda request: None if request.url.startswith((url, "data:")) else strange.append(request.url),
            )
            page.on("console", lambda message: strange.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: strange.append(str(error)))
            await page.goto(url)
            yield page, rig, strange
        finally:
            await browser.close()


async def picture(page: Page, name: str) -> None:
    if PICTURES:
        await page.screenshot(path=Path(PICTURES) / f"{name}.png")


async def test_ten_thousand_services_are_searched_paged_and_looked_into() -> None:
    async with opened() as (page, _, strange):
        rows = page.locator("#services tbody tr")
        await expect(rows).to_have_count(100, timeout=60_000)
        await expect(page.locator("#range")).to_have_text("1-100 of 10,001")
        await expect(page.locator("#health")).to_contain_text("healthy, version")
        await picture(page, "list-light")
        # Names are text, whatever is in them.
        await page.get_by_label("Search").fill("markup/")
        await expect(rows).to_have_count(1)
        await expect(rows.first).to_contain_text("markup/<b>bold</b>")
        await expect(rows.first).to_contain_text("no endpoint")
        await page.get_by_label("Search").fill("10.96.39.15")
        await expect(rows).to_have_count(1)
        await expect(rows.first).to_contain_text("shop-39/service-09999")
        await page.get_by_label("Search").fill("")
        await page.get_by_role("button", name="Next").click()
        await expect(page.locator("#range")).to_have_text("101-200 of 10,001")
        await expect(page.get_by_role("button", name="Previous")).to_be_enabled()
        await page.get_by_label("Search").fill("service-00007")
        await page.get_by_role("link", name="shop-07/service-00007").click()
        await expect(page.get_by_role("heading", level=2).first).to_be_focused()
        endpoints = page.locator("table.endpoints tbody tr")
        await expect(endpoints).to_have_count(3)
        assert sorted([(await row.locator("td").all_inner_texts())[1:4] for row in await endpoints.all()]) == [
            ["in", "ready", "1"],
            ["in", "ready", "1"],
            ["out", "not-ready", "-"],
        ]
        await picture(page, "service-light")
        await page.go_back()
        await expect(rows).to_have_count(1)
        assert strange == []


async def test_what_changes_and_what_differs_is_seen_without_a_reload() -> None:
    one = endpoint_slice(endpoint("10.244.0.1"))
    async with opened(service(), one) as (page, rig, strange):
        await expect(page.locator("#services tbody tr")).to_contain_text("ok")
        rig.replace(one, endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2")))
        await expect(page.locator("#changes")).to_contain_text("default/web")
        rig.history.repaired("ipvs", ["10.96.0.10:80/TCP"])
        await expect(page.locator("#repairs")).to_contain_text("ipvs: 1")
        await page.get_by_role("link", name="default/web").click()
        del rig.plane.kernel.virtual_servers[virtual("10.96.0.10")].real_servers[real("10.244.0.2")]
        await expect(page.locator("#detail")).to_contain_text("lacks real server 10.244.0.2:8080")
        await expect(page.locator("#detail")).to_contain_text("NOT as it should be")
        assert strange == []


async def test_page_is_used_by_keyboard_alone() -> None:
    async with opened(service(), endpoint_slice(endpoint("10.244.0.1"))) as (page, _, _strange):
        await expect(page.locator("#services tbody tr")).to_have_count(1)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the Services")).to_be_focused()
        await page.get_by_label("Search").focus()
        await page.keyboard.type("web")
        link = page.get_by_role("link", name="default/web")
        for _ in range(10):
            await page.keyboard.press("Tab")
            if await link.evaluate("node => node === document.activeElement"):
                break
        # It is written anew every two seconds: the focus stays where it was.
        await page.wait_for_timeout(2_500)
        await expect(link).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("table.endpoints tbody tr")).to_have_count(1)


@pytest.mark.parametrize(("name", "viewport"), [("desktop", DESKTOP), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_is_cut_off_and_text_has_contrast(name: str, viewport: dict[str, int], scheme: str) -> None:
    objects = [service(), endpoint_slice(endpoint("10.244.0.1", node="node-with-a-long-name"))]
    async with opened(*objects, viewport=viewport, scheme=scheme) as (page, _, strange):
        await expect(page.locator("#services tbody tr")).to_have_count(1)
        for view in ("list", "service"):
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], view
            low = await page.evaluate(CONTRAST)
            assert low == [], view
            await picture(page, f"{view}-{name}-{scheme}")
            await page.get_by_role("link", name="default/web").click() if view == "list" else None
            await expect(page.locator("table.endpoints tbody tr")).to_have_count(1)
        assert strange == []


#: The texts whose contrast with their background is below 4.5 (WCAG 2.2, 1.4.3), with the contrast.
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backOf = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.disabled || node.tagName === "NOSCRIPT") continue;
    const [a, b] = [light(getComputedStyle(node).color), light(backOf(node))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) low.push([node.textContent, contrast]);
  }
  return low;
}"""
