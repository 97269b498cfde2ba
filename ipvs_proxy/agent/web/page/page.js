"use strict";
// Shows what /state says, again every two seconds while the page is visible. Everything is written as text, never as HTML.

const INTERVAL = 2000;
const LIMIT = 100;
const view = { search: "", offset: 0, matching: 0, timer: 0, asked: 0 };
const byId = (id) => document.getElementById(id);

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function short(number) {
  const units = ["", "k", "M", "G", "T", "P", "E"];
  let unit = 0;
  while (number >= 999.5 && unit < units.length - 1) { number /= 1000; unit += 1; }
  return (unit && number < 9.95 ? number.toFixed(1) : number.toFixed(0)) + units[unit];
}

function span(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
    if (seconds >= 2 * size) return Math.floor(seconds / size) + unit;
  }
  return seconds + "s";
}

const ago = (then, now) => span(Math.max(0, Math.floor((new Date(now) - new Date(then)) / 1000)));

function row(cells) {
  const made = element("tr");
  for (const [text, classes, link] of cells) {
    const cell = element("td", link ? undefined : text, classes);
    if (link) {
      const anchor = element("a", text);
      anchor.href = link;
      cell.append(anchor);
    }
    made.append(cell);
  }
  return made;
}

function stateOf(service) {
  if (!service.inSync) return service.differenceKinds.every((kind) => kind === "conflict") ? ["conflict", "warn"] : ["differs", "bad"];
  if (!service.virtualServers) return [service.omissions.length ? service.omissions[0].reason : "not served", "faint"];
  if (!service.endpoints) return [service.paused ? "paused" : "no endpoint", "warn"];
  if (!service.omissions.length) return [service.warming ? "warming" : "ok", "good"];
  return [service.omissions.every((omission) => omission.instead) ? "otherwise" : "left out", "warn"];
}

const more = (names) => (names.length ? names[0] + (names.length > 1 ? ` +${names.length - 1}` : "") : "-");

function serviceRow(service) {
  const name = `${service.namespace}/${service.name}`;
  const rate = service.perSecond;
  const [word, colour] = stateOf(service);
  return row([
    [name, "", `#/${encodeURIComponent(service.namespace)}/${encodeURIComponent(service.name)}`],
    [more(service.addresses), "wide"], [more(service.ports), "wide"], [more(service.schedulers), "wide"],
    [String(service.endpoints), "number"], [service.draining ? String(service.draining) : "", "number middle"],
    [short(rate.connections), "number"], [short(rate.bytesIn), "number middle"], [short(rate.bytesOut), "number middle"],
    [word, colour],
  ]);
}

function happening(item, now) {
  const took = item.milliseconds === null || item.milliseconds === undefined ? "" : ` in ${item.milliseconds} ms`;
  const what = item.what === "programmed" ? `${item.count} ${item.count === 1 ? "write" : "writes"}${took}` : `${item.what}: ${item.count}`;
  const made = element("li");
  made.append(element("span", `${ago(item.time, now)} ago · ${what} · `, "faint"), item.objects.join(", ") + (item.count > item.objects.length && item.what !== "programmed" ? ", …" : ""));
  return made;
}

function list(id, items, now) {
  const found = items.slice(0, 8).map((item) => happening(item, now));
  byId(id).replaceChildren(...(found.length ? found : [element("li", "none", "faint")]));
}

// Said aloud when it changes, not with every look.
function tell(text, colour) {
  const line = byId("health");
  line.className = colour;
  if (line.textContent !== text) line.textContent = text;
}

