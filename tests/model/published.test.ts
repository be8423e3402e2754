import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM } from "octavo";
import { UnsupportedModelError } from "../../src/base/errors.ts";
import { readModelConfig } from "../../src/models/config.ts";
import { defineModel } from "../../src/models/registry.ts";
import { temporaryFolder, thrown } from "../support.ts";
import PUBLISHED from "./published-configs.json" with { type: "json" };

setDefaultTimeout(300_000);

type Fields = Record<string, unknown>;

/** A checkpoint's config.json, without what changes nothing. */
interface Published {
  readonly config: Fields;
  /** The weights that it has, those of its language model alone. */
  readonly parameters?: number;
  /** A part of the message that refuses it. */
  readonly refused?: string;
}

const ALL = Object.entries(PUBLISHED as Readonly<Record<string, Published>>);
const LOADED = ALL.filter(([, { refused }]) => refused === undefined);

const folder = temporaryFolder();
afterAll(() => folder[Symbol.dispose]());

function write(name: string, config: Fields): string {
  const path = folder.file(name.replaceAll("/", "--"));
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, "config.json"), JSON.stringify(config));
  return path;
}

/** A model of the same kind, narrow and of two layers: one each, where there are two kinds. */
function shrunk(config: Fields): Fields {
  const { quantization_config: _, text_config, eos_token_id: __, ...rest } = config;
  if (text_config !== undefined) return { ...rest, text_config: shrunk(text_config as Fields) };
  const [heads, kvHeads] = [rest["num_attention_heads"], rest["num_key_value_heads"]] as (
    | number
    | undefined
  )[];
  const group = (heads ?? 1) / (kvHeads ?? heads ?? 1);
  const ends = (name: string) => {
    const list = rest[name] as unknown[] | undefined;
    return list && { [name]: [list[0], list.at(-1)] };
  };
  const isDerived = rest["head_dim"] === undefined && heads !== undefined;
  return {
    ...rest,
    ...{ vocab_size: 64, intermediate_size: 32, num_hidden_layers: 2 },
    ...(rest["moe_intermediate_size"] !== undefined && { moe_intermediate_size: 16 }),
    ...(rest["vocab_size_per_layer_input"] !== undefined && {
      ...{ vocab_size_per_layer_input: 64, global_head_dim: 32, num_global_key_value_heads: 1 },
      num_kv_shared_layers: 0,
    }),
    ...(rest["shared_expert_intermediate_size"] !== undefined && { shared_expert_intermediate_size: 16 }),
    ...(isDerived ? { hidden_size: 16 * group } : { hidden_size: 32, head_dim: 16 }),
    ...(heads && { num_attention_heads: group, num_key_value_heads: 1 }),
    ...(rest["model_type"] === "gpt_neox" && {
      num_attention_heads: 2,
      hidden_size: 32,
      num_key_value_heads: 2,
    }),
    ...(rest["linear_num_key_heads"] !== undefined && {
      ...{ linear_num_key_heads: 1, linear_num_value_heads: 2, linear_key_head_dim: 16 },
      ...{ linear_value_head_dim: 16, full_attention_interval: 2 },
    }),
    ...ends("layer_types"),
    ...ends("no_rope_layers"),
    ...(rest["sliding_window_pattern"] !== undefined && { sliding_window_pattern: 2 }),
    rope_scaling: fitting(rest["rope_scaling"], 16 * ((rest["partial_rotary_factor"] as number) ?? 1)),
  };
}

/** Rope scaling with a factor for each of the pairs that there are. */
function fitting(scaling: unknown, rotaryDim: number): unknown {
  if (scaling === null || typeof scaling !== "object") return scaling;
  return Object.fromEntries(
    Object.entries(scaling).map(([name, value]) => [
      name,
      /^(?:short|long)_factor$/.test(name) ? (value as number[]).slice(0, rotaryDim / 2) : value,
    ]),
  );
}

describe("the configs of published checkpoints", () => {
  test.each(LOADED)("%s has the parameters that it says", (name, { config, parameters }) => {
    const { parameters: specs } = defineModel(readModelConfig(write(name, config)));
    const tensors = new Map(
      specs.flatMap(({ sources }) => sources.map(({ name: of, shape }) => [of, shape] as const)),
    );
    const sizes = [...tensors.values()].map((shape) => shape.reduce((size, extent) => size * extent, 1));
    const found = sizes.reduce((sum, size) => sum + size, 0);
    expect(found).toBeGreaterThan(1e6);
    if (parameters !== undefined) expect(found).toBe(parameters);
  });

  test.each(LOADED)("%s, two narrow layers of it, gives tokens", async (name, { config }) => {
    await using llm = await LLM.create(write(`${name}-shrunk`, shrunk(config)), {
      ...{ device: "cpu-reference", loadFormat: "dummy", skipTokenizerInit: true },
      ...{ maxModelLen: 32, kvCacheMemoryBytes: 2 ** 17 },
    });
    const [output] = await llm.generate([{ promptTokenIds: [5, 9, 2] }], { maxTokens: 2, ignoreEos: true });
    expect(output!.outputs[0]!.tokenIds).toHaveLength(2);
  });

  test.each(ALL.filter(([, { refused }]) => refused !== undefined))(
    "%s is refused by what is missing",
    (name, { config, refused }) => {
      const error = thrown(() => readModelConfig(write(name, config)));
      expect(error).toBeInstanceOf(UnsupportedModelError);
      expect(`${error}`).toContain(refused!);
    },
  );
});

