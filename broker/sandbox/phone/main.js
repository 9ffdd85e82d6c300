// Starts the page: theme, the views of a narrow screen, the parts, the connection.

import { byId } from "./dom.js";
import * as chat from "./chat.js";
import * as inspector from "./inspector.js";
import * as people from "./people.js";
import { connect, on } from "./store.js";

const THEMES = ["system", "light", "dark"];

function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  byId("theme").title = byId("theme").getAttribute("aria-label");
}

function startTheme() {
  let theme = localStorage.getItem("theme") ?? "system";
  applyTheme(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem("theme", theme);
    applyTheme(theme);
  });
}

function show(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === view));
}

startTheme();
for (const button of document.querySelectorAll("[data-show]")) button.addEventListener("click", () => show(button.dataset.show));
on("selected", () => show("inspector"));
on("chosen", () => { if (document.body.dataset.view === "people") show("phone"); });
on("link", (isUp) => {
  byId("link").dataset.up = String(isUp);
  byId("link-text").textContent = isUp ? "Live" : "Connecting again";
});
people.start();
chat.start();
inspector.start();
connect();
