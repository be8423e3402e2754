import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import built from "../../src/server/built-page.json";
import { createApp } from "../../src/server/serve.ts";
import { errorOf, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

/** What browsers send. */
const HTML = { Accept: "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8" };

test("a browser gets the page at / and at /ui, and its files beside it", async () => {
  for (const path of ["/", "/ui"]) {
    const reply = await server.fetch(path, { headers: HTML });
    expect([reply.status, reply.headers.get("content-type")]).toEqual([200, "text/html; charset=utf-8"]);
    const page = await reply.text();
    expect(page).toBe(built["index.html"]);
    const links = [...page.matchAll(/(?:href|src)="([^"]+)"/g)].map(([, link]) => link!);
    expect(links).toContain("ui/page.js");
    for (const link of links)
      expect((await server.fetch(new URL(link, new URL(path, "http://host")).pathname)).status).toBe(200);
    expect((await server.fetch(path, { method: "HEAD", headers: HTML })).status).toBe(200);
  }
  const redirect = await server.fetch("/ui/", { redirect: "manual" });
  expect([redirect.status, redirect.headers.get("location")]).toEqual([308, "../ui"]);
});

test("its policy allows this server alone, no script but its own, and no HTML made of text", async () => {
  for (const path of ["/", "/ui/page.js", "/ui/page.css"]) {
    const { headers } = await server.fetch(path, { headers: HTML });
    const policy = headers.get("content-security-policy")!.split("; ");
    for (const directive of [
      ...["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"],
      ...["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"],
      "require-trusted-types-for 'script'",
    ])
      expect(policy).toContain(directive);
    expect(policy.join()).not.toMatch(/unsafe|https?:|\*/);
    expect(headers.get("x-content-type-options")).toBe("nosniff");
  }
  expect(built["index.html"]).not.toMatch(/<style|\son\w+=|\sstyle=|https?:/i);
  expect(built["page.css"]).not.toMatch(/url\(|@import/);
});

test("its files are compressed for those who take that, and not sent again to those who have them", async () => {
  const ask = (headers: Record<string, string>) =>
    server.fetch("/ui/page.js", { headers, decompress: false } as RequestInit);
  const zipped = await ask({ "Accept-Encoding": "gzip, br" });
  expect(zipped.headers.get("content-encoding")).toBe("gzip");
  expect(new TextDecoder().decode(Bun.gunzipSync(new Uint8Array(await zipped.arrayBuffer())))).toBe(
    built["page.js"],
  );
  const plain = await ask({ "Accept-Encoding": "identity" });
  expect(plain.headers.get("content-encoding")).toBeNull();
  expect(await plain.text()).toBe(built["page.js"]);
  const again = await ask({ "If-None-Match": plain.headers.get("etag")! });
  expect([again.status, await again.text()]).toEqual([304, ""]);
});

test("clients that do not ask for HTML get at / what any unknown path gets", async () => {
  for (const headers of [{}, { Accept: "*/*" }, { Accept: "application/json" }])
    expect(await errorOf(server.fetch("/", { headers }))).toMatchObject({ status: 404, code: "not_found" });
  expect(await errorOf(server.fetch("/", { method: "POST", headers: HTML }))).toMatchObject({ status: 404 });
  expect(await errorOf(server.fetch("/ui", { method: "POST" }))).toMatchObject({ status: 405 });
});

describe("where a key is needed", () => {
  const open = () =>
    createApp({
      llm: server.llm,
      options: { apiKeys: ["sk-1"], servedModelNames: ["mine"], logRequests: false },
    });

  test("the page comes without one, is the same for all, and all that it could show needs the key", async () => {
    const app = open();
    for (const path of ["/", "/ui"]) {
      const reply = await app.request(path, { headers: HTML });
      expect([reply.status, await reply.text()]).toEqual([200, built["index.html"]]);
    }
    for (const path of ["/v1/models", "/engine", "/metrics", "/openapi.json"]) {
      expect((await errorOf(app.request(path))).status).toBe(401);
      const reply = await app.request(path, { headers: { Authorization: "Bearer sk-1" } });
      expect(reply.status).toBe(200);
      await reply.body?.cancel();
    }
  });
});
