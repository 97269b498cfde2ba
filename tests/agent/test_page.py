"""The page in a real browser: Debian's chromium, with 10,000 Services, by mouse, by keyboard, in light and dark."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from msgspec import structs
from playwright.async_api import Page, async_playwright, expect

from ipvs_proxy.kernel.ipvs.records import Balanced, Counters
from ipvs_proxy.kube.objects import (
    EndpointPort,
    KubernetesObject,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceStatus,
)
from tests.support.objects import endpoint, endpoint_slice, real, service, virtual
from tests.support.rig import Rig
from tests.support.shown import shown

CHROMIUM = shutil.which("chromium")
#: Where pictures are kept for people to look at, if somewhere.
PICTURES = os.environ.get("PAGE_PICTURES", "")
SERVICES = 10_000
TRAFFIC = Balanced(
    Counters(1_234_567, 98_765_432, 87_654_321, 9_876_543_210, 98_765_432_100),
    Counters(1_250, 9_000, 8_000, 75_000, 3_400_000),
)
NAME = re.compile(r"shop-\d+/service-\d+")
DESKTOP, NARROW, PHONE = ({"width": width, "height": height} for width, height in ((1280, 900), (640, 900), (360, 740)))

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
    """Open the page; return it with the agent, and all requests that the browser made elsewhere, and its complaints."""
    assert CHROMIUM, "the browser is missing: make setup installs it"
    async with shown(*(objects or tuple(cluster()))) as (url, rig, ipvs), async_playwright() as playwright:
        ipvs.balanced = TRAFFIC
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
        await page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


async def test_ten_thousand_services_are_searched_paged_and_looked_into() -> None:
    async with opened() as (page, _, strange):
        rows = page.locator("#services tbody tr")
        await expect(rows).to_have_count(100, timeout=60_000)
        await expect(page.locator("#range")).to_have_text("1-100 of 10,001")
        await expect(page.locator("#health")).to_have_text("healthy")
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


async def test_weights_and_who_gave_them_are_shown() -> None:
    asked = {
        "ipvs-proxy.io/weights": "node=edge-1:0, node=big:3",
        "ipvs-proxy.io/max-connections": "500",
        "ipvs-proxy.io/slow-start": "1h",
    }
    made = service()
    made = structs.replace(made, metadata=structs.replace(made.metadata, annotations=asked))
    pods = [endpoint("10.244.0.1", node="edge-1"), endpoint("10.244.0.2", node="big")]
    async with opened(made, endpoint_slice(*pods)) as (page, rig, strange):
        rig.replace(endpoint_slice(*pods), endpoint_slice(*pods, endpoint("10.244.0.3", node="other")))
        row = page.locator("#services tbody tr")
        await expect(row).to_contain_text("warming")
        await expect(row).to_contain_text("wrr")
        await page.get_by_role("link", name="default/web").click()
        detail = page.locator("#detail")
        await expect(detail).to_contain_text("wrr (because of weights), at most 500 connections an endpoint")
        endpoints = page.locator("table.endpoints tbody tr")
        await expect(endpoints).to_have_count(3)
        found = [(await row.locator("td").all_inner_texts())[1:5] for row in await endpoints.all()]
        assert [cells[:3] for cells in found] == [
            ["paused", "ready", "0"],
            ["in", "ready", "30"],
            ["warming", "ready", "1"],
        ]
        assert found[0][3] == "node=edge-1:0"
        assert found[1][3] == "node=big:3"
        assert re.fullmatch(r"slow start, (59|60)m left", found[2][3])
        await picture(page, "weights-light")
        assert strange == []


async def test_time_since_the_start_goes_on_while_nothing_else_changes() -> None:
    async with opened(service()) as (page, _, _strange):
        await expect(page.locator("#uptime")).to_contain_text("up ")
        before = await page.locator("#uptime").inner_text()
        await expect(page.locator("#uptime")).not_to_have_text(before, timeout=10_000)
        await expect(page.locator("#health")).to_have_text("healthy")


async def test_service_whose_address_another_one_has_says_so() -> None:
    async with opened(*busy_node()) as (page, _, _strange):
        row = page.locator("#services tbody tr", has_text="payments-production/rival")
        await expect(row).to_contain_text("conflict")
        await row.get_by_role("link").click()
        await expect(page.locator("#detail")).to_contain_text("Another Service has some of its addresses.")
        await expect(page.locator("#detail")).to_contain_text(
            "external-ip; the older Service payments-production/checkout-"
        )


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


WEB_SLICE = endpoint_slice(
    endpoint("10.244.1.17", node="worker-eu-central-1a-07f3"),
    endpoint("10.244.2.4", node="worker-eu-central-1b-01c2"),
    endpoint("10.244.2.200", node="worker-eu-central-1b-01c2", ready=False),
    endpoint("10.244.3.9", node="node", ready=False, serving=True, terminating=True),
)


def with_external_ip(item: Service, address: str) -> Service:
    return msgspec.structs.replace(item, spec=msgspec.structs.replace(item.spec, external_ips=[address]))


def busy_node() -> Iterator[KubernetesObject]:
    """A node in some trouble: conflicts, omissions, long names, no endpoints, two families."""
    yield service("web", cluster_ips=["10.96.0.10", "fd00:10:96::a0b1:10"], families=["IPv4", "IPv6"])
    yield WEB_SLICE
    gateway = service(
        "checkout-gateway-with-a-name-as-long-as-they-get",
        namespace="payments-production",
        cluster_ip="10.96.200.131",
        kind="LoadBalancer",
        ports=[
            ServicePort(port=443, name="https", node_port=31443),
            ServicePort(port=80, name="http", node_port=31080),
        ],
    )
    status = ServiceStatus(LoadBalancerStatus([LoadBalancerIngress(ip="203.0.113.80")]))
    yield msgspec.structs.replace(gateway, status=status)
    yield endpoint_slice(
        *(endpoint(f"10.244.9.{number}", node=f"worker-{number}") for number in range(1, 13)),
        of=gateway.metadata.name,
        namespace="payments-production",
        ports=[EndpointPort("https", 8443), EndpointPort("http", 8080)],
    )
    rival = service("rival", namespace="payments-production", cluster_ip="10.96.200.132", age=-60)
    yield with_external_ip(rival, "203.0.113.80")
    yield with_external_ip(service("odd", namespace="legacy", cluster_ip="10.96.7.7"), "127.0.0.1")
    for number in range(6):
        yield service(f"service-{number}", namespace="shop", cluster_ip=f"10.96.44.{number}")
        yield endpoint_slice(endpoint(f"10.244.7.{number + 1}"), of=f"service-{number}", namespace="shop")


async def trouble(page: Page, rig: Rig) -> None:
    """Let an endpoint drain, and repairs be made."""
    rig.replace(WEB_SLICE, msgspec.structs.replace(WEB_SLICE, endpoints=list(WEB_SLICE.endpoints or ())[1:]))
    rig.history.repaired("ipvs", ["10.96.0.10:80/TCP real server 10.244.2.4:8080", "10.96.44.1:80/TCP"])
    rig.history.repaired("addresses", [f"10.96.44.{number}" for number in range(6)])
    rig.history.repaired("rules", ["KUBE-SERVICES"])
    await expect(page.locator("#repairs")).to_contain_text("rules: 1")
    await expect(page.locator("#services tbody tr").first.locator("td").nth(4)).to_have_text("1")


@pytest.mark.parametrize(("name", "viewport"), [("desktop", DESKTOP), ("narrow", NARROW), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_is_cut_off_and_text_has_contrast(name: str, viewport: dict[str, int], scheme: str) -> None:
    async with opened(*busy_node(), viewport=viewport, scheme=scheme) as (page, rig, strange):
        await expect(page.locator("#services tbody tr")).to_have_count(10)
        await trouble(page, rig)
        for view in ("list", "service"):
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], view
            assert await page.evaluate(SCROLLED) == [], view
            low = await page.evaluate(CONTRAST)
            assert low == [], view
            await picture(page, f"{view}-{name}-{scheme}")
            await page.get_by_role("link", name="default/web").click() if view == "list" else None
            await expect(page.locator("table.endpoints").first).to_be_visible()
        assert strange == []


#: The tables of which a part is out of sight.
SCROLLED = """() => [...document.querySelectorAll(".scroll")]
  .filter((region) => region.scrollWidth > region.clientWidth)
  .map((region) => `${region.textContent.trim().slice(0, 40)}: ${region.scrollWidth} of ${region.clientWidth}`)"""

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
