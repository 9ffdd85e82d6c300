// What is behind the bubbles: raw Graph calls and webhooks of one message, the traffic of all, the faults.

import { byId, clockExact, h } from "./dom.js";
import { summary } from "./chat.js";
import { call, on, select, setFaults, state } from "./store.js";

const PANELS = ["message", "traffic", "faults"];
const FAULTS = [
  ["lost_answer", "Lost answers", "Meta takes the message, the connection dies before the answer."],
  ["duplicate", "Duplicates", "A webhook comes again though it was answered with 200."],
  ["answer_130429", "Throttling", "Calls are refused with 130429, throughput reached."],
  ["slow", "Slow calls", "A call takes five seconds longer."],
  ["error_after", "Gateway errors", "502 with a page of HTML, though the message was taken."],
  ["reorder_statuses", "Reordered statuses", "“read” overtakes “delivered” overtakes “sent”."],
  ["batch", "Batches", "Webhooks come together in one POST."],
  ["delay", "Late webhooks", "A webhook comes half a minute late."],
];
const RATES = [0.25, 0.5, 1];

let redraw;

export function start() {
  const tabs = PANELS.map((name) => byId(`tab-${name}`));
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => show(PANELS[i]));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (i + step + tabs.length) % tabs.length;
      show(PANELS[next]);
      tabs[next].focus();
    });
  });
  on("all", () => { drawMessage(); drawTraffic(); drawFaults(); });
  on("selected", () => { show("message"); drawMessage(); });
  on("bubble", (bubble) => { if (bubble.id === state.selected) soon(drawMessage); });
  on("traffic", (line) => {
    soonTraffic();
    if (line.wamid === state.selected) soon(drawMessage);
  });
  on("faults", drawFaults);
  setInterval(() => { if (!byId("panel-faults").hidden) call("GET", "faults").then(setFaults, () => {}); }, 3_000);
}

export function show(name) {
  for (const one of PANELS) {
    const isShown = one === name;
    byId(`panel-${one}`).hidden = !isShown;
    byId(`tab-${one}`).setAttribute("aria-selected", String(isShown));
    byId(`tab-${one}`).tabIndex = isShown ? 0 : -1;
  }
}

function soon(what) {
  clearTimeout(redraw);
  redraw = setTimeout(what, 150);
}

let trafficTimer = 0;
function soonTraffic() {
  if (trafficTimer) return;
  trafficTimer = setTimeout(() => { trafficTimer = 0; drawTraffic(); }, 120);
}

function find(wamid) {
  for (const chat of state.chats.values()) if (chat.bubbles.has(wamid)) return chat.bubbles.get(wamid);
  return null;
}

async function drawMessage() {
  const panel = byId("panel-message");
  const wamid = state.selected;
  if (!wamid) {
    panel.replaceChildren(h("div", { class: "nothing" },
      h("p", {}, h("b", {}, "Every message has a story.")),
      h("p", {}, "Choose a bubble to see the raw Graph call and the raw webhooks behind it, with signatures, attempts and answers.")));
    return;
  }
  const behind = await call("GET", `messages/${encodeURIComponent(wamid)}`).catch(() => null);
  if (!behind || wamid !== state.selected) return;
  const open = new Set([...panel.querySelectorAll("details[open]")].map((one) => one.dataset.key));
  const first = !panel.querySelector("details") || panel.dataset.wamid !== wamid;
  panel.dataset.wamid = wamid;
  const bubble = find(wamid);
  const story = [...behind.calls.map((one) => [one.at, callStep(one)]), ...behind.webhooks.map((one) => [one.at, webhookStep(one)])].sort((a, b) => a[0] - b[0]);
  panel.replaceChildren(
    h("div", { class: "about" },
      h("p", { class: "about-text" }, bubble ? summary(bubble) : "A message"),
      h("dl", {},
        h("dt", {}, "Id"), h("dd", {}, h("code", {}, wamid)),
        bubble?.send && [h("dt", {}, "Send id"), h("dd", {}, h("code", {}, bubble.send))],
        bubble && [h("dt", {}, "State"), h("dd", {}, bubble.status || "accepted", bubble.fault ? `, fault: ${bubble.fault.replaceAll("_", " ")}` : "")])),
    h("ol", { class: "story" }, story.map(([, step]) => step)),
  );
  const details = [...panel.querySelectorAll("details")];
  for (const one of details) one.open = first ? one === details[0] : open.has(one.dataset.key);
}

