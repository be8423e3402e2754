import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { temporaryFolder } from "../support.ts";
import { HubServer } from "../unit/loader/hub-server.ts";
import { expectRefusal, MODEL, modelCopy, octavo } from "./support.ts";

setDefaultTimeout(300_000);

test("inspect model tells what a model is, or why it cannot be loaded", async () => {
  const { code, stdout, stderr } = await octavo(["inspect", "model", MODEL]);
  expect([code, stderr]).toEqual([0, ""]);
  for (const part of ["Qwen3ForCausalLM", "11 MiB in bfloat16", "1024 tokens, each 3 KiB"])
    expect(stdout).toContain(part);
  const { path } = JSON.parse((await octavo(["inspect", "model", "--json"])).stdout);
  expect(path).toBe("tiny-stories");
  using broken = modelCopy({ config: (config) => ({ ...config, hidden_size: 7 }) });
  const failed = await octavo(["inspect", "model", broken.path]);
  expect([failed.code, failed.stdout]).toEqual([65, expect.stringMatching(/runs +no: /)]);
  using folder = temporaryFolder();
  const env = { HF_HUB_CACHE: folder.path, HF_HUB_OFFLINE: "1" };
  expectRefusal(
    await octavo(["inspect", "model", "org/absent"], { env }),
    66,
    "org/absent",
    "HF_HUB_OFFLINE",
  );
  expectRefusal(await octavo(["inspect", "model", "./no/such"], { env }), 66, "./no/such");
});

test("inspect gpu tells the GPUs and libraries", async () => {
  const { code, stdout } = await octavo(["inspect", "gpu"]);
  expect([code, stdout]).toEqual([
    0,
    expect.stringMatching(/driver .*\n +GPUs +none\n[\s\S]*nvrtc[\s\S]*cuda +not usable: /),
  ]);
  const found = JSON.parse((await octavo(["inspect", "gpu", "--json"])).stdout);
  expect(found).toMatchObject({ gpus: [], problem: expect.any(String) });
});

test("inspect estimate counts GPUs, weights and context", async () => {
  const estimate = async (...args: string[]) =>
    JSON.parse((await octavo(["inspect", "estimate", ...args, "--json"])).stdout);
  const plain = await estimate(MODEL, "--memory", "1G", "--memory", "24G", "--max-model-len", "100");
  expect(plain).toMatchObject({ model: MODEL, kvBytesPerToken: 3072, sequenceTokens: 100 });
  expect(plain.gpus.map(({ bytes }: { bytes: number }) => bytes)).toEqual([2 ** 30, 24 * 2 ** 30]);
  const { ranks, kvTokens, sequences } = plain.gpus[0];
  expect([ranks, sequences]).toEqual([1, Math.floor(kvTokens / 100)]);
  const small = await estimate(MODEL, "--memory", "1G", "--quantization", "fp8", "--kv-cache-dtype", "fp8");
  expect(small.kvBytesPerToken).toBe(1536);
  expect(small.weights.bytes).toBeLessThan(plain.weights.bytes);
  const several = await octavo(["inspect", "estimate", MODEL, "--memory", "1G", "-tp", "2"]);
  expect(several.stdout).toMatch(/a GPU of 1 GiB .*2 do \(--tensor-parallel-size 2\)/);
  const quantised = join(import.meta.dir, "../model/fixtures/quantised-awq");
  expectRefusal(
    await octavo(["inspect", "estimate", quantised, "--quantization", "fp8"]),
    64,
    "--quantization fp8",
  );
  expectRefusal(await octavo(["inspect", "estimate", MODEL, "--memory", "much"]), 64, "much");
});

test("of a model that is not here the hub is asked for all but the weights", async () => {
  const files = Object.fromEntries(readdirSync(MODEL).map((name) => [name, readFileSync(join(MODEL, name))]));
  using hub = new HubServer("org/model", files);
  using folder = temporaryFolder();
  const env = {
    HF_ENDPOINT: hub.endpoint,
    HF_HUB_CACHE: folder.path,
    HF_TOKEN: "",
    HF_HUB_OFFLINE: "",
    TMPDIR: folder.path,
  };
  const { code, stdout, stderr } = await octavo(["inspect", "estimate", "org/model"], { env });
  expect([code, stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(/model +org\/model\n +weights +11 MiB in bfloat16\n/);
  expect(readdirSync(folder.path)).toEqual([]);
  expectRefusal(await octavo(["doctor", "org/model"], { env }), 66, "octavo pull org/model");
});
