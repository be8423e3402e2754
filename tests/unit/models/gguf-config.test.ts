import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { type ModelConfig, readModelConfig } from "../../../src/models/config.ts";
import { readGenerationConfig } from "../../../src/models/generation-config.ts";
import { f32, floats, gguf, type TensorInput, type Value } from "../../gguf-writer.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

/** A tensor that is there; nothing of it is read. */
const tensor = (...shape: number[]): TensorInput =>
  floats(shape, new Float32Array(shape.reduce((a, b) => a * b)));

interface Changes {
  readonly metadata?: Record<string, Value | undefined>;
  readonly tensors?: Record<string, TensorInput | undefined>;
}

const BASE: Record<string, Value> = {
  "general.architecture": "llama",
  "llama.block_count": 2,
  "llama.context_length": 4096,
  "llama.embedding_length": 64,
  "llama.feed_forward_length": 96,
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
  "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
  "tokenizer.ggml.tokens": ["a", "<|im_end|>", "<|eot_id|>", "b", "c"],
  "tokenizer.ggml.eos_token_id": 3,
};

function file({ metadata = {}, tensors = {} }: Changes) {
  const folder = temporaryFolder();
  const path = folder.file("model.gguf");
  const given = <T>(values: Record<string, T | undefined>) =>
    Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Record<
      string,
      T
    >;
  const all = { "token_embd.weight": tensor(8, 64), "output.weight": tensor(8, 64), ...tensors };
  writeFileSync(path, gguf({ metadata: given({ ...BASE, ...metadata }), tensors: given(all) }));
  return { path, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

function read(changes: Changes = {}): ModelConfig {
  using model = file(changes);
  return readModelConfig(model.path);
}

const of = (architecture: string): Record<string, Value | undefined> => ({
  ...Object.fromEntries(
    Object.entries(BASE).flatMap(([key, value]) =>
      key.startsWith("llama.")
        ? [
            [key, undefined],
            [key.replace("llama", architecture), value],
          ]
        : [],
    ),
  ),
  "general.architecture": architecture,
});

describe("the configuration of a GGUF file", () => {
  test("is that of its metadata and tensors", () => {
    const config = read();
    expect(config).toMatchObject({
      ...{ architecture: "LlamaForCausalLM", vocabSize: 8, hiddenSize: 64, intermediateSize: 96 },
      ...{ numLayers: 2, numHeads: 4, numKvHeads: 2, headDim: 16, activation: "silu" },
      ...{ maxPositionEmbeddings: 4096, tieWordEmbeddings: false, attentionBias: false, mlpBias: false },
      ...{ layerWindows: [0, 0], dtype: undefined },
      layerRopes: Array(2).fill({ theta: 10_000, partialRotaryFactor: 1, scaling: { kind: "none" } }),
    });
    expect(config.rmsNormEps).toBeCloseTo(1e-5, 9);
    expect(read({ tensors: { "output.weight": undefined } }).tieWordEmbeddings).toBe(true);
    expect(read({ tensors: { "blk.0.attn_q.bias": tensor(64) } }).attentionBias).toBe(true);
    expect(read({ tensors: { "blk.0.ffn_gate.bias": tensor(96) } }).mlpBias).toBe(true);
    expect(read({ metadata: { "llama.attention.head_count_kv": undefined } }).numKvHeads).toBe(4);
    expect(read({ metadata: { "llama.rope.freq_base": f32(5e5) } }).layerRopes[0]!.theta).toBe(5e5);
    const part = read({ metadata: { ...of("qwen2"), "qwen2.rope.dimension_count": 8 } });
    expect(part.layerRopes[0]!.partialRotaryFactor).toBe(0.5);
    const wide = { "llama.attention.key_length": 32, "llama.attention.value_length": 32 };
    expect(read({ metadata: wide }).headDim).toBe(32);
  });

  test.each([
    ["qwen2", "Qwen2ForCausalLM"],
    ["qwen3", "Qwen3ForCausalLM"],
  ] as const)("%s", (name, architecture) => {
    const config = read({ metadata: of(name) });
    expect(config).toMatchObject({ architecture, hiddenSize: 64, headDim: 16, layerWindows: [0, 0] });
    const withoutKeys = { ...of(name), [`${name}.attention.head_count_kv`]: undefined };
    expect(read({ metadata: withoutKeys }).numKvHeads).toBe(4);
  });

  test("ends of sequences: what the file names, and tokens that are known to be some", () => {
    expect(read().eosTokenIds).toEqual([3, 1, 2]);
    const eot = { "tokenizer.ggml.eot_token_id": 4, "tokenizer.ggml.eom_token_id": 2 ** 32 - 1 };
    expect(read({ metadata: eot }).eosTokenIds).toEqual([3, 4, 1, 2]);
    const none = { "tokenizer.ggml.eos_token_id": undefined, "tokenizer.ggml.tokens": undefined };
    expect(read({ metadata: none }).eosTokenIds).toEqual([]);
  });

  test("frequencies: linear, YaRN, and factors for each", () => {
    const scaling = (entries: Record<string, Value>, tensors: Changes["tensors"] = {}) => {
      const metadata = Object.fromEntries(Object.entries(entries).map(([k, v]) => [`llama.rope.${k}`, v]));
      return read({ metadata, tensors }).layerRopes[0]!.scaling;
    };
    const linear = { kind: "linear", factor: 4 } as const;
    expect(scaling({ "scaling.type": "linear", "scaling.factor": f32(4) })).toEqual(linear);
    expect(scaling({ scale_linear: f32(4) })).toEqual(linear);
    expect(scaling({ "scaling.type": "none" })).toEqual({ kind: "none" });
    const yarn = {
      "scaling.type": "yarn",
      "scaling.factor": f32(4),
      "scaling.original_context_length": 1024,
    };
    expect(scaling(yarn)).toMatchObject({
      ...{ kind: "yarn", factor: 4, betaFast: 32, betaSlow: 1, originalMaxPositionEmbeddings: 1024 },
      attentionFactor: 0.1 * Math.log(4) + 1,
    });
    const cooler = { ...yarn, "scaling.attn_factor": f32(0.5), "scaling.yarn_beta_fast": f32(16) };
    expect(scaling(cooler)).toMatchObject({ betaFast: 16, attentionFactor: 0.5 * (0.1 * Math.log(4) + 1) });
    const factors = [1, 1, 1, 2, 4, 8, 8, 8];
    const tensors = { "rope_freqs.weight": floats([8], factors) };
    expect(scaling({}, tensors)).toEqual({ kind: "factors", factors });
  });

  test("recommended sampling", () => {
    using plain = file({});
    const config = readModelConfig(plain.path);
    expect(readGenerationConfig(plain.path, config)).toEqual({ eosTokenIds: [3, 1, 2], sampling: {} });
    using sampled = file({
      metadata: { "general.sampling.temp": f32(0.5), "general.sampling.top_k": { type: "i32", value: 20 } },
    });
    expect(readGenerationConfig(sampled.path, config).sampling).toEqual({ temperature: 0.5, topK: 20 });
    using wrong = file({ metadata: { "general.sampling.top_p": f32(2) } });
    expect(() => readGenerationConfig(wrong.path, config)).toThrow(
      "general.sampling.top_p must be a number from",
    );
  });
});

describe("a configuration that cannot be is refused", () => {
  const heads = "llama.attention.head_count";
  test.each<[what: string, changes: Changes, message: string]>([
    [
      "no architecture",
      { metadata: { "general.architecture": undefined } },
      "general.architecture must be a name",
    ],
    ["an architecture of 3", { metadata: { "general.architecture": 3 } }, "must be a string, not 3"],
    [
      "no layers given",
      { metadata: { "llama.block_count": undefined } },
      "llama.block_count must be a number, it is",
    ],
    [
      "no layers",
      { metadata: { "llama.block_count": 0 } },
      "llama.block_count must be an integer from 1 to 1024, not 0",
    ],
    [
      "2^40 layers",
      { metadata: { "llama.block_count": { type: "u64", value: 2 ** 40 } } },
      "llama.block_count must be",
    ],
    ["a size that is text", { metadata: { "llama.embedding_length": "64" } }, 'must be a number, not "64"'],
    [
      "a size of 2^60",
      { metadata: { "llama.embedding_length": { type: "u64", value: 2 ** 60 } } },
      "must be a number",
    ],
    ["no heads", { metadata: { [heads]: 0 } }, `${heads} must be an integer`],
    [
      "heads that do not divide",
      { metadata: { [`${heads}_kv`]: 3 } },
      `${heads}_kv must be a divisor of 4 heads`,
    ],
    [
      "a context of a fraction",
      { metadata: { "llama.context_length": 1.5 } },
      "llama.context_length must be an integer",
    ],
    [
      "an epsilon that is no number",
      { metadata: { "llama.attention.layer_norm_rms_epsilon": f32(Number.NaN) } },
      "llama.attention.layer_norm_rms_epsilon must be a number from 0 to 1, not NaN",
    ],
    [
      "more rotated than there is",
      { metadata: { "llama.rope.dimension_count": 32 } },
      "llama.rope.dimension_count must be an even number from 2 to the 16 dimensions of a head, not 32",
    ],
    ["an odd number rotated", { metadata: { "llama.rope.dimension_count": 7 } }, "must be an even number"],
    [
      "heads in pairs of rows that are rotated in part",
      { metadata: { "llama.rope.dimension_count": 8 } },
      "llama.rope.dimension_count = 8 is not supported; heads have 16 dimensions",
    ],
    [
      "an end out of range",
      { metadata: { "tokenizer.ggml.eos_token_id": 8 } },
      "tokenizer.ggml.eos_token_id, ",
    ],
    [
      "a negative end",
      { metadata: { "tokenizer.ggml.eos_token_id": { type: "i32", value: -5 } } },
      "the id of a token",
    ],
    ["no embedding", { tensors: { "token_embd.weight": undefined } }, "missing tensors: token_embd.weight"],
    [
      "too few factors",
      { tensors: { "rope_freqs.weight": tensor(4) } },
      "rope_freqs.weight must be a list of",
    ],
    [
      "factors of 0",
      { tensors: { "rope_freqs.weight": tensor(8) } },
      "rope_freqs.weight must be a list of positive",
    ],
    ["factors of another shape", { tensors: { "rope_freqs.weight": tensor(2, 4) } }, "not F32 [2, 4]"],
    [
      "stretched by nothing",
      { metadata: { "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": f32(0) } },
      "llama.rope.scaling.factor must be a number from 1",
    ],
  ])("%s", (_what, changes, message) => {
    const error = thrown(() => read(changes)) as ModelDataError;
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain(message);
    expect(error.message).toContain("model.gguf: ");
  });

  test.each<[what: string, metadata: Record<string, Value>, message: string]>([
    [
      "another architecture",
      { "general.architecture": "gemma3" },
      'architecture "gemma3" is not supported in GGUF files',
    ],
    [
      "an adapter",
      { "general.type": "adapter" },
      'general.type = "adapter" is not supported; only models are',
    ],
    ["experts", { "llama.expert_count": 8 }, "llama.expert_count = 8 is not supported"],
    [
      "a window",
      { "llama.attention.sliding_window": 512 },
      "llama.attention.sliding_window = 512 is not supported",
    ],
    [
      "layers that differ",
      { "llama.feed_forward_length": { type: "i32", value: [96, 64] } },
      "layers must not differ",
    ],
    [
      "values unlike keys",
      { "llama.attention.value_length": 8 },
      "value_length = 8 is not supported; keys have 16",
    ],
    [
      "softcapping",
      { "llama.final_logit_softcapping": f32(30) },
      "llama.final_logit_softcapping = 30 is not",
    ],
    ["other scaling", { "llama.rope.scaling.type": "longrope" }, "supported are none, linear and yarn"],
    [
      "an embedding model",
      { "llama.attention.causal": false },
      "llama.attention.causal = false is not supported",
    ],
  ])("%s, by name", (_what, metadata, message) => {
    const error = thrown(() => read({ metadata })) as UnsupportedModelError;
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect(error.message).toContain(message);
  });
});
