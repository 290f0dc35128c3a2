"""The search index: every section of the book, every labelled formula, exported name and term, as one script."""

import json
import re

from . import pandoc
from .outline import KINDS

SIGNS = {
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "in": "∈", "notin": "∉", "infty": "∞", "sum": "∑",
    "prod": "∏", "int": "∫", "partial": "∂", "nabla": "∇", "cdot": "·", "times": "×", "odot": "⊙", "pm": "±", "approx": "≈",
    "to": "→", "mapsto": "↦", "Rightarrow": "⇒", "Longleftrightarrow": "⇔", "iff": "⇔", "mid": "|", "vert": "|", "Vert": "‖",
    "lVert": "‖", "rVert": "‖", "dots": "…", "ldots": "…", "cdots": "…", "top": "ᵀ", "sqrt": "√", "propto": "∝", "ll": "≪", "gg": "≫",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
    "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Pi": "Π",
    "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "ell": "ℓ",
}  # fmt: skip


def readable(tex: str) -> str:
    """A formula as a line that one can search in and read: ``\\frac{a}{b}`` is ``(a)/(b)``, ``\\le`` is ``≤``."""
    tex = re.sub(r"\\(?:begin|end)\{[^}]*\}(?:\{[^}]*\})?|\\\\(?:\[[^\]]*\])?|&", " ", tex)
    font = r"\\(?:math(?:bf|rm|bb|cal|sf)|boldsymbol|operatorname\*?|text\w*|displaystyle|textstyle|(?:over|under)line|hat|bar|tilde|widehat)"
    tex = re.sub(font + r"(?![A-Za-z])", "", tex)
    tex = re.sub(r"\\(?:left|right|[Bb]igg?[lr]?|q?quad)(?![A-Za-z])\.?|\\[,;:! ]", " ", tex)
    tex = re.sub(r"\\(log|ln|exp|max|min|arg|lim|cos|sin|tanh|Pr|det|sup|inf)(?![A-Za-z])", r" \1 ", tex)
    for _ in range(3):  # fractions in fractions
        tex = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)", tex)
        tex = re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", tex)
    tex = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2", tex)
    tex = re.sub(r"\\([A-Za-z]+) ?", lambda match: SIGNS.get(match[1], f" {match[1]} "), tex)
    return re.sub(r"\s+", " ", re.sub(r"[{}$\\]", "", tex)).strip()


def sections(blocks: list[pandoc.Node]) -> list[dict]:
    """[{"id", "title", "text", "code"}] of a page, from heading to heading."""
    found = [{"id": "", "title": "", "text": [], "code": []}]

    def collect(node: pandoc.Node):
        kind = node["t"]
        if kind == "Header":
            level, (identifier, _, _), inlines = node["c"]
            title = pandoc.plain(inlines).strip()
            if level <= 3:
                found.append({"id": identifier, "title": title, "text": [], "code": []})
            return []
        if kind in ("Para", "Plain"):
            found[-1]["text"].append(pandoc.plain(pandoc.walk(node["c"], _math)))
            return []
        if kind == "CodeBlock":
            found[-1]["code"].append(node["c"][1])
            return []
        return None

    pandoc.walk(blocks, collect)
    for section in found:
        for name in ("text", "code"):
            section[name] = re.sub(r"\s+", " ", " ".join(section[name])).strip()
    return [s for s in found if s["text"] or s["code"] or s["title"]]


def _math(node: pandoc.Node):
    if node["t"] == "Math":
        return pandoc.string(readable(node["c"][1]))
    return None


def _named(text: str, names: dict[str, str]) -> str:
    """A text whose references are words: ``@eq-softmax`` is ``Equation 6.2``; works that are cited are left out."""
    text = re.sub(r"@((?:eq|fig|tbl|sec)-[\w-]*\w)", lambda match: names.get(match[1], ""), text)
    return re.sub(r" ?\[@[^\]]*\]", "", text)


def index(records: list[dict], glossary: list[dict], api: list[dict]) -> str:
    """The script ``search-index.js``. A script, because a page from ``file://`` may not fetch anything."""
    entries, names = [], {}
    for record in records:
        for label, data in record["labels"].items():
            names[label] = f"{KINDS[data['kind']]} {data.get('number') or ''}".strip()
    for record in records:
        chapter = f"{record['number']} {record['title']}".strip()
        for section in record["sections"]:
            url = record["url"] + ("#" + section["id"] if section["id"] else "")
            entry = {"u": url, "p": chapter, "t": section["title"], "x": _named(section["text"], names)}
            if section["code"]:
                entry["c"] = section["code"]
            entries.append(entry)
        for label, data in record["labels"].items():
            if data["kind"] == "eq":
                name = label.removeprefix("eq-").removeprefix("def-").replace("-", " ")
                entries.append(
                    {"u": f"{record['url']}#{label}", "p": chapter, "t": f"{KINDS['eq']} {data['number']}: {name}",
                     "x": f"{data['section']}. {readable(data['tex'])}", "k": "formula"}
                )  # fmt: skip
            elif data["kind"] in ("fig", "tbl"):
                kind = KINDS[data["kind"]]
                entries.append(
                    {"u": f"{record['url']}#{label}", "p": chapter, "t": f"{kind} {data['number']}",
                     "x": _named(data["text"], names), "k": kind.lower()}
                )  # fmt: skip
    urls = {record["source"]: record["url"] for record in records}
    for entry in glossary:
        source, _, anchor = entry["place"].partition("#")
        if source in urls:
            also = ", ".join([entry["zh"], *entry.get("also", ())])
            url = urls[source] + ("#" + anchor if anchor else "")
            entries.append(
                {
                    "u": url,
                    "p": "Glossary",
                    "t": entry["term"],
                    "x": f"{also}. {entry['meaning']}",
                    "k": "term",
                }
            )
    entries += api
    return "window.BOOK_INDEX=" + json.dumps(entries, ensure_ascii=False, separators=(",", ":")) + ";\n"
