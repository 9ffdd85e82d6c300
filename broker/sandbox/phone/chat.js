// The phone: bubbles with their ticks, buttons and lists to tap, the message box.

import { byId, clock, day, h, icon, initials, phone, toast } from "./dom.js";
import { call, chat, number, on, person, select, state } from "./store.js";

const TICK = "M4.5 12.5 9 17 18.5 7.5";
const TICKS = ["M1.5 12.5 6 17 15.5 7.5", "M11.5 16 12.5 17 22 7.5"];
const CLOCK = ["M12 7v5l3.5 2", "M12 3.5a8.5 8.5 0 1 0 .01 0z"];
const WARNING = ["M12 8v5.2", "M12 16.4v.1", "M12 3.5a8.5 8.5 0 1 0 .01 0z"];
const TICK_MEANS = { "": "accepted", sent: "sent", delivered: "delivered", read: "read", failed: "failed" };
const EMOJIS = ["👍", "❤️", "😂", "🙏"];
const STARTERS = ["Hello", "Menu", "Where is my order?", "Surprise me"];

const log = byId("log");
const drawn = new Map();
let quoting = "";
let typingTimer;
let readTimer;

export function start() {
  on("all", draw);
  on("chosen", draw);
  on("bubble", (bubble) => {
    if (bubble.number !== state.number || bubble.person !== state.person) return;
    put(bubble);
    drawWindow();
    drawTyping();
    readSoon();
  });
  on("typing", drawTyping);
  on("people", drawHeader);
  on("selected", markSelected);
  document.addEventListener("visibilitychange", readSoon);
  setInterval(drawWindow, 30_000);
  byId("starters").append(...STARTERS.map((text) => h("button", { type: "button", onclick: () => say(text) }, text)));
  startComposer();
}

function draw() {
  log.replaceChildren();
  drawn.clear();
  stopQuoting();
  byId("sheet").hidden = true;
  drawHeader();
  const bubbles = [...chat().bubbles.values()];
  if (!bubbles.length) {
    log.append(h("p", { class: "empty" }, "No messages yet.", h("br"), `Write as ${person()?.name ?? "a customer"}; whatever answers is shown here.`));
  }
  for (const bubble of bubbles) put(bubble);
  drawTyping();
  drawWindow();
  log.scrollTop = log.scrollHeight;
  readSoon();
}

function drawHeader() {
  const business = number();
  if (!business) return;
  const name = business.name || "Example Shop";
  byId("business-avatar").textContent = initials(name);
  byId("business-name").textContent = name;
  byId("business-line").textContent = phone(business.digits);
}

function put(bubble) {
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 120;
  const fresh = drawBubble(bubble);
  const known = drawn.get(bubble.id);
  if (known) {
    const focused = known.contains(document.activeElement) ? document.activeElement.dataset.part : "";
    known.replaceWith(fresh);
    if (focused) fresh.querySelector(`[data-part="${CSS.escape(focused)}"]`)?.focus();
  } else {
    log.querySelector(".empty")?.remove();
    const last = log.lastElementChild;
    if (!last || day(Number(last.dataset.at)) !== day(bubble.at)) log.append(h("p", { class: "day", dataset: { at: bubble.at } }, h("span", {}, day(bubble.at))));
    log.append(fresh);
    if (drawn.size) fresh.classList.add("fresh");
  }
  drawn.set(bubble.id, fresh);
  if (near || bubble.by === "customer") log.scrollTop = log.scrollHeight;
}

function drawBubble(bubble) {
  const mine = bubble.by === "customer";
  const who = mine ? "You" : "The business";
  const reactions = Object.values(bubble.reactions ?? {});
  return h("article", {
    class: `bubble ${mine ? "mine" : "theirs"} ${bubble.id === state.selected ? "selected" : ""}`,
    dataset: { at: bubble.at, id: bubble.id },
    onclick: (event) => { if (!event.target.closest("button, a, summary")) select(bubble.id); },
  },
    h("div", { class: "paper" },
      h("span", { class: "hidden" }, `${who}: `),
      quoted(bubble),
      content(bubble),
      h("footer", {},
        bubble.fault && h("span", { class: "fault-mark", title: `A fault struck: ${bubble.fault}` }, bubble.fault.replaceAll("_", " ")),
        h("button", { type: "button", class: "inspect", dataset: { part: "inspect" }, onclick: () => select(bubble.id), title: "Show what is behind this message" },
          h("span", { class: "hidden" }, "Inspect, "), clock(bubble.at), ticks(bubble)),
      ),
      bubble.status === "failed" && h("p", { class: "failure" }, `Not delivered: ${bubble.code} ${bubble.details}`),
    ),
    choices(bubble),
    reactions.length > 0 && h("p", { class: "reactions" }, h("span", { class: "hidden" }, "Reactions: "), reactions.join(" ")),
    tools(bubble),
  );
}

