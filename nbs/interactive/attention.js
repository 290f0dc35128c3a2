// Attention maps by layer and head: point at a row to see where its token looks.
// data: { tokens: [text, ...], layers: [{ name, heads: [[[0..99, ...], ...], ...] }, ...] }: weights in hundredths, rounded.
gptbookPieces.kinds.attention = (root, { tokens, layers }, { el, svg, choice, slider, pan, visible }) => {
  const T = tokens.length, cell = Math.max(14, Math.min(30, Math.floor(400 / T))), longest = Math.max(...tokens.map((t) => t.length)), left = 24 + 7 * longest, top = 30 + 5 * longest;
  let layer = 0, head = 0, row = T - 1;
  const rects = [], bars = [], marks = [];
  const width = left + T * cell + 230;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${top + T * cell + 8}`, role: "img" });
  picture.style.minWidth = `${0.85 * width}px`;  // on a phone the box scrolls, and the labels can be read
  const at = (i) => top + i * cell, across = (j) => left + j * cell;
  tokens.forEach((token, i) => {
    const name = visible(token);
    picture.append(svg("text", { x: left - 8, y: at(i) + cell / 2 + 4, "text-anchor": "end" }, name));
    picture.append(svg("text", { x: across(i) + cell / 2, y: top - 8, "text-anchor": "start", transform: `rotate(-45 ${across(i) + cell / 2} ${top - 8})` }, name));
    rects.push(tokens.map((_, j) => {
      const rect = svg("rect", { x: across(j), y: at(i), width: cell - 1, height: cell - 1, rx: 2 });
      rect.addEventListener("pointerenter", () => point(i));
      picture.append(rect);
      return rect;
    }));
    const x = across(T) + 24;
    const bar = svg("rect", { x, y: at(i) + 2, width: 0, height: cell - 5, rx: 2, style: "fill: var(--p-accent)" });
    const mark = svg("text", { x: x + 4, y: at(i) + cell / 2 + 4 });
    bars.push(bar); marks.push(mark);
    picture.append(bar, mark);
  });
  const frame = svg("rect", { x: left - 2, width: T * cell + 3, height: cell + 3, fill: "none", rx: 3, style: "stroke: var(--p-ink); stroke-width: 1.5; pointer-events: none" });
  picture.append(frame, svg("text", { x: across(T) + 24, y: top - 8, class: "soft" }, "where it looks"));
  const facts = el("p.facts-line", { role: "status" });

  const point = (i) => {
    row = i;
    const weights = layers[layer].heads[head][row];
    frame.setAttribute("y", at(row) - 2);
    weights.forEach((w, j) => {
      bars[j].setAttribute("width", 1.4 * w);
      marks[j].setAttribute("x", across(T) + 28 + 1.4 * w);
      marks[j].textContent = j > row ? "" : `${w}%`;
    });
    const best = weights.indexOf(Math.max(...weights));
    facts.textContent = `“${visible(tokens[row])}” (place ${row + 1}) looks most at “${visible(tokens[best])}” (place ${best + 1}): ${weights[best]}%.`;
    root.dataset.row = row;
    root.dataset.best = best;
  };
  const draw = () => {
    layers[layer].heads[head].forEach((weights, i) => weights.forEach((w, j) => {
      rects[i][j].setAttribute("style", `fill: color-mix(in srgb, var(--p-accent) ${w}%, var(--p-raised))`);
    }));
    picture.setAttribute("aria-label", `Attention weights of ${layers[layer].name}, head ${head + 1}`);
    point(row);
  };
  const heads = el("div");
  const choose = (i) => {
    layer = i; head = 0;
    const names = layers[i].heads.map((_, h) => String(h + 1));
    heads.replaceChildren(choice("head", names, (h) => { head = h; draw(); }));
    draw();
  };
  if (layers.length > 1) root.append(choice("layer", layers.map((l) => l.name), choose));
  root.append(heads, el("div.controls", {}, slider({ name: "token", min: 1, max: T, step: 1, value: T, words: (v) => `${v}: ${visible(tokens[v - 1])}`, change: (v) => point(v - 1) })), pan("Attention map", picture), facts);
  choose(0);
};
