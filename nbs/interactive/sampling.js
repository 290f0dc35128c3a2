// Temperature, top-k, top-p and min-p on the distribution of one next token, in the order of the book's `generate`.
// data: { context, tokens: [text, ...], logits: [number, ...] }, most probable first.
gptbookPieces.kinds.sampling = (root, { context, tokens, logits }, { el, slider, visible }) => {
  const V = logits.length, shown = Math.min(14, V);
  const counts = [1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100, 200, 500].filter((k) => k < V).concat(V);
  const state = { temperature: 1, k: V, p: 1, minP: 0 };

  const softmax = (x) => {
    const top = Math.max(...x), e = x.map((v) => Math.exp(v - top)), sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  };
  const cut = (x, keep) => x.map((v, i) => (keep(i) ? v : -Infinity));
  const filtered = ({ temperature, k, p, minP }) => {
    if (temperature === 0) return softmax(cut(logits, (i) => i === 0));
    let x = logits.map((v) => v / temperature);
    x = cut(x, (i) => x[i] >= x[k - 1]); // sorted, so entry k-1 is the smallest that stays; its equals stay too
    let q = softmax(x), before = 0;
    if (p < 1) x = cut(x, (i) => { const keep = i === 0 || before < p; before += q[i]; return keep; });
    q = softmax(x);
    return softmax(cut(x, (i) => q[i] >= minP * q[0]));
  };
  const entropy = (q) => -q.reduce((sum, v) => sum + (v > 0 ? v * Math.log2(v) : 0), 0);
  const percent = (v) => (v === 0 ? "0" : v < 0.0005 ? "<0.1%" : `${(100 * v).toFixed(1)}%`);

  const before = softmax(logits);
  let now = before;
  const rows = [];
  const bars = el("div.bars");
  for (let i = 0; i <= shown; i++) {
    const rest = i === shown;
    if (rest && V <= shown) break;
    const name = rest ? el("span", {}, `${V - shown} others`) : el("code", { title: visible(tokens[i]) }, visible(tokens[i]));
    const was = el("span.was"), is = el("span.is"), number = el("span");
    bars.append(name, el("span.track", {}, was, is), number);
    rows.push({ name, was, is, number, rest });
  }
  const facts = el("p.facts-line", { role: "status" }), drawn = el("div.pills", { "aria-live": "polite" });

  const draw = () => {
    now = filtered(state);
    const tail = (q) => q.slice(shown).reduce((a, b) => a + b, 0);
    const scale = Math.max(...now, ...before, tail(now), tail(before));
    rows.forEach(({ name, was, is, number, rest }, i) => {
      const old = rest ? tail(before) : before[i], value = rest ? tail(now) : now[i];
      was.style.width = `${(100 * old) / scale}%`;
      is.style.width = `${(100 * value) / scale}%`;
      number.textContent = percent(value);
      name.classList.toggle("gone", value === 0);
    });
    const kept = now.filter((v) => v > 0).length;
    const mass = before.reduce((sum, v, i) => sum + (now[i] > 0 ? v : 0), 0);
    facts.textContent = `${kept} of ${V} tokens are left; at temperature 1 they had ${percent(mass)} of the probability. `
      + `Entropy ${entropy(now).toFixed(2)} bits, before ${entropy(before).toFixed(2)}.`;
    root.dataset.kept = kept;
    root.dataset.best = now[0].toFixed(6);
    drawn.replaceChildren();
  };
  const pick = () => {
    const texts = Array.from({ length: 24 }, () => {
      let u = Math.random(), i = 0;
      while (i < V - 1 && u >= now[i]) u -= now[i++];
      return el("code", {}, visible(tokens[i]));
    });
    drawn.replaceChildren(...texts);
  };

  const change = (name) => (value) => { state[name] = value; draw(); };
  root.append(
    el("div.controls", {},
      slider({ name: "temperature", min: 0, max: 2, step: 0.05, value: 1, words: (v) => (v === 0 ? "0 (greedy)" : v.toFixed(2)), change: change("temperature") }),
      slider({ name: "top-k", min: 0, max: counts.length - 1, step: 1, value: counts.length - 1, words: (i) => (counts[i] === V ? "off" : counts[i]), change: (i) => change("k")(counts[i]) }),
      slider({ name: "top-p", min: 0.05, max: 1, step: 0.01, value: 1, words: (v) => (v === 1 ? "off" : v.toFixed(2)), change: change("p") }),
      slider({ name: "min-p", min: 0, max: 0.5, step: 0.01, value: 0, words: (v) => (v === 0 ? "off" : v.toFixed(2)), change: change("minP") }),
    ),
    el("p.facts-line", {}, "After ", el("code", {}, visible(context)), " comes"),
    bars, facts,
    el("div.row", {}, el("button", { type: "button", onclick: pick }, "Draw 24 tokens")), drawn,
  );
  draw();
};