function ticks(bubble) {
  const status = bubble.status ?? "";
  const drawing = { "": CLOCK, sent: TICK, delivered: TICKS, read: TICKS, failed: WARNING }[status] ?? TICK;
  return h("span", { class: `ticks ${status}` }, icon(drawing), h("span", { class: "hidden" }, TICK_MEANS[status] ?? status));
}

function quoted(bubble) {
  if (!bubble.quoted) return null;
  const original = chat().bubbles.get(bubble.quoted);
  if (!original) return null;
  return h("blockquote", {}, h("b", {}, original.by === "customer" ? person()?.name : number()?.name || "Example Shop"), summary(original));
}

export function summary(bubble) {
  const body = bubble.body ?? {};
  if (bubble.type === "text") return body.body ?? "";
  if (bubble.type === "template") return body.text ?? "";
  if (bubble.type === "interactive") return body.body?.text ?? body.button_reply?.title ?? body.list_reply?.title ?? "Choice";
  if (bubble.type === "button") return body.text ?? "";
  return body.caption ?? bubble.type[0].toUpperCase() + bubble.type.slice(1);
}

function content(bubble) {
  const body = bubble.body ?? {};
  switch (bubble.type) {
    case "text": return h("p", {}, formatted(body.body ?? ""));
    case "template": return [
      body.header && h("p", { class: "head" }, body.header), h("p", {}, formatted(body.text ?? "")), body.footer && h("p", { class: "foot" }, body.footer)];
    case "interactive": return interactive(body);
    case "button": return h("p", {}, body.text);
    case "image": case "sticker": return [
      h("img", { src: body.id ? `/sandbox/media/${body.id}` : body.link, alt: body.caption || "A picture", class: bubble.type, loading: "lazy" }),
      body.caption && h("p", {}, formatted(body.caption))];
    case "location": return [
      h("p", { class: "head" }, body.name || "Location"), h("p", {}, body.address || `${body.latitude}, ${body.longitude}`)];
    case "contacts": return (Array.isArray(body) ? body : []).map((one) => h("p", {}, "👤 ", one.name?.formatted_name));
    case "document": return h("p", {}, "📄 ", body.filename || body.caption || "Document");
    case "audio": return h("p", {}, "🎤 Voice message");
    case "video": return h("p", {}, "🎬 ", body.caption || "Video");
    default: return h("p", { class: "foot" }, `A message of type ${bubble.type}`);
  }
}

function interactive(body) {
  const reply = body.button_reply ?? body.list_reply;
  if (reply) return [h("p", {}, reply.title), reply.description && h("p", { class: "foot" }, reply.description)];
  const head = body.header;
  return [
    head?.type === "text" && h("p", { class: "head" }, head.text),
    head?.type === "image" && h("img", { src: head.image.id ? `/sandbox/media/${head.image.id}` : head.image.link, alt: "" }),
    h("p", {}, formatted(body.body?.text ?? "")),
    body.footer && h("p", { class: "foot" }, body.footer.text),
  ];
}

function choices(bubble) {
  if (bubble.by === "customer") return null;
  const body = bubble.body ?? {};
  if (bubble.type === "template") {
    return row((body.buttons ?? []).map((one, i) => tap(`template-${i}`, one.title, () => answer(bubble, "button", { payload: one.payload, text: one.title }))));
  }
  if (bubble.type !== "interactive") return null;
  if (body.type === "button") {
    return row(body.action.buttons.map(({ reply }, i) => tap(`button-${i}`, reply.title, () =>
      answer(bubble, "interactive", { type: "button_reply", button_reply: { id: reply.id, title: reply.title } }))));
  }
  if (body.type === "list") return row([tap("list", body.action.button, () => openSheet(bubble), "☰ ")]);
  if (body.type === "cta_url") {
    return row([h("a", { class: "tap", href: body.action.parameters.url, target: "_blank", rel: "noopener noreferrer" }, "↗ ", body.action.parameters.display_text)]);
  }
  if (body.type === "location_request_message") {
    return row([tap("location", "Send location", () => answer(bubble, "location", { latitude: 52.520008, longitude: 13.404954, name: "Example Plaza", address: "1 Example Street, Berlin" }))]);
  }
  return null;
}

const row = (taps) => (taps.length ? h("div", { class: "taps" }, taps) : null);
const tap = (part, text, onclick, mark = "") => h("button", { type: "button", class: "tap", dataset: { part }, onclick }, mark, text);

function tools(bubble) {
  return h("div", { class: "tools" },
    h("button", { type: "button", dataset: { part: "quote" }, title: "Reply to this message", onclick: () => quote(bubble) }, icon("M10 8V4L3 11l7 7v-4c5 0 8.5 1.6 11 5-1-5-4-10-11-11z"), h("span", { class: "hidden" }, "Reply to this message")),
    bubble.by === "business" && EMOJIS.map((emoji, i) => h("button", {
      type: "button", dataset: { part: `react-${i}` }, "aria-label": `React with ${emoji}`,
      onclick: () => write("reaction", { message_id: bubble.id, ...(bubble.reactions?.customer === emoji ? {} : { emoji }) }),
    }, emoji)),
  );
}

