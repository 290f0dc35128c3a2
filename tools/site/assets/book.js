// Everything that moves on a page of the book. Without it the page still reads: formulas, numbers and links are in the HTML.
"use strict";
(() => {
  const root = document.documentElement, body = document.body, up = body.dataset.root;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (selector, from = document) => from.querySelector(selector);

  // ---- dark and light ---------------------------------------------------------------------------
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const theme = one(".theme");
  const say = () => theme.setAttribute("aria-label", dark() ? "Switch to light" : "Switch to dark");
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a page may be read without storage */ }
    say();
  });
  system.addEventListener("change", say);
  say();

  // ---- formulas that are a little too wide -----------------------------------------------------------
  const fit = () => {
    const formulas = all("main .formula");
    for (const formula of formulas) formula.style.fontSize = "";
    const wide = formulas.map((formula) => [formula, formula.clientWidth / formula.scrollWidth]).filter(([, share]) => share < 1);
    for (const [formula, share] of wide) formula.style.fontSize = `${Math.max(0.78, share * 0.995)}em`;  // what is wider still is scrolled
  };
  document.fonts.ready.then(fit);
  addEventListener("resize", fit);

  // ---- a wide drawing whose names are at its right end -----------------------------------------------
  for (const box of all("#fig-derivations .picture")) box.scrollLeft = box.scrollWidth;

  // ---- chapters on a small screen -----------------------------------------------------------------
  const menu = one(".menu"), sidebar = one(".sidebar");
  const shown = () => body.classList.contains("menu-open");
  const show = (open) => {
    body.classList.toggle("menu-open", open);
    menu.setAttribute("aria-expanded", open);
    if (open) (one("a[aria-current]", sidebar) ?? one("a", sidebar)).focus();
  };
  menu.addEventListener("click", () => show(!shown()));
  sidebar.addEventListener("focusout", (event) => { // whoever goes on with the keyboard is not left behind the menu
    if (shown() && event.relatedTarget && !sidebar.contains(event.relatedTarget) && event.relatedTarget !== menu) show(false);
  });
  one("main").addEventListener("click", () => show(false));
  const here = one("a[aria-current]", sidebar);
  if (here) sidebar.scrollTop = here.offsetTop - sidebar.clientHeight / 3;

  // ---- copy ---------------------------------------------------------------------------------------
  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const text = one("pre", button.parentElement).textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch { // no permission, as on file://
        const area = Object.assign(document.createElement("textarea"), { value: text });
        body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      button.textContent = "Copied";
      button.classList.add("done");
      setTimeout(() => { button.textContent = "Copy"; button.classList.remove("done"); }, 1600);
    });
  }

  // ---- folded things open when something in them is wanted, and on paper -----------------------------
  const unfold = () => {
    let target = null;
    try { target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { /* odd hash */ }
    if (!target) return;
    const folded = [];
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS" && !e.open) folded.push(e);
    for (const e of folded) e.open = true;
    if (folded.length) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();
  addEventListener("beforeprint", () => { for (const e of all("article details:not([open])")) { e.open = true; e.dataset.printed = ""; } });
  addEventListener("afterprint", () => { for (const e of all("details[data-printed]")) { e.open = false; delete e.dataset.printed; } });

  // ---- the names of the API, fewer with every letter --------------------------------------------------
  const modules = [];
  for (const e of all(".content > :is(h2[id^=api-], h2[id^=api-] ~ *)")) {
    if (e.tagName === "H2") modules.push({ head: [], entries: [] });
    const { head, entries } = modules.at(-1);
    if (e.tagName === "H3") entries.push({ name: one("code", e).textContent.toLowerCase(), parts: [] });
    (entries.at(-1)?.parts ?? head).push(e);
  }
  if (modules.length) {
    const input = Object.assign(document.createElement("input"), { type: "search", autocomplete: "off", spellcheck: false });
    const label = Object.assign(document.createElement("label"), { textContent: "Find a name " });
    const status = Object.assign(document.createElement("span"), { role: "status" });
    const box = Object.assign(document.createElement("p"), { className: "filter" });
    label.append(input);
    box.append(label, status);
    modules[0].head[0].before(box);
    const filter = () => {
      const wanted = input.value.trim().toLowerCase();
      let count = 0;
      for (const { head, entries } of modules) {
        let some = 0;
        for (const { name, parts } of entries) {
          const keep = name.includes(wanted);
          some += keep;
          for (const part of parts) part.hidden = !keep;
        }
        for (const [i, part] of head.entries()) part.hidden = !some || (wanted !== "" && i > 0);
        count += some;
      }
      status.textContent = wanted ? `${count} ${count === 1 ? "name" : "names"}` : "";
    };
    input.addEventListener("input", filter);
    addEventListener("hashchange", () => { // what is wanted by its address is shown
      const target = document.getElementById(location.hash.slice(1));
      if (target?.hidden) { input.value = ""; filter(); target.scrollIntoView(); }
    });
  }

  // ---- where one is on the page -----------------------------------------------------------------------
  const entries = all(".toc a").map((a) => [a, document.getElementById(decodeURIComponent(a.hash.slice(1)))]).filter(([, t]) => t);
  if (entries.length) {
    let waiting = false;
    const mark = () => {
      waiting = false;
      let found = entries[0][0];
      for (const [a, target] of entries) if (target.getClientRects().length && target.getBoundingClientRect().top < innerHeight * 0.3) found = a;
      for (const [a] of entries) a.classList.toggle("here", a === found);
      for (const li of all(".toc > ol > li")) li.classList.toggle("here", li.contains(found));
    };
    addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(mark); } }, { passive: true });
    mark();
  }

  // ---- what a reference, a term or a source is, on hover and on focus -----------------------------------
  const peek = one("#peek");
  let timer = 0, owner = null;
  const copied = (element) => {
    const clone = element.cloneNode(true);
    for (const e of [clone, ...all("[id]", clone)]) e.removeAttribute("id");
    for (const e of all(".side, .copy, .anchor, .footnote-back, :scope > pre.output", clone)) e.remove();
    return clone;
  };
  const content = (link) => {
    if (link.dataset.zh) {
      const box = document.createElement("div");
      const head = Object.assign(document.createElement("div"), { className: "zh" });
      head.append(`${link.dataset.term} · `, Object.assign(document.createElement("span"), { lang: "zh", textContent: link.dataset.zh }));
      box.append(head, Object.assign(document.createElement("div"), { textContent: link.dataset.meaning }));
      return box;
    }
    const name = link.dataset.ref ?? decodeURIComponent(link.hash.slice(1));
    const template = one(`template[data-preview="${CSS.escape(name)}"]`);
    if (template) return template.content.cloneNode(true);
    const target = document.getElementById(name);
    if (target?.matches(".equation")) return copied(one(".formula", target));
    if (target?.matches("figure, .csl-entry, li")) return copied(target);
    return link.dataset.text ? document.createTextNode(link.dataset.text) : null;
  };
  const open = (link) => {
    const inside = content(link);
    if (!inside) return;
    owner = link;
    peek.replaceChildren(inside);
    peek.hidden = false;
    place(link);
    for (const picture of all("img", peek)) picture.addEventListener("load", () => { if (owner === link) place(link); });
    link.setAttribute("aria-describedby", "peek");
  };
  const place = (link) => {
    peek.style.maxHeight = "";
    const at = link.getBoundingClientRect(), size = peek.getBoundingClientRect();
    const left = Math.max(12, Math.min(at.left, root.clientWidth - size.width - 12));
    const under = innerHeight - at.bottom - 16, over = at.top - 70; // the bar is above
    const below = size.height < under || under > over, height = Math.min(size.height, below ? under : over);
    peek.style.maxHeight = `${height}px`;
    peek.style.left = `${left + scrollX}px`;
    peek.style.top = `${(below ? at.bottom + 8 : at.top - height - 8) + scrollY}px`;
  };
  const shut = () => {
    owner?.removeAttribute("aria-describedby");
    owner = null;
    peek.hidden = true;
  };
  document.addEventListener("click", (event) => {
    if (owner && !event.target.closest("#peek, a, .term")) shut();
  });
  const later = (action, wait) => { clearTimeout(timer); timer = setTimeout(action, wait); };
  for (const link of all("a.ref, .term, a[role=doc-biblioref], a.footnote-ref")) {
    link.addEventListener("mouseenter", () => later(() => open(link), 120));
    link.addEventListener("mouseleave", () => later(shut, 180));
    link.addEventListener("focus", () => { if (link.matches(":focus-visible")) open(link); });
    link.addEventListener("blur", shut);
    link.addEventListener("click", (event) => { // a finger cannot hover: the first touch shows, the second follows
      if (!matchMedia("(hover: none)").matches || owner === link) return;
      open(link);
      if (owner === link) event.preventDefault();
    });
  }
  peek.addEventListener("mouseenter", () => clearTimeout(timer));
  peek.addEventListener("mouseleave", () => later(shut, 120));

  // ---- search ---------------------------------------------------------------------------------------------
  const dialog = one("dialog.search"), query = one("#query"), list = one("#results"), note = one(".search .note");
  let index = null, chosen = -1;
  const load = () => new Promise((done, failed) => {
    if (index) return done();
    const script = document.createElement("script"); // a page from file:// may load a script, but fetch nothing
    script.src = `${up}search-index.js`;
    script.onload = () => {
      const title = (e) => e.t || e.p.replace(/^(\d+|[A-Z]) /, ""); // the beginning of a chapter has the chapter's
      index = window.BOOK_INDEX.map((e) => ({ ...e, lt: title(e).toLowerCase(), lx: e.x.toLowerCase(), lc: (e.c ?? "").toLowerCase(), lp: e.p.toLowerCase() }));
      done();
    };
    script.onerror = failed;
    document.head.append(script);
  });
  const weight = { term: 6, formula: 4, code: 5, figure: 0, table: 0 };
  const score = (e, words) => {
    let sum = 0;
    for (const word of words) {
      const title = e.lt.indexOf(word), whole = title >= 0 && (title === 0 || !/[\p{L}\p{N}]/u.test(e.lt[title - 1]));
      if (e.lt === word) sum += 40;
      if (whole) sum += 14 + (e.lt.length === word.length ? 10 : 0);
      else if (title >= 0) sum += 7;
      const text = e.lx.indexOf(word);
      if (text >= 0) sum += 3 + Math.min(4, e.lx.split(word).length - 2);
      if (e.lc.includes(word)) sum += 2;
      if (e.lp.includes(word)) sum += 2;
      if (title < 0 && text < 0 && !e.lc.includes(word) && !e.lp.includes(word)) return 0;
    }
    return sum + (weight[e.k] ?? 2);
  };
  const marked = (text, words) => {
    const box = document.createDocumentFragment(), lower = text.toLowerCase();
    let at = 0;
    while (at < text.length) {
      let next = -1, length = 0;
      for (const word of words) {
        const i = lower.indexOf(word, at);
        if (i >= 0 && (next < 0 || i < next)) { next = i; length = word.length; }
      }
      if (next < 0) break;
      box.append(text.slice(at, next), Object.assign(document.createElement("mark"), { textContent: text.slice(next, next + length) }));
      at = next + length;
    }
    box.append(text.slice(at));
    return box;
  };
  const choose = (i) => {
    const items = [...list.children];
    chosen = items.length ? (i + items.length) % items.length : -1;
    items.forEach((item, j) => item.setAttribute("aria-selected", j === chosen));
    query.setAttribute("aria-activedescendant", items[chosen]?.id ?? "");
    items[chosen]?.scrollIntoView({ block: "nearest" });
  };
  const search = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    list.replaceChildren();
    if (!words.length || !index) { note.textContent = ""; query.setAttribute("aria-expanded", "false"); return; }
    const places = new Set(); // a term and its section, for instance, lead to one place: the better of them is shown
    const found = index.map((e) => [score(e, words), e]).filter(([s]) => s).sort((a, b) => b[0] - a[0])
      .filter(([, e]) => !places.has(e.u) && places.add(e.u));
    found.slice(0, 30).forEach(([, e], i) => {
      const item = Object.assign(document.createElement("li"), { id: `hit-${i}` });
      item.setAttribute("role", "option");
      const link = Object.assign(document.createElement("a"), { href: up + e.u, tabIndex: -1 });
      const what = Object.assign(document.createElement("div"), { className: "what" });
      what.append(marked(e.t || e.p, words));
      const where = Object.assign(document.createElement("div"), { className: "where", textContent: e.t ? e.p : "" });
      const inText = words.map((w) => e.lx.indexOf(w)).filter((n) => n >= 0);
      const inCode = words.map((w) => e.lc.indexOf(w)).filter((n) => n >= 0);
      const useCode = !inText.length && inCode.length;
      const source = useCode ? e.c : e.x, at = Math.max(0, (useCode ? inCode : inText)[0] - 60 || 0);
      const snippet = Object.assign(document.createElement("div"), { className: useCode ? "snippet code-hit" : "snippet" });
      snippet.append(at ? "… " : "", marked(source.slice(at, at + 220), words));
      link.append(what, where, snippet);
      item.append(link);
      list.append(item);
    });
    query.setAttribute("aria-expanded", String(found.length > 0));
    note.textContent = found.length ? (found.length > 30 ? `30 of ${found.length} places` : "") : "Nothing found.";
    choose(0);
  };
  const start = async () => {
    if (!dialog.open) dialog.showModal();
    query.select();
    note.textContent = index ? "" : "Loading …";
    try { await load(); search(); } catch { note.textContent = "The index could not be loaded."; }
  };
  one(".search-open").addEventListener("click", start);
  query.addEventListener("input", search);
  query.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { choose(chosen + (event.key === "ArrowDown" ? 1 : -1)); event.preventDefault(); }
    if (event.key === "Escape") { dialog.close(); event.preventDefault(); }
    if (event.key === "Enter") { one(`#hit-${chosen} a`)?.click(); event.preventDefault(); }
  });
  list.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      shut();
      if (shown()) { show(false); menu.focus(); }
    }
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (!typing && (event.key === "/" || (event.key === "k" && (event.ctrlKey || event.metaKey)))) { event.preventDefault(); start(); }
    else if (!typing && !event.altKey && !event.ctrlKey && !event.metaKey && !event.target.closest?.("[tabindex='0'], .piece") && !dialog.open) {
      if (event.key === "ArrowLeft") one(".turn .previous")?.click();
      if (event.key === "ArrowRight") one(".turn .next")?.click();
    }
  });
})();