function callStep(one) {
  const told = one.answered ? one.http : "no answer";
  const good = one.http === 200 && !one.fault;
  return step(`call-${one.seq}`, one.at, "Graph call", one.request?.status === "read" ? (one.request.typing_indicator ? "read and typing" : "read") : one.request?.type ?? "", h("span", { class: `pill ${good ? "good" : "bad"}` }, told, one.code ? ` · ${one.code}` : ""),
    h("p", { class: "wire" }, "POST ", one.path), raw("Request", one.request), one.response !== "" && raw(one.answered ? "Answer" : "Answer nobody heard", one.response));
}

function webhookStep(one) {
  const last = one.posts.at(-1);
  const label = one.status || one.kind;
  const posts = one.posts.map((post) => h("li", {}, clockExact(post.at), post.repeat ? " repetition" : ` attempt ${post.attempt}`, ` → ${post.answer || "no answer"} in ${post.ms} ms`, post.batch > 1 ? `, one of ${post.batch} in the POST` : ""));
  return step(`webhook-${one.seq}`, one.at, "Webhook", label,
    h("span", { class: `pill ${last?.answer === 200 ? "good" : last ? "bad" : ""}` }, last ? last.answer || "no answer" : "waiting", one.posts.length > 1 ? ` · ${one.posts.length}×` : ""),
    posts.length > 0 && h("ul", { class: "posts" }, posts), last && h("p", { class: "wire" }, "X-Hub-Signature-256: ", last.signature), raw("Body", one.body));
}

function step(key, at, title, label, pill, ...inside) {
  return h("li", {}, h("details", { dataset: { key } },
    h("summary", {}, h("span", { class: "step-title" }, h("b", {}, title), " ", label), pill, h("time", {}, clockExact(at))),
    h("div", { class: "inside" }, inside)));
}

function raw(title, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const copy = h("button", { type: "button", class: "copy", onclick: async () => {
    await navigator.clipboard.writeText(text).catch(() => {});
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1_500);
  } }, "Copy");
  return h("figure", {}, h("figcaption", {}, title, copy), h("pre", { tabindex: "0", "aria-label": title }, h("code", {}, coloured(text))));
}

function coloured(text) {
  const parts = [];
  const token = /("(?:\\.|[^"\\])*")(\s*:)?|\b(-?\d[\d.eE+-]*|true|false|null)\b/g;
  let from = 0;
  for (const found of text.matchAll(token)) {
    parts.push(text.slice(from, found.index));
    if (found[1]) parts.push(h("span", { class: found[2] ? "key" : "string" }, found[1]), found[2] ?? "");
    else parts.push(h("span", { class: "literal" }, found[3]));
    from = found.index + found[0].length;
  }
  parts.push(text.slice(from));
  return parts;
}

function drawTraffic() {
  const panel = byId("panel-traffic");
  if (panel.hidden && panel.childElementCount) panel.dataset.stale = "1";
  const lines = [...state.traffic.values()].reverse().slice(0, 100);
  if (!lines.length) {
    panel.replaceChildren(h("div", { class: "nothing" }, h("p", {}, h("b", {}, "Nothing has happened yet.")), h("p", {}, "Graph calls come in here, webhooks go out.")));
    return;
  }
  const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.seq : "";
  panel.replaceChildren(h("ol", { class: "traffic" }, lines.map((line) => h("li", {}, trafficLine(line)))));
  if (focused) panel.querySelector(`[data-seq="${focused}"]`)?.focus();
}

