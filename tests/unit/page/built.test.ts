import { expect, setDefaultTimeout, test } from "bun:test";
import { buildPage } from "../../../.ci/page.ts";
import built from "../../../src/server/built-page.json";

setDefaultTimeout(300_000);

test("src/server/built-page.json is what its sources make: `bun run build:page`", async () => {
  const made = await buildPage();
  expect(Object.keys(built)).toEqual(Object.keys(made));
  for (const [name, text] of Object.entries(made))
    expect(Bun.hash(built[name as keyof typeof built]), name).toBe(Bun.hash(text));
});
