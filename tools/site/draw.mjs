// Draws formulas (KaTeX) and diagrams (Mermaid) as HTML and SVG, so that the pages need no script for them.
// stdin: [{"kind": "math" | "display" | "mermaid", "text": ...}, ...]; stdout: [{"html": ...} | {"error": ...}, ...]
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const home = process.argv[2]; // the folder that has node_modules
const require = createRequire(pathToFileURL(join(home, "package.json")));
const katex = require("katex");

const settings = { strict: "ignore", trust: false, throwOnError: true, output: "htmlAndMathml" };
// The TeX is kept once, in the page's own attribute, not in every formula's MathML.
const lean = (html) => html.replace(/<annotation encoding="application\/x-tex">[\s\S]*?<\/annotation>/g, "");

async function mermaid(text) {
  const file = join(home, "node_modules", "beautiful-mermaid");
  const { main, module, exports } = require(join(file, "package.json"));
  const entry = exports?.["."]?.import?.default ?? exports?.["."]?.import ?? module ?? main;
  const { renderMermaidSVG } = await import(pathToFileURL(join(file, entry)).href);
  return renderMermaidSVG(text, { padding: 12, font: "inherit" });
}

let input = "";
process.stdin.setEncoding("utf8");
for await (const chunk of process.stdin) input += chunk;
const out = [];
for (const { kind, text } of JSON.parse(input)) {
  try {
    if (kind === "mermaid") out.push({ html: await mermaid(text) });
    else out.push({ html: lean(katex.renderToString(text, { ...settings, displayMode: kind === "display" })) });
  } catch (error) {
    out.push({ error: String(error.message ?? error) });
  }
}
process.stdout.write(JSON.stringify(out));
