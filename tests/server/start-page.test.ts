import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { version } from "../../package.json";
import { createApp } from "../../src/server/serve.ts";
import { errorOf, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start({ servedModelNames: ["tiny", "<b>&'\""] });
});
afterAll(() => server[Symbol.asyncDispose]());

/** What browsers send. */
const HTML = { Accept: "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8" };

test("a browser is shown what runs here, with links that answer", async () => {
  const reply = await server.fetch("/", { headers: HTML });
  expect([reply.status, reply.headers.get("content-type")]).toEqual([200, "text/html; charset=UTF-8"]);
  const page = await reply.text();
  for (const part of [
    "<title>Octavo</title>",
    "tiny, &lt;b&gt;&amp;&#39;&quot;",
    "1024 tokens",
    "cpu",
    version,
  ])
    expect(page).toContain(part);
  expect(page).toContain("It takes requests.");
  const links = [...page.matchAll(/href="([^"]+)"/g)].map(([, path]) => path!);
  expect(links.length).toBeGreaterThan(3);
  for (const link of links) expect((await server.fetch(`/${link}`)).status).toBe(200);
  expect((await server.fetch("/", { method: "HEAD", headers: HTML })).status).toBe(200);
});

test("the page runs no script, loads nothing and has the one style that its policy names", async () => {
  const reply = await server.fetch("/", { headers: HTML });
  const page = await reply.text();
  expect(page).not.toMatch(/<script|javascript:|\son\w+=|\bsrc=|<link|https?:/i);
  const [, style] = page.match(/<style>(.*?)<\/style>/s)!;
  const hash = new Bun.CryptoHasher("sha256").update(style!).digest("base64");
  const policy = reply.headers.get("content-security-policy")!;
  expect(policy).toStartWith(`default-src 'none'; style-src 'sha256-${hash}'; `);
  for (const directive of ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])
    expect(policy).toContain(directive);
  expect(reply.headers.get("x-content-type-options")).toBe("nosniff");
});

test("clients that do not ask for HTML get what any unknown path gets", async () => {
  for (const headers of [{}, { Accept: "*/*" }, { Accept: "application/json" }])
    expect(await errorOf(server.fetch("/", { headers }))).toMatchObject({ status: 404, code: "not_found" });
  expect(await errorOf(server.fetch("/", { method: "POST", headers: HTML }))).toMatchObject({ status: 404 });
});

describe("where a key is needed", () => {
  const open = () =>
    createApp({
      llm: server.llm,
      options: { apiKeys: ["sk-1"], servedModelNames: ["mine"], logRequests: false },
    });

  test("the page without one tells no more than /health", async () => {
    for (const authorization of [undefined, "Bearer wrong"]) {
      const headers = { ...HTML, ...(authorization && { Authorization: authorization }) };
      const reply = await open().request("/", { headers });
      const page = await reply.text();
      expect([reply.status, page]).toEqual([200, expect.stringContaining("Requests need a key")]);
      for (const secret of ["mine", "tiny", version, "cpu", "float32", "1024"])
        expect(page).not.toContain(secret);
    }
    expect((await errorOf(open().request("/"))).status).toBe(401);
  });

  test("with it, all", async () => {
    const reply = await open().request("/", { headers: { ...HTML, Authorization: "Bearer sk-1" } });
    expect(await reply.text()).toContain("mine");
  });
});

test("while the server stops the page says so", async () => {
  await using stopping = await TestServer.start();
  await stopping.running.stop();
  const app = createApp({ llm: stopping.llm, options: { logRequests: false } });
  await stopping.llm.dispose();
  const page = await (await app.request("/", { headers: HTML })).text();
  expect(page).toContain("the engine has stopped.");
});
