import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { temporaryFolder } from "../support.ts";
import { HubServer } from "../unit/loader/hub-server.ts";
import { expectRefusal, octavo } from "./support.ts";

setDefaultTimeout(300_000);

const FILES = { "config.json": Buffer.from("{}"), "model.safetensors": Buffer.alloc(5000, 1) };

test("models that were pulled are listed, and can be removed", async () => {
  using hub = new HubServer("org/model", FILES);
  using folder = temporaryFolder();
  const env = {
    HF_ENDPOINT: hub.endpoint,
    HF_HUB_CACHE: folder.file("hub"),
    HF_TOKEN: "",
    HF_HUB_OFFLINE: "",
  };
  const empty = await octavo(["list"], { env });
  expect([empty.code, empty.stdout]).toEqual([
    0,
    expect.stringMatching(/^NAME .*\ntiny-stories +part of Octavo\n$/),
  ]);
  expect(empty.stderr).toContain("octavo pull");

  await octavo(["pull", "org/model"], { env });
  mkdirSync(folder.file("hub/models--org--begun/blobs"), { recursive: true });
  writeFileSync(folder.file("hub/models--org--begun/blobs/x.incomplete"), new Uint8Array(2048));
  const { code, stdout, stderr } = await octavo(["ls"], { env });
  expect([code, stderr]).toEqual([0, ""]);
  expect(stdout.split("\n").slice(2)).toEqual([
    expect.stringMatching(
      /^org\/begun +2 KiB +20\d\d-\d\d-\d\d \d\d:\d\d +incomplete, a file of it so far 2 KiB: octavo pull org\/begun$/,
    ),
    expect.stringMatching(/^org\/model +4.9 KiB +20\d\d-\d\d-\d\d \d\d:\d\d +complete$/),
    "",
  ]);
  expect((await octavo(["list", "--quiet"], { env })).stdout).toBe("tiny-stories\norg/model\n");
  const { models } = JSON.parse((await octavo(["list", "--json"], { env })).stdout);
  expect(models).toMatchObject([
    { id: "org/begun", snapshots: [] },
    { id: "org/model", bytes: 5042 },
  ]);

  expectRefusal(await octavo(["rm", "org/model", "../hub"], { env }), 66, '"../hub" is no Hugging Face id');
  expectRefusal(await octavo(["rm", "tiny-stories"], { env }), 64, "part of Octavo");
  expectRefusal(await octavo(["rm"], { env }), 64, "models");
  const removed = await octavo(["rm", "org/model", "org/begun"], { env });
  expect(removed).toEqual({
    code: 0,
    stderr: "",
    stdout: "Removed org/model, 4.9 KiB\nRemoved org/begun, 2 KiB\n",
  });
  expect(readdirSync(folder.file("hub"))).toEqual([]);
  expectRefusal(await octavo(["rm", "org/model"], { env }), 66, "org/model is not in");
});
