import { expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { temporaryFolder } from "../support.ts";
import { HubServer } from "../unit/loader/hub-server.ts";
import { expectRefusal, octavo } from "./support.ts";

setDefaultTimeout(300_000);

const FILES = { "config.json": Buffer.from("{}"), "model.safetensors": Buffer.alloc(5000, 1) };

function environment(hub: HubServer, cache: string) {
  return { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: cache, HF_TOKEN: "", HF_HUB_OFFLINE: "" };
}

test("downloads a model and prints its folder; offline it is there", async () => {
  using hub = new HubServer("org/model", FILES);
  using folder = temporaryFolder();
  const env = environment(hub, folder.path);
  const first = await octavo(["pull", "org/model"], { env });
  expect([first.code, first.stderr]).toEqual([0, ""]);
  const path = first.stdout.trim();
  expect(path).toStartWith(folder.path);
  for (const name of Object.keys(FILES)) expect(existsSync(join(path, name))).toBe(true);
  expect(await octavo(["pull", "org/model"], { env: { ...env, HF_HUB_OFFLINE: "1" } })).toEqual(first);
});

test("--download-dir", async () => {
  using hub = new HubServer("org/model", FILES);
  using folder = temporaryFolder();
  const args = ["pull", "org/model", "--download-dir", folder.file("models")];
  const { code, stdout } = await octavo(args, { env: environment(hub, folder.path) });
  expect([code, stdout]).toEqual([0, expect.stringContaining(folder.file("models"))]);
});

test("of several models those that exist arrive; each other one gets a line", async () => {
  using hub = new HubServer("org/model", FILES);
  using folder = temporaryFolder();
  const args = ["pull", "org/absent", "org/model", "not-an-id"];
  const { code, stdout, stderr } = await octavo(args, { env: environment(hub, folder.path) });
  expect(code).toBe(66);
  expect(stdout.trim().split("\n")).toHaveLength(1);
  expect(existsSync(join(stdout.trim(), "model.safetensors"))).toBe(true);
  expect(stderr.trim().split("\n").sort()).toEqual([
    expect.stringContaining('"not-an-id"'),
    expect.stringMatching(/^octavo: .*org\/absent.*HTTP 404/),
  ]);
});

test("a gated model, and one that is missing offline, end with 66 and one line", async () => {
  using hub = new HubServer("org/model", FILES);
  using folder = temporaryFolder();
  const env = environment(hub, folder.path);
  expectRefusal(await octavo(["pull", "org/model"], { env: { ...env, HF_HUB_OFFLINE: "1" } }), 66, "offline");
  hub.refuseWith = 403;
  expectRefusal(await octavo(["pull", "org/model"], { env }), 66, "gated", "HF_TOKEN");
});
