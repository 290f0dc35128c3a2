// Byte-pair encoding, one merge after the other, on the reader's own text.
// data: { text, merges: "a,b;..." in base 36: ids below 256 are bytes in `order`, merge k makes id 256 + k; order: [byte, ...] }
gptbookPieces.kinds.merges = (root, { text, merges, order }, { el, slider, visible }) => {
  const pairs = merges.split(";").map((pair) => pair.split(",").map((n) => parseInt(n, 36)));
  const ranks = new Map(pairs.map(([a, b], k) => [a * 65536 + b, k]));
  const idOf = new Array(256);
  order.forEach((byte, id) => { idOf[byte] = id; });
  const bytesOf = order.map((byte) => [byte]);
  for (const [a, b] of pairs) bytesOf.push([...bytesOf[a], ...bytesOf[b]]);
  // GPT-4's cut, as in chapter 3, without the possessive quantifiers that JavaScript has not
  const cut = /'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu;
  const encoder = new TextEncoder(), strict = new TextDecoder("utf-8", { fatal: true });
  const words = (id) => {
    try { return visible(strict.decode(new Uint8Array(bytesOf[id]))); }
    catch { return bytesOf[id].map((b) => `\\x${b.toString(16).padStart(2, "0")}`).join(""); } // part of a character
  };

  // All states of the text: states[i] are its pieces after i merges that change something; used[i] is the merge that led to it.
  let states = [], used = [];
  const run = (source) => {
    let now = (source.match(cut) ?? []).map((piece) => [...encoder.encode(piece)].map((b) => idOf[b]));
    states = [now]; used = [null];
    for (;;) {
      let best = Infinity;
      for (const ids of now) for (let i = 0; i + 1 < ids.length; i++) best = Math.min(best, ranks.get(ids[i] * 65536 + ids[i + 1]) ?? Infinity);
      if (best === Infinity) return;
      const [a, b] = pairs[best];
      now = now.map((ids) => {
        const out = [];
        for (let i = 0; i < ids.length; i++) {
          if (i + 1 < ids.length && ids[i] === a && ids[i + 1] === b) { out.push(256 + best); i++; } else out.push(ids[i]);
        }
        return out;
      });
      states.push(now); used.push(best);
    }
  };

  const shown = el("div.tokens", { "aria-live": "off" }), facts = el("p.facts-line", { role: "status" });
  const draw = (step) => {
    const made = used[step] === null ? -1 : 256 + used[step];
    shown.replaceChildren();
    let count = 0, bytes = 0;
    states[step].forEach((ids, i) => {
      if (i) shown.append(el("span.cut"));
      for (const id of ids) {
        shown.append(el(`code.t${count % 5}${id === made ? ".new" : ""}`, { title: `id ${id}` }, words(id)), "\u200b");
        count += 1; bytes += bytesOf[id].length;
      }
    });
    const what = made < 0 ? "No merge yet: every byte is a token." : `Merge ${used[step] + 1} of ${pairs.length}: “${words(pairs[used[step]][0])}” and “${words(pairs[used[step]][1])}” become “${words(made)}”.`;
    facts.textContent = `${what} ${bytes} bytes, ${count} tokens${count ? `, ${(bytes / count).toFixed(2)} bytes a token` : ""}.`;
    root.dataset.tokens = count;
  };

  const box = el("textarea", { rows: 2, value: text, spellcheck: false, "aria-label": "Your text" });
  const controls = el("div.controls");
  const fresh = (at) => {
    run(box.value.slice(0, 2000));
    const last = states.length - 1, value = Math.min(at ?? last, last);
    controls.replaceChildren(slider({ name: "merges that change this text", min: 0, max: last, step: 1, value, words: (i) => `${i} of ${last}`, change: draw }));
    draw(value);
  };
  box.addEventListener("input", () => fresh());
  root.append(box, controls, shown, facts);
  fresh();
};
