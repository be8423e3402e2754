import { createHash } from "node:crypto";
import files from "../built-page.json";
import type { RequestContext, ServerApp } from "../context.ts";
import { mount } from "../router.ts";

const TYPES: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  svg: "image/svg+xml",
  txt: "text/plain; charset=utf-8",
};

/** The page runs its one script, and asks this server alone; text becomes no HTML, whoever wrote it. */
const HEADERS = {
  "Content-Security-Policy": [
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'",
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "require-trusted-types-for 'script'; trusted-types 'none'",
  ].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  // It may be kept, but is asked for each time: it belongs to this version of the server.
  "Cache-Control": "no-cache",
} as const;

/** A file of the page, as it goes over the wire. */
interface PageFile {
  readonly plain: Uint8Array<ArrayBuffer>;
  readonly zipped: Uint8Array<ArrayBuffer>;
  readonly headers: Readonly<Record<string, string>>;
}

/**
 * The page: `/ui`, and `/` for browsers, which ask for HTML; other clients get there what an unknown path gets. Its files are the
 * same for everybody and say nothing of this server, so they need no key. All that it shows it asks for with the key that its user
 * enters.
 */
export function pageRoutes(app: ServerApp): void {
  const made = new Map<string, PageFile>();
  const serve = (name: keyof typeof files) => (c: RequestContext) => {
    const file = made.get(name) ?? pageFile(name);
    made.set(name, file);
    return reply(c, file);
  };
  const document = serve("index.html");
  app.get("/", async (c, next) => {
    if (!/\btext\/html\b/i.test(c.req.header("accept") ?? "")) return next();
    c.get("tracked").handler = "/";
    return document(c);
  });
  mount(app, "/ui", { GET: document });
  for (const name of Object.keys(files) as (keyof typeof files)[])
    if (name !== "index.html") mount(app, `/ui/${name}`, { GET: serve(name) });
  // Addresses in the document are relative to its own.
  mount(app, "/ui/", { GET: (c) => c.redirect("../ui", 308) });
}

function pageFile(name: keyof typeof files): PageFile {
  const plain = new TextEncoder().encode(files[name]);
  const tag = createHash("sha256").update(plain).digest("base64url").slice(0, 22);
  return {
    plain,
    zipped: Bun.gzipSync(plain),
    headers: { ...HEADERS, "Content-Type": TYPES[name.split(".").at(-1)!]!, ETag: `"${tag}"` },
  };
}

function reply(c: RequestContext, { plain, zipped, headers }: PageFile): Response {
  if (c.req.header("if-none-match") === headers["ETag"]) return c.body(null, 304, headers);
  const takesGzip = /\bgzip\b/.test(c.req.header("accept-encoding") ?? "");
  const encoding = { Vary: "Accept-Encoding", ...(takesGzip && { "Content-Encoding": "gzip" }) };
  return c.body(takesGzip ? zipped : plain, 200, { ...headers, ...encoding });
}
