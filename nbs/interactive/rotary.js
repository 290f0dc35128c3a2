// Rotary positions: query and key turn with their places, and their score knows the distance only.
// data: { pairs, base, longest }
gptbookPieces.kinds.rotary = (root, { pairs, base, longest }, { el, svg, slider, choice, pan }) => {
  const bases = [base, base * 50], state = { place: 20, distance: 5, base: 0 };
  const omega = (i) => bases[state.base] ** (-i / pairs);
  const score = (delta) => { let sum = 0; for (let i = 0; i < pairs; i++) sum += Math.cos(omega(i) * delta); return sum / pairs; };
  const size = 74, width = pairs * size, height = 170;
  const dials = svg("svg", { viewBox: `0 0 ${width} ${size + 30}`, role: "img", "aria-label": "Each pair of numbers as a dial: the query's hand and the key's hand" });
  const hands = [];
  for (let i = 0; i < pairs; i++) {
    const x = (i + 0.5) * size, y = size / 2;
    dials.append(svg("circle", { cx: x, cy: y, r: 30, fill: "none", style: "stroke: var(--p-line); stroke-width: 1.5" }));
    const wedge = svg("path", { style: "fill: var(--p-accent); fill-opacity: .16" });
    const key = svg("line", { x1: x, y1: y, style: "stroke: var(--p-soft); stroke-width: 2.5; stroke-dasharray: 4 3" });
    const query = svg("line", { x1: x, y1: y, style: "stroke: var(--p-accent); stroke-width: 3" });
    const number = svg("text", { x, y: size + 12, "text-anchor": "middle" });
    dials.append(wedge, key, query, number);
    hands.push({ x, y, wedge, key, query, number });
  }
  dials.append(svg("text", { x: 4, y: size + 28, class: "soft" }, "fast pairs"), svg("text", { x: width - 4, y: size + 28, "text-anchor": "end", class: "soft" }, "slow pairs"));
  const curve = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Score against distance" });
  for (const picture of [dials, curve]) picture.style.minWidth = `${0.85 * width}px`;  // on a phone the box scrolls, and the labels can be read
  const line = svg("path", { fill: "none", style: "stroke: var(--p-accent); stroke-width: 2" }), dot = svg("circle", { r: 5, style: "fill: var(--p-accent)" });
  const X = (delta) => 40 + ((width - 60) * delta) / longest, Y = (s) => 12 + (height - 44) * (1 - (s + 0.25) / 1.25);
  for (const s of [0, 1]) curve.append(svg("line", { x1: 40, x2: width - 20, y1: Y(s), y2: Y(s), style: "stroke: var(--p-line)" }), svg("text", { x: 32, y: Y(s) + 4, "text-anchor": "end", class: "soft" }, s));
  curve.append(line, dot, svg("text", { x: width / 2, y: height - 4, "text-anchor": "middle", class: "soft" }, "distance between query and key (tokens)"));
  const facts = el("p.facts-line", { role: "status" });
  const tip = (hand, angle, r = 28) => [hand.x + r * Math.cos(angle), hand.y - r * Math.sin(angle)];

  const draw = () => {
    const { place, distance } = state;
    hands.forEach((hand, i) => {
      const q = place * omega(i), k = (place - distance) * omega(i), turn = ((q - k) % (2 * Math.PI) + 2 * Math.PI) % (2 * Math.PI);
      for (const [which, angle] of [["query", q], ["key", k]]) {
        const [x, y] = tip(hand, angle);
        hand[which].setAttribute("x2", x); hand[which].setAttribute("y2", y);
      }
      const [a, b] = [tip(hand, k, 20), tip(hand, q, 20)];
      hand.wedge.setAttribute("d", `M${hand.x} ${hand.y}L${a}A20 20 0 ${turn > Math.PI ? 1 : 0} 0 ${b}Z`);
      hand.number.textContent = Math.cos(distance * omega(i)).toFixed(2).replace("-", "−");
    });
    const points = [];
    for (let delta = 0; delta <= longest; delta += 0.25) points.push(`${X(delta).toFixed(1)} ${Y(score(delta)).toFixed(1)}`);
    line.setAttribute("d", "M" + points.join("L"));
    dot.setAttribute("cx", X(distance)); dot.setAttribute("cy", Y(score(distance)));
    facts.textContent = `Query at place ${place}, key at place ${place - distance}. Under each dial the cosine of the angle between its hands; their mean, the score, is ${score(distance).toFixed(3).replace("-", "−")}. Moving both changes no angle.`;
    root.dataset.score = score(distance).toFixed(6);
  };
  const change = (name) => (value) => { state[name] = value; draw(); };
  root.append(
    el("div.controls", {},
      slider({ name: "place of the query", min: longest, max: 4 * longest, step: 1, value: (state.place = longest), change: change("place") }),
      slider({ name: "distance to the key", min: 0, max: longest, step: 1, value: state.distance, words: (v) => `${v} tokens`, change: change("distance") }),
    ),
    choice("base", bases.map((b) => b.toLocaleString("en")), change("base")),
    pan("Dials and score", dials, curve), facts,
  );
  draw();
};
