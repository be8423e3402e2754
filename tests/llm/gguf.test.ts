import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describeWeights } from "../../src/base/weight-summary.ts";
import { LLM, ModelDataError } from "../../src/index.ts";
import { StoredScheme } from "../../src/layers/schemes/stored-scheme.ts";
import { inspectModel } from "../../src/llm/inspect-model.ts";
import { Checkpoint } from "../../src/loader/checkpoint.ts";
import { directoryOf } from "../../src/loader/tensor-directory.ts";
import { readModelConfig } from "../../src/models/config.ts";
import { defineModel } from "../../src/models/registry.ts";
import { writeGgufModel, writeSplitGgufModel } from "../gguf-model.ts";
import { gguf } from "../gguf-writer.ts";
import { fixture } from "../model/fixtures.ts";
import { temporaryFolder } from "../support.ts";
import { GREEDY, only, PROMPT, rejection, SMALL } from "./support.ts";

setDefaultTimeout(300_000);

const EMBEDDED = join(import.meta.dir, "../../models/tiny-stories");
const CHAT = [{ role: "user", content: "Tell me of a cat" }];

describe("a GGUF file", () => {
  test("of the embedded model writes what its folder does; so do a folder that holds it alone, and parts of it", async () => {
    using folder = temporaryFolder();
    mkdirSync(folder.file("model"));
    const path = folder.file("model/tiny.gguf");
    writeGgufModel(EMBEDDED, path);
    const split = writeSplitGgufModel(EMBEDDED, folder.path);
    await using expected = await LLM.create(EMBEDDED, SMALL);
    for (const model of [path, folder.file("model"), split]) {
      await using llm = await LLM.create(model, SMALL);
      expect(llm.model).toBe(model);
      const [story, wanted] = [await llm.generate(PROMPT, GREEDY), await expected.generate(PROMPT, GREEDY)];
      expect(only(story).text).toBe(only(wanted).text);
      const [reply, told] = [await llm.chat(CHAT, GREEDY), await expected.chat(CHAT, GREEDY)];
      expect(reply[0]!.promptTokenIds).toEqual(told[0]!.promptTokenIds);
      expect(reply[0]!.outputs[0]!.text).toBe(told[0]!.outputs[0]!.text);
    }
  });

  test("of blocks generates text through its own tokenizer and template", async () => {
    await using llm = await LLM.create(fixture("gguf-llama").modelDir, { ...SMALL, device: "cpu" });
    const [output] = await llm.chat([{ role: "user", content: "then" }], { maxTokens: 4, temperature: 0 });
    const prompt = llm.tokenizer!.decode([...output!.promptTokenIds], { skipSpecialTokens: false });
    expect(prompt).toBe("<|im_start|>user\nthen<|im_end|>\n<|im_start|>assistant\n");
    expect(output!.promptTokenIds).toContain(llm.tokenizer!.tokenToId("the")!);
    expect(output!.outputs[0]!.tokenIds.length).toBeGreaterThan(0);
  });

  test.each(["gguf-llama", "gguf-qwen3", "gguf-qwen2"] as const)("ranks share %s", async (name) => {
    const options = {
      device: "cpu",
      skipTokenizerInit: true,
      maxModelLen: 64,
      quantization: "gguf",
    } as const;
    const model = fixture(name).modelDir;
    const prompt = { promptTokenIds: [3, 1, 4, 1, 5, 9, 2, 6] };
    await using alone = await LLM.create(model, options);
    await using ranks = await LLM.create(model, { ...options, tensorParallelSize: 2 });
    const params = { temperature: 0, maxTokens: 16, ignoreEos: true };
    const tokens = async (llm: LLM) => only(await llm.generate(prompt, params)).tokenIds;
    expect(await tokens(ranks)).toEqual(await tokens(alone));
  });

  test("whose embedding is the LM head, too, has that in codes besides on CPUs", async () => {
    const model = fixture("gguf-qwen3").modelDir;
    const config = readModelConfig(model);
    using checkpoint = Checkpoint.open(model);
    const matrices = (headCodes: boolean) =>
      defineModel(config, { scheme: new StoredScheme(directoryOf(checkpoint), { headCodes }) }).matrices;
    const [withHead, without] = [matrices(true), matrices(false)];
    expect(withHead.length).toBe(without.length + 1);
    expect(withHead.at(-1)).toMatchObject({ format: "superblocks", shape: [384, 256] });
    await using llm = await LLM.create(model, { ...SMALL, device: "cpu" });
    expect(llm.weights.bytes).toBe((await inspectModel(model)).cpuBytes);
  });

  test("is not quantised once more", async () => {
    const loading = LLM.create(fixture("gguf-llama").modelDir, { ...SMALL, quantization: "fp8" });
    expect(((await rejection(loading)) as Error).message).toContain("this one is quantised already (gguf)");
  });

  test("in floats is quantised while it is loaded, on any number of ranks; its LM head stays as it is", async () => {
    using folder = temporaryFolder();
    const path = folder.file("tiny.gguf");
    writeGgufModel(EMBEDDED, path);
    const options = { ...SMALL, device: "cpu", quantization: "fp8" } as const;
    for (const more of [{}, { tensorParallelSize: 2 }, { loadFormat: "dummy" }] as const) {
      await using llm = await LLM.create(path, { ...options, ...more });
      expect(llm.weights.format).toBe("fp8 by channels");
    }
    await using folded = await LLM.create(EMBEDDED, options);
    await using llm = await LLM.create(path, options);
    expect(await llm.logits([5, 9, 2])).toEqual(await folded.logits([5, 9, 2]));
    const other = LLM.create(path, { ...options, quantization: "awq" });
    expect(((await rejection(other)) as Error).message).toContain("this one is in floats");
  });

  test("tells which blocks become floats, and their bytes", async () => {
    const model = fixture("gguf-llama").modelDir;
    using checkpoint = Checkpoint.open(model);
    const all = [...checkpoint.tensors.values()].filter(({ dtype }) => dtype === "Q4_1");
    const elements = all.reduce((sum, { shape: [rows, columns] }) => sum + rows! * columns!, 0);
    expect(elements).toBeGreaterThan(0);
    await using llm = await LLM.create(model, { ...SMALL, device: "cpu" });
    const { types, bytes } = llm.weights.widened!;
    expect(types.split(", ")).toContain("Q4_1");
    expect(bytes).toBeGreaterThanOrEqual(4 * elements);
    expect(bytes).toBeLessThan(llm.weights.bytes);
    expect(describeWeights(llm.weights)).toContain(`of them are floats, of the file's ${types}`);
    expect((await inspectModel(model)).weights.widened).toEqual({ types, bytes: bytes / 2 });
    expect((await inspectModel(EMBEDDED)).weights.widened).toBeUndefined();
  });

  test("makes random weights of its sizes", async () => {
    const options = { ...SMALL, loadFormat: "dummy" } as const;
    await using llm = await LLM.create(fixture("gguf-qwen2").modelDir, options);
    expect(only(await llm.generate({ promptTokenIds: [1, 2] }, GREEDY)).tokenIds.length).toBeGreaterThan(0);
  });

  test("that is cut off, of another model, or no model is refused by name", async () => {
    using folder = temporaryFolder();
    const path = folder.file("tiny.gguf");
    writeGgufModel(EMBEDDED, path);
    truncateSync(path, 700_000);
    const cut = await rejection(LLM.create(path, SMALL));
    expect(cut).toBeInstanceOf(ModelDataError);
    expect((cut as Error).message).toMatch(
      /tiny\.gguf: tensor ".+" ends at byte \d+, but the file has 700000/,
    );
    writeFileSync(path, gguf({ metadata: { "general.architecture": "bert" } }));
    expect((await rejection(LLM.create(path, SMALL))) as Error).toMatchObject({ code: "unsupported_model" });
    writeGgufModel(EMBEDDED, path, { "tokenizer.ggml.pre": "mystery" });
    const unknown = (await rejection(LLM.create(path, SMALL))) as Error;
    expect(unknown.message).toContain('tokenizer.ggml.pre = "mystery" is not supported');
    await using bare = await LLM.create(path, { ...SMALL, skipTokenizerInit: true });
    expect(bare.tokenizer).toBeUndefined();
  });
});
