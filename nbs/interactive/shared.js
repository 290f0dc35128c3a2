// What the interactive pieces share. A piece is a <div class="piece" data-piece="NAME"> with its data as JSON inside;
// its own file adds gptbookPieces.kinds.NAME = (root, data, tools) => {...}. No library, no network, nothing kept.
"use strict";
window.gptbookPieces ??= { kinds: {} };
(() => {
  const pieces = window.gptbookPieces;

  // el("p.facts", { title: "x" }, "text", child, ...); an "on" property is a listener.
  const el = (kind, properties = {}, ...children) => {
    const [tag, ...classes] = kind.split(".");
    const node = document.createElement(tag);
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name in node && name !== "list") node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };

  const svg = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  // A slider with its name and its value in words. `change` is called with the number.
  const slider = ({ name, min, max, step, value, words = String, change }) => {
    const output = el("output", {}, words(value));
    const input = el("input", { type: "range", min, max, step, value, name, oninput: () => set(Number(input.value)) });
    const set = (number) => { output.value = words(number); input.setAttribute("aria-valuetext", words(number)); change(number); };
    input.setAttribute("aria-valuetext", words(value));
    return el("label", {}, name, output, input);
  };

  // Buttons of which one is pressed.
  const choice = (name, options, change) => {
    const buttons = options.map((text, i) => el("button", { type: "button", onclick: () => press(i) }, text));
    const press = (i, quiet) => { buttons.forEach((b, j) => b.setAttribute("aria-pressed", i === j)); if (!quiet) change(i); };
    press(0, true);
    const row = el("div.row", { role: "group", "aria-label": name }, el("span.name", {}, name), ...buttons);
    return row;
  };

  // A picture that may be wider than a phone.
  const pan = (name, ...pictures) => el("div.pan", { tabIndex: 0, role: "group", "aria-label": name }, ...pictures);

  // Spaces and line ends made visible.
  const visible = (text) => text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥");

  pieces.start = () => {
    for (const root of document.querySelectorAll(".piece:not([data-live])")) {
      const make = pieces.kinds[root.dataset.piece], source = root.querySelector("script[type='application/json']");
      if (!make || !source) continue;
      root.dataset.live = "";
      make(root, JSON.parse(source.textContent), { el, svg, slider, choice, pan, visible });
    }
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", pieces.start);
  else setTimeout(pieces.start);
})();