function trafficLine(line) {
  const isCall = line.line === "call";
  const good = isCall ? line.http === 200 && !line.fault : line.answer === 200;
  const result = isCall
    ? (line.answered ? line.http : "lost") + (line.code ? ` · ${line.code}` : "")
    : (line.answer === undefined ? "…" : line.answer || "no answer") + (line.attempts > 1 ? ` · ${line.attempts}×` : "") + (line.repeats ? ` · +${line.repeats}` : "");
  const who = state.people.get(line.person)?.name ?? line.person;
  return h("button", { type: "button", dataset: { seq: line.seq }, disabled: !find(line.wamid), onclick: () => select(line.wamid) },
    h("span", { class: `way ${isCall ? "in" : "out"}` }, isCall ? "→ Graph" : "← webhook"),
    h("span", { class: "what" }, h("b", {}, line.what), " ", h("small", {}, who)),
    h("span", { class: `pill ${line.answer === undefined && !isCall ? "" : good ? "good" : "bad"}` }, result),
    h("time", {}, clockExact(line.at)));
}

function drawFaults() {
  const faults = state.faults;
  const panel = byId("panel-faults");
  if (!faults) return;
  const count = Object.keys(faults.on).length + faults.revoked.length;
  byId("faults-on").hidden = count === 0;
  byId("faults-on").replaceChildren(String(count), h("span", { class: "hidden" }, " switched on"));
  const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.fault : "";
  const isRevoked = faults.revoked.includes(state.number);
  const frozen = Math.ceil(faults.frozen_s);
  panel.replaceChildren(
    h("p", { class: "lead" }, "Let the platform misbehave. What stands behind it must lose nothing and send nothing twice."),
    h("div", { class: "faults" }, FAULTS.map(([name, title, line]) => fault(name, title, line, faults)),
      h("div", { class: "fault" }, h("p", { class: "fault-text" }, h("b", {}, "Frozen platform"), h("small", {}, "Calls hang and no webhook goes out.")),
        h("button", { type: "button", class: "small", dataset: { fault: "freeze" }, disabled: frozen > 0, onclick: () => call("POST", "freeze", { seconds: 15 }).then(setFaults, () => {}) }, frozen > 0 ? `Thaws in ${frozen} s` : "Freeze for 15 s"),
        struck(faults.struck.freeze)),
      h("div", { class: "fault" }, h("p", { class: "fault-text" }, h("b", {}, "Revoked token"), h("small", {}, "Calls of this number are refused with 190.")),
        h("button", { type: "button", role: "switch", "aria-checked": String(isRevoked), "aria-label": "Revoked token", class: "switch bare", dataset: { fault: "token" }, onclick: () =>
          call(isRevoked ? "DELETE" : "PUT", `tokens/${state.number}/revoked`).then(setFaults, () => {}) }, h("span", { class: "knob", "aria-hidden": "true" })),
        struck(faults.struck.token_revoked))),
    h("p", { class: "all-off" }, h("button", { type: "button", class: "small", dataset: { fault: "clear" }, onclick: () => call("DELETE", "faults").then(setFaults, () => {}) }, "Switch everything off"),
      faults.waiting > 0 && h("span", {}, `${faults.waiting} webhooks wait for a 200`)),
  );
  if (focused) panel.querySelector(`[data-fault="${CSS.escape(focused)}"]`)?.focus();
}

function fault(name, title, line, faults) {
  const set = faults.on[name];
  const put = (rate) => call("PUT", `faults/${name}`, { rate }).then(setFaults, () => {});
  return h("div", { class: `fault ${set ? "on" : ""}` },
    h("p", { class: "fault-text" }, h("b", {}, title), h("small", {}, line)),
    h("button", { type: "button", role: "switch", "aria-checked": String(Boolean(set)), "aria-label": title, class: "switch bare", dataset: { fault: name }, onclick: () => put(set ? 0 : 1) }, h("span", { class: "knob", "aria-hidden": "true" })),
    set && h("div", { class: "rates", role: "group", "aria-label": `${title}: how often` }, RATES.map((rate) =>
      h("button", { type: "button", "aria-pressed": String(set.rate === rate), dataset: { fault: `${name}-${rate}` }, onclick: () => put(rate) }, rate === 1 ? "Always" : `${rate * 100} %`))),
    struck(faults.struck[name]));
}

const struck = (count) => (count ? h("span", { class: "struck" }, `struck ${count}×`) : null);