function openSheet(bubble) {
  const sheet = byId("sheet");
  const close = () => {
    sheet.hidden = true;
    drawn.get(bubble.id)?.querySelector('[data-part="list"]')?.focus();
  };
  const action = bubble.body.action;
  sheet.replaceChildren(h("div", { class: "sheet-paper", role: "dialog", "aria-modal": "true", "aria-label": action.button, onkeydown: (event) => {
    if (event.key === "Escape") close();
    if (event.key !== "Tab") return;
    const stops = [...sheet.querySelectorAll("button")];
    const edge = event.shiftKey ? stops[0] : stops.at(-1);
    if (document.activeElement === edge) {
      event.preventDefault();
      (event.shiftKey ? stops.at(-1) : stops[0]).focus();
    }
  } },
    h("div", { class: "sheet-top" }, h("h2", {}, action.button), h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: close }, "×")),
    action.sections.map((section) => h("section", {},
      section.title && h("h3", {}, section.title),
      section.rows.map((one) => h("button", { type: "button", class: "sheet-row", onclick: () => {
        close();
        answer(bubble, "interactive", { type: "list_reply", list_reply: { id: one.id, title: one.title, ...(one.description && { description: one.description }) } });
      } }, h("b", {}, one.title), one.description && h("span", {}, one.description))))),
  ));
  sheet.hidden = false;
  sheet.querySelector(".sheet-row")?.focus();
}

// *bold*, _italic_, ~struck~, `code` and links, as a phone shows them.
function formatted(text) {
  const parts = [];
  const mark = /(https?:\/\/[^\s<>]+)|\*([^*\n]+)\*|_([^_\n]+)_|~([^~\n]+)~|`([^`\n]+)`/g;
  let from = 0;
  for (const found of text.matchAll(mark)) {
    parts.push(text.slice(from, found.index));
    const [whole, link, bold, italic, struck, code] = found;
    if (link) parts.push(h("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, link));
    else parts.push(h(bold ? "b" : italic ? "i" : struck ? "s" : "code", {}, bold ?? italic ?? struck ?? code));
    from = found.index + whole.length;
  }
  parts.push(text.slice(from));
  return parts;
}

function drawTyping() {
  const until = chat().typing_until;
  const left = until - Date.now();
  clearTimeout(typingTimer);
  byId("typing").hidden = left <= 0;
  if (left > 0) {
    log.scrollTop = log.scrollHeight;
    typingTimer = setTimeout(drawTyping, left);
  }
}

function drawWindow() {
  const left = chat().window_closes_at - Date.now();
  const line = byId("window");
  line.dataset.open = left > 0;
  if (left <= 0) {
    line.textContent = "Customer service window closed: the business may send templates only.";
  } else {
    const minutes = Math.floor(left / 60_000);
    line.textContent = `Customer service window open for ${Math.floor(minutes / 60)} h ${minutes % 60} min.`;
  }
}

function markSelected() {
  for (const element of log.querySelectorAll(".bubble")) element.classList.toggle("selected", element.dataset.id === state.selected);
}

function readSoon() {
  clearTimeout(readTimer);
  if (document.hidden || person()?.reads !== "open" || !person()?.online) return;
  if (![...chat().bubbles.values()].some((bubble) => bubble.by === "business" && bubble.status === "delivered")) return;
  readTimer = setTimeout(() => call("POST", "read", { number: state.number, person: state.person }).catch(() => {}), 700);
}

async function write(type, content) {
  const quote = quoting;
  stopQuoting();
  await call("POST", "messages", { number: state.number, person: state.person, type, content, ...(quote && type !== "reaction" && { quoting: quote }) }).catch(() => {});
}

const say = (text) => write("text", { body: text });

function answer(bubble, type, content) {
  quoting = bubble.id;
  return write(type, content);
}

function quote(bubble) {
  quoting = bubble.id;
  byId("quoting-text").textContent = summary(bubble);
  byId("quoting").hidden = false;
  byId("composer").focus();
}

function stopQuoting() {
  quoting = "";
  byId("quoting").hidden = true;
}

function startComposer() {
  const box = byId("composer");
  const grow = () => {
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 120)}px`;
  };
  box.addEventListener("input", grow);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("composer-form").requestSubmit();
    }
    if (event.key === "Escape") stopQuoting();
  });
  byId("composer-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = box.value.trim();
    if (!text) return;
    box.value = "";
    grow();
    say(text);
  });
  byId("quoting-stop").addEventListener("click", stopQuoting);
  byId("picture").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    if (file.size > 5 * 1024 * 1024) return toast("A picture may have up to 5 MB.");
    const medium = await call("POST", `media?number=${state.number}&filename=${encodeURIComponent(file.name)}`, file).catch(() => null);
    if (medium) write("image", medium);
  });
}
