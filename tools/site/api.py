"""The API reference, from the package's source: signatures, docstrings, and where each thing is defined.

The source is read, not imported: no torch is needed, and what is written is what is there.
"""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from .outline import ROOT, Outline


@dataclass
class Item:
    """A function, a class, a method, or a constant."""

    name: str
    signature: str
    doc: str
    line: int
    members: list["Item"] = field(default_factory=list)


@dataclass
class Module:
    """One module and what it exports, in the order of its source."""

    name: str  # "attention", "workshop.plotting"
    source: str  # the notebook below nbs
    doc: str
    path: str  # below the repository's root
    items: list[Item]


def _signature(node: ast.FunctionDef, name: str, method: bool) -> str:
    """``name(arguments) -> result``, one argument a line where one line is too long."""
    static = any(getattr(d, "id", None) == "staticmethod" for d in node.decorator_list)
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pieces = [_argument(a, d) for a, d in zip(positional, defaults)][1 if method and not static else 0 :]
    if args.vararg:
        pieces.append("*" + ast.unparse(args.vararg))
    elif args.kwonlyargs:
        pieces.append("*")
    pieces += [_argument(a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    if args.kwarg:
        pieces.append("**" + ast.unparse(args.kwarg))
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(pieces)}){result}"
    return (
        line
        if len(line) <= 88
        else f"{name}(\n" + "".join(f"    {piece},\n" for piece in pieces) + f"){result}"
    )


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if arg.annotation else "="
    return ast.unparse(arg) + (equals + ast.unparse(default) if default is not None else "")


def _class(node: ast.ClassDef) -> Item:
    init, members, fields = None, [], []
    dataclass_ = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            if child.name == "__init__":
                init = child
            elif child.name == "__call__" or not child.name.startswith("_"):
                doc = ast.get_docstring(child) or ""
                shown = f"{node.name}.{child.name}"
                if any(ast.unparse(d) in ("property", "cached_property") for d in child.decorator_list):
                    signature = shown + (f": {ast.unparse(child.returns)}" if child.returns else "")
                else:
                    signature = _signature(child, shown, True)
                members.append(Item(child.name, signature, doc, child.lineno))
        elif (
            isinstance(child, ast.AnnAssign) and dataclass_ and not ast.unparse(child.target).startswith("_")
        ):
            fields.append(ast.unparse(child))
    bases = [ast.unparse(base) for base in node.bases]
    if init is not None:
        signature = re.sub(r" -> None$", "", _signature(init, node.name, True))
    elif fields:
        line = f"{node.name}({', '.join(fields)})"
        signature = (
            line if len(line) <= 88 else f"{node.name}(\n" + "".join(f"    {f},\n" for f in fields) + ")"
        )
    else:
        signature = node.name + (f"({', '.join(bases)})" if bases else "")
    return Item(node.name, f"class {signature}", ast.get_docstring(node) or "", node.lineno, members)


def _items(tree: ast.Module) -> list[Item]:
    public: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            public = [element.value for element in node.value.elts]
    found: dict[str, Item] = {}
    for node, following in zip(tree.body, [*tree.body[1:], None]):
        if isinstance(node, ast.FunctionDef):
            item = Item(
                node.name, _signature(node, node.name, False), ast.get_docstring(node) or "", node.lineno
            )
        elif isinstance(node, ast.ClassDef):
            item = _class(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            after = following.value if isinstance(following, ast.Expr) else None
            doc = after.value if isinstance(after, ast.Constant) and isinstance(after.value, str) else ""
            for name, value in _assigned(node):
                if name in public:
                    text = f"{name} = {value if len(value) < 70 else '...'}"
                    found[name] = Item(name, text, doc, node.lineno)
            continue
        else:
            continue
        if item.name in public:
            found[item.name] = item
    return list(found.values())


def _assigned(node: ast.Assign | ast.AnnAssign) -> list[tuple[str, str]]:
    """(name, value as text) of an assignment, also of several names at once."""
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        return [(ast.unparse(t), ast.unparse(v)) for t, v in zip(target.elts, node.value.elts)]
    return [(ast.unparse(target), ast.unparse(node.value) if node.value else "")]


def read_package(package: Path = ROOT / "gptbook") -> list[Module]:
    """All modules that were exported from a notebook."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        match = re.search(
            r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (?:\.\./)*nbs/(\S+?)\.?$", text, flags=re.M
        )
        if match:
            tree = ast.parse(text)
            name = ".".join(path.relative_to(package).with_suffix("").parts)
            below = path.relative_to(package.parent).as_posix()
            modules.append(Module(name, match[1], ast.get_docstring(tree) or "", below, _items(tree)))
    return modules


def anchor(module: Module, name: str) -> str:
    """The place of a name on the page."""
    return f"api-{module.name}-{name}".replace(".", "-").replace("_", "-")


def anchors(modules: list[Module]) -> dict[str, str]:
    """For each exported name its place; of two with one name the first."""
    found: dict[str, str] = {}
    for module in modules:
        for item in module.items:
            found.setdefault(item.name, anchor(module, item.name))
    return found


LEADS = r"(Returns|Raises|Source|Sources|Shapes|Shape|Yields|Args|Attributes|Example|Note)"
ENTRY = re.compile(r"^([\w*]+(?:, [\w*]+)*) ?: +(.+)$")


def prose(doc: str) -> str:
    """A docstring as Markdown: arguments as a list of definitions, what a reader looks for in bold, the rest as text."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", doc.strip()):
        for part in re.split(rf"\n(?={LEADS[:-1]})\b)", block):
            if part in re.findall(LEADS, part):
                continue
            out.append(_block(part.splitlines()))
    return "\n\n".join(filter(None, out))


