import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM } from "octavo";
import { inspectModel } from "../../src/llm/inspect-model.ts";
import { temporaryFolder } from "../support.ts";
import { f32, safetensors, type TensorData } from "../unit/loader/support.ts";
import { type FixtureName, fixture } from "./fixtures.ts";

setDefaultTimeout(300_000);

const folder = temporaryFolder();
afterAll(() => folder[Symbol.dispose]());
const options = { device: "cpu", skipTokenizerInit: true } as const;

/** A text model's folder, as the one of a model that has more parts. */
interface Wrapped {
  readonly name: string;
  readonly model: FixtureName;
  readonly config: (text: Record<string, unknown>) => Record<string, unknown>;
  readonly rename: (name: string) => string;
  readonly towers: readonly string[];
}

const MROPE = { mrope_section: [4, 6, 6], mrope_interleaved: true };
const TOWER = { vision_config: { hidden_size: 8 } };

const WRAPPED: readonly Wrapped[] = [
  {
    name: "Gemma 3 with images, as first published",
    model: "gemma3",
    config: ({ dtype, eos_token_id, tie_word_embeddings, ...text_config }) => ({
      ...{ architectures: ["Gemma3ForConditionalGeneration"], model_type: "gemma3", ...TOWER },
      ...{ torch_dtype: dtype, eos_token_id, text_config: { ...text_config, model_type: "gemma3_text" } },
    }),
    rename: (name) => `language_model.${name}`,
    towers: [
      "vision_tower.vision_model.post_layernorm.weight",
      "multi_modal_projector.mm_soft_emb_norm.weight",
    ],
  },
  {
    name: "Gemma 4 with images and sound",
    model: "gemma4-e",
    config: ({ dtype, ...text_config }) => ({
      ...{ architectures: ["Gemma4ForConditionalGeneration"], model_type: "gemma4", ...TOWER, dtype },
      ...{ tie_word_embeddings: true, text_config, audio_config: { hidden_size: 8 } },
    }),
    rename: (name) => name.replace(/^model\./, "model.language_model."),
    towers: [
      "model.vision_tower.patch_embedder.input_proj.weight",
      "model.audio_tower.output_proj.weight",
      "model.embed_vision.embedding_projection.weight",
    ],
  },
  {
    name: "Qwen3-VL",
    model: "qwen3",
    config: ({ rope_parameters, ...text }) => ({
      ...{ architectures: ["Qwen3VLForConditionalGeneration"], model_type: "qwen3_vl", ...TOWER },
      tie_word_embeddings: false,
      text_config: {
        ...{ ...text, model_type: "qwen3_vl_text", tie_word_embeddings: true },
        rope_parameters: { ...(rope_parameters as object), ...MROPE },
      },
    }),
    rename: (name) => name.replace(/^model\./, "model.language_model."),
    towers: ["model.visual.patch_embed.proj.weight", "model.visual.blocks.0.norm1.weight"],
  },
  {
    name: "Qwen3.5, with layers that guess further tokens",
    model: "qwen3-5",
    config: ({ rope_parameters, ...text }) => ({
      ...{ architectures: ["Qwen3_5ForConditionalGeneration"], model_type: "qwen3_5", ...TOWER },
      tie_word_embeddings: false,
      text_config: {
        ...{ ...text, model_type: "qwen3_5_text", mtp_num_hidden_layers: 1, attn_output_gate: true },
        rope_parameters: { ...(rope_parameters as object), ...MROPE },
      },
    }),
    rename: (name) => name.replace(/^model\./, "model.language_model."),
    towers: ["model.visual.patch_embed.proj.weight", "mtp.layers.0.input_layernorm.weight", "mtp.fc.weight"],
  },
  {
    name: "Qwen2.5-VL, whose fields and names are those of a text model",
    model: "qwen2",
    config: (text) => ({
      ...{ ...text, architectures: ["Qwen2_5_VLForConditionalGeneration"], model_type: "qwen2_5_vl" },
      ...{ ...TOWER, rope_scaling: { type: "mrope", mrope_section: [4, 6, 6] } },
    }),
    rename: (name) => name,
    towers: ["visual.blocks.0.attn.qkv.weight"],
  },
  {
    name: "Mistral 3 around Ministral 3",
    model: "ministral3",
    config: (text) => ({
      ...{ architectures: ["Mistral3ForConditionalGeneration"], model_type: "mistral3", ...TOWER },
      text_config: { ...text, model_type: "ministral3" },
    }),
    rename: (name) => `language_model.${name}`,
    towers: ["vision_tower.ln_pre.weight"],
  },
  {
    name: "Idefics 3 around Llama",
    model: "llama",
    config: (text) => ({
      ...{ architectures: ["Idefics3ForConditionalGeneration"], model_type: "idefics3", ...TOWER },
      ...{ tie_word_embeddings: false, text_config: { ...text, model_type: "llama" } },
    }),
    rename: (name) => name.replace(/^model\./, "model.text_model."),
    towers: [
      "model.vision_model.embeddings.patch_embedding.weight",
      "model.connector.modality_projection.proj.weight",
    ],
  },
];