/** Names of tensors as files on the Hub have them, of the first layer and outside of layers. */
const NAMES: Readonly<
  Record<string, { readonly layer: string; readonly rest: string; readonly unused?: string }>
> = {
  "EleutherAI/pythia-70m": {
    layer: `gpt_neox.layers.0.(input_layernorm|post_attention_layernorm|attention.query_key_value|attention.dense
      |mlp.dense_h_to_4h|mlp.dense_4h_to_h).(weight|bias)`,
    rest: "gpt_neox.embed_in.weight gpt_neox.final_layer_norm.(weight|bias) embed_out.weight",
    unused: "gpt_neox.layers.0.attention.(bias|masked_bias|rotary_emb.inv_freq)",
  },
  "microsoft/Phi-4-mini-instruct": {
    layer: `model.layers.0.(input_layernorm|post_attention_layernorm|self_attn.qkv_proj|self_attn.o_proj
      |mlp.gate_up_proj|mlp.down_proj).weight`,
    rest: "model.embed_tokens.weight model.norm.weight",
  },
  "allenai/OLMo-2-1124-7B-Instruct": {
    layer: `model.layers.0.(post_attention_layernorm|post_feedforward_layernorm
      |self_attn.q_proj|self_attn.k_proj|self_attn.v_proj|self_attn.o_proj|self_attn.q_norm|self_attn.k_norm
      |mlp.gate_proj|mlp.up_proj|mlp.down_proj).weight`,
    rest: "model.embed_tokens.weight model.norm.weight lm_head.weight",
  },
  "google/gemma-3-1b-it": {
    layer: `model.layers.0.(input_layernorm|post_attention_layernorm|pre_feedforward_layernorm|post_feedforward_layernorm
      |self_attn.q_proj|self_attn.k_proj|self_attn.v_proj|self_attn.o_proj|self_attn.q_norm|self_attn.k_norm
      |mlp.gate_proj|mlp.up_proj|mlp.down_proj).weight`,
    rest: "model.embed_tokens.weight model.norm.weight",
  },
  "google/gemma-4-E4B-it": {
    layer: `model.layers.0.(input_layernorm|post_attention_layernorm|pre_feedforward_layernorm|post_feedforward_layernorm
      |post_per_layer_input_norm|per_layer_input_gate|per_layer_projection
      |self_attn.q_proj|self_attn.k_proj|self_attn.v_proj|self_attn.o_proj|self_attn.q_norm|self_attn.k_norm
      |mlp.gate_proj|mlp.up_proj|mlp.down_proj).weight model.layers.0.layer_scalar`,
    rest: `model.embed_tokens.weight model.norm.weight model.embed_tokens_per_layer.weight
      model.per_layer_model_projection.weight model.per_layer_projection_norm.weight`.replaceAll(
      /\n\s*/g,
      " ",
    ),
    unused:
      "model.layers.41.self_attn.(k_proj|v_proj|k_norm).weight model.vision_tower.patch_embedder.weight",
  },
  "google/gemma-2-2b-it": {
    layer: `model.layers.0.(input_layernorm|post_attention_layernorm|pre_feedforward_layernorm|post_feedforward_layernorm
      |self_attn.q_proj|self_attn.k_proj|self_attn.v_proj|self_attn.o_proj
      |mlp.gate_proj|mlp.up_proj|mlp.down_proj).weight`,
    rest: "model.embed_tokens.weight model.norm.weight",
  },
};
const LLAMA = `model.layers.0.(input_layernorm|post_attention_layernorm
  |self_attn.q_proj|self_attn.k_proj|self_attn.v_proj|self_attn.o_proj|mlp.gate_proj|mlp.up_proj|mlp.down_proj).weight`;
const TIED = "model.embed_tokens.weight model.norm.weight";

/** The names that a pattern stands for: `a.(b|c).d` is `a.b.d` and `a.c.d`. */
function expanded(pattern: string): string[] {
  return pattern
    .replaceAll(/\n\s*/g, "")
    .split(" ")
    .flatMap((each) => {
      const parts = each.split(/\(([^)]*)\)/);
      return parts.reduce(
        (names, part, i) =>
          i % 2 === 0
            ? names.map((name) => name + part)
            : part.split("|").flatMap((choice) => names.map((name) => name + choice)),
        [""],
      );
    });
}

test.each(
  Object.entries({
    ...NAMES,
    "HuggingFaceTB/SmolLM3-3B": { layer: LLAMA, rest: TIED },
    "ibm-granite/granite-3.1-2b-instruct": { layer: LLAMA, rest: TIED },
    "mistralai/Ministral-3-8B-Instruct-2512": { layer: LLAMA, rest: `${TIED} lm_head.weight` },
  }),
)("the tensors of %s have the names that its files do", (name, names) => {
  const config = readModelConfig(write(name, (PUBLISHED as Record<string, Published>)[name]!.config));
  const { parameters, ignored } = defineModel(config);
  const sources = new Set(parameters.flatMap((spec) => spec.sources.map((source) => source.name)));
  const found = [...sources].filter((each) => !/layers\.(?!0\.)/.test(each));
  expect(found.sort()).toEqual([...expanded(names.layer), ...expanded(names.rest)].sort());
  for (const unused of "unused" in names ? expanded(names.unused as string) : [])
    expect(ignored.some((pattern) => pattern.test(unused))).toBe(true);
});
