import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { temporaryFolder } from "../support.ts";
import { expectRefusal, octavo } from "./support.ts";

setDefaultTimeout(300_000);

test("shows versions, libraries with their remedies, devices and folders", async () => {
  using folder = temporaryFolder();
  const env = { HF_HUB_CACHE: folder.file("hub"), OCTAVO_CACHE_DIR: folder.file("octavo") };
  const { code, stdout, stderr } = await octavo(["doctor"], { env });
  expect([code, stderr]).toEqual([0, ""]);
  expect(stdout).toContain(`Bun ${Bun.version}`);
  for (const part of [
    "driver",
    "nvrtc",
    "cublasLt",
    "nccl",
    folder.file("hub"),
    folder.file("octavo/kernels"),
  ])
    expect(stdout).toContain(part);
  expect(stdout).toMatch(/GPUs +none/);
  expect(stdout).toMatch(/cpu +(1 thread reads|([2-9]|\d\d+) threads read) memory at [\d.]+ GB\/s/);
  expect(stdout).toMatch(/tokens\/s at most; products are computed with (AVX-512|AVX2|WebAssembly)/);
  expect(stdout).toMatch(/auto +cpu, because no GPU was found/);
});

test("--json holds the same; --device cuda fails without a GPU, after the report", async () => {
  const result = await octavo(["doctor", "--json", "--device", "cuda"]);
  expectRefusal(result, 69);
  const report = JSON.parse(result.stdout);
  expect(report).toMatchObject({ bun: Bun.version, auto: { device: "cpu" }, cuda: { gpus: [] } });
  expect(report.cuda.libraries.map(({ name }: { name: string }) => name)).toEqual([
    "cuda",
    "nvrtc",
    "cublasLt",
    "nccl",
  ]);
  expect(result.stderr).toContain(report.cuda.problem);
});

test("looks at a model folder without loading it", async () => {
  const folder = join(import.meta.dir, "../model/fixtures/quantised-awq");
  const { code, stdout } = await octavo(["doctor", "--model", folder]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/weights +212 KiB in int4 in groups of 64 with zero points, bfloat16/);
  expect(stdout).toMatch(/model +Qwen3ForCausalLM: Qwen 3\n/);
  expect(stdout).toMatch(/context +1024 tokens, each \d+ bytes of KV cache on a GPU/);
  expect(stdout).toMatch(/cpu +runs: weights of/);
  expect(stdout).toMatch(/cuda +a GPU of 24 GiB runs it, with room for about \d+ tokens/);
  expect(stdout).toMatch(/text +no: .*tokenizer.json/);
  const report = JSON.parse((await octavo(["doctor", folder, "--json"])).stdout);
  expect(report.model).toMatchObject({
    path: folder,
    weights: { bytes: expect.any(Number) },
    maxTokens: 1024,
  });
  expectRefusal(await octavo(["doctor", "./no/such/folder"]), 66, "no/such/folder");
});

test("says why a model would not run", async () => {
  using folder = temporaryFolder();
  writeFileSync(folder.file("config.json"), '{"architectures": ["MambaForCausalLM"]}');
  const result = await octavo(["doctor", folder.path]);
  expect(result.stdout).toMatch(/runs +no: .*MambaForCausalLM/);
  expect(result.code).not.toBe(0);
  expect(result.stderr).toContain("architecture MambaForCausalLM is not supported");
});

test("expects of a CPU what the options and the environment leave of it", async () => {
  const env = { OCTAVO_DEVICE: "cpu-reference", OCTAVO_CPU_KERNELS: "wasm" };
  const { code, stdout } = await octavo(["doctor", "--threads", "1"], { env });
  expect(code).toBe(0);
  expect(stdout.replaceAll(/\s+/g, " ")).toMatch(
    /cpu 1 thread reads memory at .* products are computed with WebAssembly cuda/,
  );
});

test("refuses another device, and what the engine would refuse", async () => {
  expectRefusal(await octavo(["doctor", "--device", "tpu"]), 64, "tpu");
  expectRefusal(await octavo(["doctor", "--threads", "0"]), 64, "--threads must be an integer");
  expectRefusal(await octavo(["doctor", "--cpu-kernels", "sse"]), 64, "--cpu-kernels must be one of");
});