function wrap({ name, model, config, rename, towers }: Wrapped): string {
  const { modelDir } = fixture(model);
  const path = folder.file(name.replaceAll(/\W+/g, "-"));
  mkdirSync(path);
  const text = JSON.parse(readFileSync(join(modelDir, "config.json"), "utf8"));
  writeFileSync(join(path, "config.json"), JSON.stringify(config(text)));
  const tensors = [...readTensors(modelDir)].map(([each, tensor]) => [rename(each), tensor] as const);
  const others = towers.map((tower) => [tower, f32([2, 3])] as const);
  writeFileSync(join(path, "model.safetensors"), safetensors(Object.fromEntries([...others, ...tensors])));
  return path;
}

function readTensors(modelDir: string): Map<string, TensorData> {
  const file = readFileSync(join(modelDir, "model.safetensors"));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__, ...header } = JSON.parse(file.toString("utf8", 8, start));
  return new Map(
    Object.entries(header as Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [from, to],
        },
      ]) => [name, { dtype, shape, data: file.subarray(start + from!, start + to!) }],
    ),
  );
}

describe("the text part of a multimodal checkpoint", () => {
  test.each(WRAPPED)("$name computes what the text model does", async (wrapped) => {
    const path = wrap(wrapped);
    const { modelDir, cases } = fixture(wrapped.model);
    const { prompt } = cases.find(({ name }) => name === "random-17")!;
    await using whole = await LLM.create(path, options);
    await using text = await LLM.create(modelDir, options);
    expect(await whole.logits(prompt)).toEqual(await text.logits(prompt));
    const { towers } = wrapped;
    expect(whole.weights).toEqual({
      ...text.weights,
      skipped: { tensors: towers.length, bytes: 24 * towers.length },
    });
    expect((await inspectModel(path)).weights.skipped).toEqual(whole.weights.skipped!);
  });

  test("a text model's layers that guess further tokens are skipped, too", async () => {
    const path = wrap({
      ...{ name: "mtp", model: "qwen3-next", config: (text) => text, rename: (name) => name },
      towers: ["mtp.norm.weight"],
    });
    await using llm = await LLM.create(path, options);
    expect(llm.weights.skipped).toEqual({ tensors: 1, bytes: 24 });
  });

  test("that lacks a tensor is refused", async () => {
    const [{ rename, ...rest }] = WRAPPED as [Wrapped];
    const lost = {
      ...rest,
      name: "lost",
      rename: (name: string) => rename(name).replace("model.norm.", "lost."),
    };
    const error = await LLM.create(wrap(lost), options).catch((reason: unknown) => reason);
    expect(`${error}`).toMatch(/missing tensors: model\.norm\.weight/);
  });
});
