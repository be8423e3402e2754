import { createHash } from "node:crypto";
import { html, raw } from "hono/html";
import { version } from "../../../package.json";
import type { Authenticator } from "../auth.ts";
import type { ServerApp, ServerContext } from "../context.ts";
import { headerOf } from "../header.ts";
import { healthProblem } from "./health.ts";

const STYLE = `
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; }
table { border-collapse: collapse; }
td { padding: 0.1rem 1rem 0.1rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #e4e6eb; } a { color: #8ab4f8; } }
`;

/** The page loads nothing and runs no script. */
const HEADERS = {
  "Content-Security-Policy": [
    `default-src 'none'; style-src 'sha256-${createHash("sha256").update(STYLE).digest("base64")}'`,
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ].join("; "),
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-store",
} as const;

/**
 * `/` for browsers, which ask for HTML; other clients get what an unknown path gets. A request without the key that the
 * server needs is told no more than `/health` tells.
 */
export function startPageRoute(app: ServerApp, context: ServerContext, authenticator: Authenticator): void {
  app.get("/", async (c, next) => {
    if (!/\btext\/html\b/i.test(c.req.header("accept") ?? "")) return next();
    c.get("tracked").handler = "/";
    const known = authenticator.knows(headerOf(c.req.raw.headers, "authorization"));
    return c.html(page(context, known), 200, HEADERS);
  });
}

const LINKS = [
  ["openapi.json", "every endpoint with its fields, as OpenAPI"],
  ["v1/models", "the served models"],
  ["metrics", "metrics for Prometheus"],
  ["health", "200 while requests are served"],
] as const;

function page(context: ServerContext, known: boolean) {
  const problem = healthProblem(context);
  const links = LINKS.map(
    ([path, text]) => html`<tr><td><a href="${path}"><code>/${path}</code></a></td><td>${text}</td></tr>`,
  );
  return html`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Octavo</title>
<style>${raw(STYLE)}</style>
<h1>Octavo</h1>
<p>A language model is served here with OpenAI's HTTP API. ${problem ? problem.message : "It takes requests"}.</p>
${known ? facts(context) : html`<p>Requests need a key: <code>Authorization: Bearer …</code></p>`}
<table>${links}</table>
<p>Clients take this address with <code>/v1</code> as their base URL.</p>
</html>
`;
}

function facts({ llm, config }: ServerContext) {
  const rows = [
    ["Models", config.servedModelNames.join(", ")],
    ["Context", `${llm.maxModelLen} tokens`],
    ["Device", `${llm.device}, ${llm.dtype}`],
    ["Version", version],
  ];
  return html`<table>${rows.map(([name, value]) => html`<tr><td>${name}</td><td>${value}</td></tr>`)}</table>`;
}
