// What the page knows: the sandbox's state as it was loaded, kept up to date by its events. Tells whoever listens.

import { toast } from "./dom.js";

const listeners = new Map();

export const state = {
  numbers: [], people: new Map(), chats: new Map(), traffic: new Map(), faults: null,
  number: "", person: "", selected: "", unread: new Map(),
};

export function on(name, listener) {
  if (!listeners.has(name)) listeners.set(name, []);
  listeners.get(name).push(listener);
}

function tell(name, detail) {
  for (const listener of listeners.get(name) ?? []) listener(detail);
}

export const chatKey = (number, person) => `${number}/${person}`;

export function chat(number = state.number, person = state.person) {
  const key = chatKey(number, person);
  if (!state.chats.has(key)) state.chats.set(key, { number, person, bubbles: new Map(), window_closes_at: 0, typing_until: 0 });
  return state.chats.get(key);
}

export const number = () => state.numbers.find((one) => one.id === state.number);
export const person = () => state.people.get(state.person);

export async function call(method, path, body) {
  const options = { method };
  if (body instanceof Blob) {
    options.body = body;
    options.headers = { "Content-Type": body.type };
  } else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  let answer;
  try {
    answer = await fetch(`/sandbox/${path}`, options);
  } catch {
    toast("The sandbox does not answer.");
    throw new Error("no answer");
  }
  const json = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    toast(json.error ?? `The sandbox answered ${answer.status}.`);
    throw new Error(json.error ?? answer.status);
  }
  return json;
}

async function load() {
  const whole = await call("GET", "state");
  state.numbers = whole.numbers;
  state.people = new Map(whole.people.map((one) => [one.id, one]));
  state.chats.clear();
  for (const one of whole.chats) {
    state.chats.set(chatKey(one.number, one.person), { ...one, bubbles: new Map(one.bubbles.map((bubble) => [bubble.id, bubble])) });
  }
  state.traffic = new Map(whole.traffic.map((line) => [line.seq, line]));
  state.faults = whole.faults;
  const [wantedNumber, wantedPerson] = decodeURIComponent(location.hash.slice(1)).split("/");
  state.number = [wantedNumber, state.number].find((id) => state.numbers.some((one) => one.id === id)) ?? state.numbers[0]?.id ?? "";
  state.person = [wantedPerson, state.person].find((id) => state.people.has(id)) ?? state.people.keys().next().value ?? "";
  tell("all");
}

export function choose(change) {
  Object.assign(state, change);
  state.unread.delete(chatKey(state.number, state.person));
  history.replaceState(null, "", "#" + encodeURIComponent(chatKey(state.number, state.person)));
  tell("chosen");
}

export function select(wamid) {
  state.selected = wamid;
  tell("selected");
}

export function setFaults(faults) {
  state.faults = faults;
  tell("faults");
}

const heard = {
  bubble(data) {
    const one = chat(data.number, data.person);
    const known = one.bubbles.has(data.id);
    one.bubbles.set(data.id, data);
    if (data.window_closes_at) one.window_closes_at = data.window_closes_at;
    if (!known && data.by === "business") {
      one.typing_until = 0;
      const key = chatKey(data.number, data.person);
      if (key !== chatKey(state.number, state.person)) state.unread.set(key, (state.unread.get(key) ?? 0) + 1);
    }
    tell("bubble", data);
  },
  typing(data) {
    chat(data.number, data.person).typing_until = data.until;
    tell("typing");
  },
  person(data) {
    state.people.set(data.id, data);
    tell("people");
  },
  traffic(data) {
    state.traffic.set(data.seq, data);
    while (state.traffic.size > 200) state.traffic.delete(state.traffic.keys().next().value);
    tell("traffic", data);
  },
  switch() {
    call("GET", "faults").then(setFaults, () => {});
  },
  again() {
    load();
  },
};

// The events begin before the state is asked for, and wait for it: what happens between the two is not missed.
export function connect() {
  const events = new EventSource("/sandbox/events");
  let waiting = [];
  events.addEventListener("hello", async () => {
    waiting = [];
    try {
      await load();
    } catch {
      return;
    }
    const missed = waiting;
    waiting = null;
    for (const [name, data] of missed) heard[name](data);
    tell("link", true);
  });
  for (const name of Object.keys(heard)) {
    events.addEventListener(name, (event) => {
      const data = JSON.parse(event.data);
      if (waiting) waiting.push([name, data]);
      else heard[name](data);
    });
  }
  events.addEventListener("error", () => {
    waiting = [];
    tell("link", false);
  });
}