function showNode(state) {
  byId("node").textContent = state.node;
  document.title = `${state.node} - ipvs-proxy`;
  const [text, colour] = !state.programmed ? ["starting", "warn"]
    : !state.healthy ? ["changes wait: not healthy", "bad"]
    : state.apiFailures.length ? [`changes are not seen: nothing is heard of ${state.apiFailures[0]}`, "bad"]
    : ["healthy", "good"];
  tell(text, colour);
  byId("uptime").textContent = `, version ${state.version}, up ${ago(state.started, state.now)}`;
  const counts = [
    ["Services", state.serviceCount], ["virtual servers", state.virtualServers], ["real servers", state.realServers],
    ["draining", state.draining], ["conflicts", state.conflicts], ["refused", state.waiting],
    ["foreign", state.foreignVirtualServers.length],
  ];
  byId("counts").replaceChildren(...counts.map(([name, number]) => {
    const made = element("div");
    made.append(element("dt", name), element("dd", number.toLocaleString("en")));
    return made;
  }));
  list("changes", state.changes, state.now);
  list("repairs", state.repairs, state.now);
}

function showList(state) {
  view.matching = state.matching;
  const last = Math.min(view.offset + state.services.length, state.matching);
  const range = state.matching ? `${view.offset + 1}-${last} of ${state.matching.toLocaleString("en")}` : "none";
  if (byId("range").textContent !== range) byId("range").textContent = range;
  byId("previous").disabled = view.offset === 0;
  byId("next").disabled = last >= state.matching;
  const body = byId("services").tBodies[0];
  const focused = body.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  body.replaceChildren(...state.services.map(serviceRow));
  if (focused) {
    [...body.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus({ preventScroll: true });
  }
}

function useOf(endpoint) {
  if (endpoint.wanted && endpoint.weight === 0 && endpoint.wantedWeight === 0) return ["paused", "warn"];
  if (endpoint.wanted) return !endpoint.weight ? ["missing", "bad"] : endpoint.warmingSeconds === null ? ["in", "good"] : ["warming", "good"];
  if (endpoint.weight === null) return ["out", "faint"];
  return endpoint.weight === 0 ? ["draining", "warn"] : ["unwanted", "bad"];
}

function weightReason(endpoint) {
  const warming = endpoint.warmingSeconds === null ? "" : `slow start, ${span(Math.ceil(endpoint.warmingSeconds))} left`;
  return [endpoint.weightFrom, warming].filter(Boolean).join(", ");
}

function scheduling(server) {
  const chosen = { annotation: " (by annotation)", weights: " (because of weights)" }[server.schedulerFrom] || "";
  const least = server.minConnections ? `, and new ones again below ${server.minConnections}` : "";
  const most = server.maxConnections ? `, at most ${server.maxConnections.toLocaleString("en")} connections an endpoint${least}` : "";
  return [server.scheduler, ...server.flags].join(" ") + chosen + most;
}

function endpointsTable(server) {
  const table = element("table", undefined, "endpoints");
  table.append(element("caption", `Endpoints of ${server.name}`, "faint"));
  const head = element("tr");
  for (const [name, classes] of [["Endpoint", ""], ["Use", ""], ["Reason", ""], ["Weight", "number wide"], ["By", "words wide"], ["Active", "number"],
    ["Inactive", "number wide"], ["Conn/s", "number middle"], ["In/s", "number wide"], ["Out/s", "number wide"], ["Node", "wide"]]) {
    const cell = element("th", name, classes);
    cell.scope = "col";
    head.append(cell);
  }
  table.createTHead().append(head);
  const body = table.createTBody();
  for (const endpoint of server.endpoints.slice(0, 500)) {
    const rate = endpoint.perSecond;
    const [word, colour] = useOf(endpoint);
    body.append(row([
      [endpoint.address], [word, colour], [endpoint.reason || "no longer wanted", "words"],
      [endpoint.weight === null ? "-" : String(endpoint.weight), "number wide"], [weightReason(endpoint), "words wide"], [String(endpoint.activeConnections), "number"],
      [String(endpoint.inactiveConnections), "number wide"], [short(rate.connections), "number middle"],
      [short(rate.bytesIn), "number wide"], [short(rate.bytesOut), "number wide"],
      [endpoint.node + (endpoint.local ? " (here)" : ""), "wide"],
    ]));
  }
  return table;
}

function verdict(state) {
  if (state.inSync) return ["The kernel is as it should be.", "good"];
  const kept = state.members.every((member) => member.inKernel) && state.virtualServers.every((server) => server.owner || !server.differences.length);
  return kept ? ["Another Service has some of its addresses.", "warn"] : ["The kernel is NOT as it should be.", "bad"];
}

function showService(state) {
  const title = `${state.namespace}/${state.name} (${state.type})`;
  if (byId("detail-title").textContent !== title) byId("detail-title").textContent = title;
  const parts = [element("p", ...verdict(state))];
  for (const omission of state.omissions) {
    const words = omission.instead ? ["Served otherwise", `; ${omission.instead}`] : ["Left out", ""];
    parts.push(element("p", `${words[0]}: ${omission.where}: ${omission.reason}${words[1]}`, "warn"));
  }
  for (const server of state.virtualServers) {
    parts.push(element("h3", server.name));
    if (server.owner) {
      parts.push(element("p", `${server.reason}; the older Service ${server.owner} has it`, "warn"));
      continue;
    }
    const rate = server.perSecond;
    parts.push(element("p", `${server.reason}, ${scheduling(server)}${server.affinitySeconds ? `, affinity ${server.affinitySeconds} s` : ""}; ` +
      `${server.total.connections.toLocaleString("en")} connections, ${short(rate.connections)}/s, ${short(rate.bytesIn)}B/s in, ${short(rate.bytesOut)}B/s out` +
      (server.internal ? `; clients in the cluster get ${server.internal}` : ""), "faint"));
    for (const difference of server.differences) parts.push(element("p", difference, "bad"));
    if (server.endpoints.length) {
      const scroll = element("div", undefined, "scroll");
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", `Endpoints of ${server.name}`);
      scroll.append(endpointsTable(server));
      parts.push(scroll);
      if (server.endpoints.length > 500) parts.push(element("p", `and ${server.endpoints.length - 500} more`, "faint"));
    } else {
      parts.push(element("p", "It has no endpoint.", "warn"));
    }
  }
  for (const member of state.members.filter((found) => !found.inKernel)) {
    parts.push(element("p", `Missing in the kernel: ${member.member} of ${member.set} (${member.reason})`, "bad"));
  }
  byId("detail-body").replaceChildren(...parts);
}

async function ask(path) {
  const response = await fetch(path, { cache: "no-store" });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const named = () => location.hash.match(/^#\/([^/]+)\/([^/]+)$/);

async function look() {
  const turn = ++view.asked;
  clearTimeout(view.timer);
  const service = named();
  try {
    const query = new URLSearchParams({ search: view.search, offset: view.offset, limit: service ? 0 : LIMIT });
    const answers = await Promise.all([ask(`state?${query}`), service ? ask(`state/services/${service[1]}/${service[2]}`) : null]);
    if (turn !== view.asked) return;
    showNode(answers[0]);
    if (service) showService(answers[1]); else showList(answers[0]);
  } catch (error) {
    if (turn !== view.asked) return;
    tell(`no answer: ${error.message}`, "bad");
    byId("uptime").textContent = "";
  }
  if (!document.hidden) view.timer = setTimeout(look, INTERVAL);
}

function go() {
  const service = named();
  byId("list").hidden = Boolean(service);
  byId("detail").hidden = !service;
  if (service) {
    byId("detail-title").textContent = `${decodeURIComponent(service[1])}/${decodeURIComponent(service[2])}`;
    byId("detail-body").replaceChildren();
    byId("detail-title").focus();
  }
  look();
}

function turn(by) {
  view.offset = Math.max(0, Math.min(view.offset + by, Math.floor(Math.max(0, view.matching - 1) / LIMIT) * LIMIT));
  look();
}

byId("search-form").addEventListener("submit", (event) => event.preventDefault());
byId("search").addEventListener("input", (event) => { view.search = event.target.value.trim(); view.offset = 0; look(); });
byId("previous").addEventListener("click", () => turn(-LIMIT));
byId("next").addEventListener("click", () => turn(LIMIT));
addEventListener("hashchange", go);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
go();
