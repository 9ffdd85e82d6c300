// Whom we play and whom we write to: customers, business numbers, the customer's habits.

import { byId, h, initials, phone } from "./dom.js";
import { call, chatKey, choose, on, person, state } from "./store.js";

export function start() {
  on("all", draw);
  on("chosen", draw);
  on("people", draw);
  on("bubble", (bubble) => { if (bubble.by === "business") drawPeople(); });
  byId("newcomer").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const given = Object.fromEntries(new FormData(form));
    const digits = given.phone.replace(/\D/g, "");
    const one = { name: given.name.trim(), reads: "open" };
    if (given.username) Object.assign(one, { username: given.username, hides_phone: true });
    if (digits) one.wa_id = digits;
    if (!digits || given.username) one.bsuid = "US." + String(Date.now()).padStart(20, "3");
    const added = await call("POST", "people", one).catch(() => null);
    if (!added) return;
    form.reset();
    form.closest("details").open = false;
    choose({ person: added.id });
  });
}

function draw() {
  drawNumbers();
  drawPeople();
  drawHabits();
}

function drawNumbers() {
  radios("numbers", state.numbers.map((one) => ({
    id: one.id, chosen: one.id === state.number, title: one.name || "Example Shop", line: phone(one.digits), tag: `${one.throughput_mps} a second`,
    avatar: initials(one.name || "Example Shop"), choose: () => choose({ number: one.id }), square: true,
  })));
}

function drawPeople() {
  radios("people", [...state.people.values()].map((one) => ({
    id: one.id, chosen: one.id === state.person, title: one.name, ...identity(one), avatar: initials(one.name),
    choose: () => choose({ person: one.id }), badge: state.unread.get(chatKey(state.number, one.id)),
  })));
}

function identity(one) {
  if (!one.wa_id) return { line: one.username ? `@${one.username}` : one.bsuid, tag: "BSUID only" };
  if (one.hides_phone) return { line: `@${one.username}`, tag: "hides the phone" };
  return { line: phone(one.wa_id), tag: one.bsuid ? "" : "phone only" };
}

// A radio group: one stop for Tab, arrows move and choose.
function radios(id, entries) {
  const group = byId(id);
  const focused = group.contains(document.activeElement);
  group.replaceChildren(...entries.map((entry, i) => h("button", {
    type: "button", role: "radio", "aria-checked": String(entry.chosen), tabindex: entry.chosen ? "0" : "-1", class: "choice",
    onclick: entry.choose,
    onkeydown: (event) => {
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      entries[(i + step + entries.length) % entries.length].choose();
    },
  },
    h("span", { class: `avatar ${entry.square ? "square" : `tone-${i % 4}`}`, "aria-hidden": "true" }, entry.avatar),
    h("span", { class: "choice-text" }, h("b", {}, entry.title), h("small", {}, entry.line, entry.tag && h("span", { class: "tag" }, entry.tag))),
    entry.badge && h("span", { class: "badge" }, entry.badge, h("span", { class: "hidden" }, " new")))));
  if (focused) group.querySelector('[aria-checked="true"]')?.focus();
}

function drawHabits() {
  const one = person();
  const box = byId("habits");
  if (!one) return box.replaceChildren();
  const focused = box.contains(document.activeElement) ? document.activeElement.dataset.habit : "";
  const change = (given) => call("PATCH", `people/${encodeURIComponent(one.id)}`, given).catch(() => {});
  box.replaceChildren(
    habit("online", "Phone is on", "Off: messages wait at one tick", one.online, (online) => change({ online })),
    habit("reads", "Read receipts", "Off: blue ticks never come", one.reads !== "never", (reads) => change({ reads: reads ? "open" : "never" })),
    habit("marketing", "Takes marketing", "Off: the business is told", !one.opted_out, (marketing) =>
      call("POST", "preferences", { number: state.number, person: one.id, marketing }).catch(() => {})),
    habit("account", "Is on WhatsApp", "Off: messages fail with 131026", one.on_whatsapp, (on_whatsapp) => change({ on_whatsapp })),
  );
  if (focused) box.querySelector(`[data-habit="${focused}"]`)?.focus();
}

function habit(name, title, line, isOn, flip) {
  return h("button", { type: "button", role: "switch", "aria-checked": String(isOn), class: "switch", dataset: { habit: name }, onclick: () => flip(!isOn) },
    h("span", { class: "switch-text" }, h("b", {}, title), h("small", {}, line)), h("span", { class: "knob", "aria-hidden": "true" }));
}