def _block(lines: list[str]) -> str:
    if not lines:
        return ""
    if all(line.startswith("    ") for line in lines):
        return "```text\n" + "\n".join(line[4:] for line in lines) + "\n```"
    title = re.fullmatch(rf"{LEADS}:", lines[0].strip())
    rest = lines[1:] if title else lines
    if rest and ENTRY.match(rest[0].strip()) and not re.match(LEADS, rest[0].strip()):
        return "\n\n".join(_entries(rest))
    text = _escaped("\n".join(line.strip() for line in lines))
    text = re.sub(r"\n(?=\\?- |\d+\. )", "\n\n", text)
    return re.sub(rf"^{LEADS}\b(?=[: ])", r"**\1**", re.sub(r"::$", ":", text))


def _entries(lines: list[str]) -> list[str]:
    """``name: meaning`` lines, which may go on indented below."""
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    found: list[list[str]] = []
    for line in lines:
        match = ENTRY.match(line[indent:])
        if match:
            found.append([match[1], match[2]])
        elif found:
            found[-1][1] += " " + line.strip()
    return [
        ", ".join(f"`{n}`" for n in names.split(", ")) + f"\n:   {_escaped(text)}" for names, text in found
    ]


def _escaped(text: str) -> str:
    """Double backticks become single, and outside of them nothing is read as Markdown."""
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text.replace("->", "→"))
    return "".join(
        "`" + p.strip("`") + "`" if p.startswith("`") else re.sub(r"([$@*_<>\[\]^~#|\\-])", r"\\\1", p)
        for p in pieces
    )


def markdown(modules: list[Module], outline: Outline, titles: dict[str, str], repository: str = "") -> str:
    """The reference, chapters in their order, then the workshop. ``titles`` are the chapters' titles by source."""
    order = {page.source: i for i, page in enumerate(outline.pages)}
    known = [m for m in modules if m.source in order and m.items]
    parts = []
    for module in sorted(known, key=lambda m: order[m.source]):
        page = outline.page(module.source)
        where = f"Chapter {page.number}" if page.number.isdigit() else "Workshop"
        parts.append(f"## `gptbook.{module.name}` {{#api-{module.name.replace('.', '-')} .unnumbered}}")
        parts.append(f"*{_escaped(module.doc)}*")
        parts.append(
            f"From [{where.lower() if where == 'Workshop' else where}: {titles.get(module.source, module.source)}]({module.source})."
        )
        names = [f"[`{item.name}`](#{anchor(module, item.name)}){{.index}}" for item in module.items]
        parts.append(" ".join(names))
        for item in module.items:
            parts += _entry(item, module, repository)
    return "\n\n".join(parts) + "\n"


def _entry(item: Item, module: Module, repository: str) -> list[str]:
    source = ""
    if repository:
        source = f" [source]({repository.rstrip('/')}/blob/main/{module.path}#L{item.line})"
    lines = [
        f"### `{item.name}` {{#{anchor(module, item.name)} .unnumbered}}",
        f"```python\n{item.signature}\n```",
        f"{prose(item.doc)}{source}",
    ]
    for member in item.members:
        lines += [f"::: {{.member}}\n```python\n{member.signature}\n```\n\n{prose(member.doc)}\n:::"]
    return [line for line in lines if line.strip()]
