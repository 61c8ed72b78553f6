"use strict";
/* Pages are whole without this. It asks for the page again when the node says that something has
   happened (body[data-events]) or some time has passed (body[data-every]), swaps the sections
   whose HTML is another, and turns times into ages. */
(() => {
  const { events, every, now } = document.body.dataset;
  const EVENTS = ["tip", "headers", "transaction", "pending", "rejected", "announcement", "score"];
  const GAP = 700; // ms between two looks
  const live = document.getElementById("live");
  const skew = Date.now() / 1000 - Number(now);
  const shown = new Map(); // by id, the HTML of a section as the server sent it
  let source = null;
  let timer = null;
  let asking = false;
  let last = 0;

  const sections = (from) => [...from.querySelectorAll("main > section[id]")];

  function say(state) {
    live.hidden = false;
    live.dataset.state = state;
    live.textContent = state === "on" ? "live" : "reconnecting";
  }

  // --- times ---------------------------------------------------------------------------------

  function age(seconds) {
    if (seconds < 1) return "now";
    if (seconds < 60) return `${Math.floor(seconds)} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    const hours = Math.floor(seconds / 3600);
    if (hours < 6) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min ago`;
    if (hours < 24) return `${hours} h ago`;
    const days = Math.floor(seconds / 86400);
    return days === 1 ? "1 day ago" : `${days} days ago`;
  }

  function tick() {
    const present = Date.now() / 1000 - skew;
    for (const time of document.querySelectorAll("time[datetime]")) {
      const seconds = present - Date.parse(time.dateTime) / 1000;
      if (seconds > -5) time.textContent = age(seconds);
    }
  }

  // --- looking again -------------------------------------------------------------------------

  function swap(page) {
    const parts = sections(page);
    const here = sections(document).map((part) => part.id).join();
    if (here !== parts.map((part) => part.id).join()) {
      document.getElementById("main").replaceChildren(...parts);
    }
    for (const part of parts) {
      const old = document.getElementById(part.id);
      const html = part.outerHTML;
      if (shown.get(part.id) === html) continue;
      const chosen = getSelection();
      if (old !== part && !chosen.isCollapsed && old.contains(chosen.anchorNode)) continue;
      if (shown.has(part.id)) mark(old, part);
      shown.set(part.id, html);
      if (old === part) continue;
      const at = old.contains(document.activeElement) ? document.activeElement : null;
      const link = at && at.getAttribute("href");
      old.replaceWith(part);
      if (link) part.querySelector(`a[href="${CSS.escape(link)}"]`)?.focus({ preventScroll: true });
    }
    tick();
  }

  // Rows that were not there before are seen to be new.
  function mark(old, part) {
    const known = new Set([...old.querySelectorAll("tr[data-id]")].map((row) => row.dataset.id));
    for (const row of part.querySelectorAll("tr[data-id]")) {
      if (!known.has(row.dataset.id)) row.classList.add("fresh");
    }
  }

  async function look() {
    timer = null;
    if (asking) return later();
    asking = true;
    last = Date.now();
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (answer.ok) {
        swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
        if (!events) say("on");
      }
    } catch {
      say("off");
    } finally {
      asking = false;
    }
  }

  function later() {
    if (timer === null) timer = setTimeout(look, Math.max(0, last + GAP - Date.now()));
  }

  function listen() {
    if (!events || source) return;
    source = new EventSource(events);
    source.onopen = () => {
      say("on");
      later();
    };
    source.onerror = () => say("off");
    for (const name of EVENTS) source.addEventListener(name, later);
  }

  // A browser has few connections to one host: pages that nobody sees give theirs back.
  function seen() {
    if (document.hidden) {
      source?.close();
      source = null;
    } else {
      listen();
      later();
    }
  }

  for (const part of sections(document)) shown.set(part.id, part.outerHTML);
  tick();
  listen();
  if (!events) say("on");
  document.addEventListener("visibilitychange", seen);
  setInterval(tick, 1000);
  setInterval(() => {
    if (!document.hidden) later();
  }, Number(every) * 1000);
})();
