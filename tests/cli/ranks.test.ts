import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { gpuCount } from "../../src/cuda/open-cuda.ts";
import { expectRefusal, modelCopy, octavo, serve, textOf } from "./support.ts";

setDefaultTimeout(300_000);

/** Two ranks, of which the one in a Worker fails in that manner at that step. */
function spoiled(manner: string, step: number) {
  const env = { OCTAVO_SPOIL: manner, OCTAVO_SPOIL_AT: String(step) };
  return { preload: join(import.meta.dir, "spoil-rank.ts"), env };
}

const GENERATE = ["generate", "-tp", "2", "--temperature", "0", "--max-tokens", "8", "Once upon a time"];

test("ranks write what one would", async () => {
  const { code, stdout, stderr } = await octavo(GENERATE);
  expect([code, stderr]).toEqual([0, expect.any(String)]);
  expect(stdout).toContain("Once upon a time, there was a little girl");
});

test.each([
  ["throw", "rank 1 failed: out of everything"],
  ["exit", "rank 1 failed: its thread ended with code 9"],
])("generate: a rank that dies by %s ends the process with 70", async (manner, reason) => {
  expectRefusal(await octavo(GENERATE, spoiled(manner, 4)), 70, reason);
});

describe("what ranks cannot load is refused as one refuses it", () => {
  test("weights", async () => {
    using folder = modelCopy({ weights: (file) => file.subarray(0, 1_000_000) });
    expectRefusal(await octavo([...GENERATE, "--model", folder.path]), 65, "model.safetensors");
  });

  test("a context that does not fit", async () => {
    const args = ["--kv-cache-memory-bytes", "1M", "--max-model-len", "1k"];
    expectRefusal(await octavo([...GENERATE, ...args]), 64, "raise --kv-cache-memory-bytes");
  });

  test("what one rank alone has no room for", async () => {
    expectRefusal(await octavo(GENERATE, spoiled("refuse", 0)), 69, "there is no room on this device");
  });

  test("a dtype, or GPUs", async () => {
    expectRefusal(await octavo([...GENERATE, "--dtype", "bfloat16"]), 64, "--device cuda");
    if (gpuCount() < 2) expectRefusal(await octavo([...GENERATE, "--device", "cuda"]), 69, "GPU");
  });
});

test("ranks keep no process alive: with a model that is not disposed of, one that was, and one that did not start", async () => {
  const script = `
    import { LLM } from "octavo";
    const options = { device: "cpu", loadFormat: "dummy", tensorParallelSize: 2, kvCacheMemoryBytes: 2 ** 24 };
    await LLM.create(undefined, { ...options, tensorParallelSize: 4, maxModelLen: 1024, kvCacheMemoryBytes: 2 ** 10 })
      .catch(({ name }) => console.log(name));
    const [one, other] = [await LLM.create(undefined, options), await LLM.create(undefined, options)];
    const [{ outputs }] = await one.generate("Once", { maxTokens: 4, ignoreEos: true });
    one.dispose();
    console.log(outputs[0].tokenIds.length);`;
  const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", timeout: 100_000 });
  expect(await new Response(child.stdout).text()).toBe("ConfigError\n4\n");
  expect(await child.exited).toBe(0);
});

describe("serve", () => {
  const LONG = { prompt: "Once upon a time", max_tokens: 300, ignore_eos: true };

  test.each(["throw", "exit"])(
    "a rank that dies by %s in mid-stream: all clients are told, the process ends",
    async (manner) => {
      using server = await serve(["-tp", "2"], spoiled(manner, 30));
      expect(server.banner).toContain("on 2 × cpu");
      const streams = await Promise.all([1, 2].map(() => server.complete({ ...LONG, stream: true })));
      const whole = server.complete(LONG);
      for (const stream of streams) {
        let received = "";
        for await (const part of textOf(stream.body!)) received += part;
        expect(received).toContain('data: {"id"');
        const last = received.trim().split("\n\n").at(-1)!;
        expect(JSON.parse(last.replace(/^data: /, ""))).toMatchObject({
          error: { type: "server_error", code: "engine_dead" },
        });
        expect(received).not.toContain("[DONE]");
      }
      expect((await whole).status).toBeGreaterThanOrEqual(500);
      expect(await server.child.exited).toBe(70);
      expect(await server.log()).toContain("octavo: rank 1 failed: ");
    },
  );

  test("a rank that dies while nothing is to do ends the process, too", async () => {
    using server = await serve(["-tp", "2"], spoiled("exit when idle", 3));
    expect((await server.complete({ ...LONG, max_tokens: 3 })).status).toBe(200);
    expect(await server.child.exited).toBe(70);
    expect(await server.log()).toContain("octavo: rank 1 failed: its thread ended with code 9");
  });
});
