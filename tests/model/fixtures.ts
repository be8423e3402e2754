import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { GreedyReference, TopLogprobs } from "./compare.ts";

export const FIXTURE_NAMES = ["qwen3", "qwen2", "llama", "llama2", "mistral", "tiny-stories"] as const;
/** Mixtures of experts, made by `make-expert-fixtures.py`. */
export const EXPERT_NAMES = ["qwen3-moe", "qwen2-moe", "mixtral", "gpt-oss"] as const;
/** Models in which linear attention and attention take turns, made by `make-hybrid-fixtures.py`. */
export const HYBRID_NAMES = ["qwen3-5", "qwen3-5-moe", "qwen3-5-moe-w4", "qwen3-next"] as const;
/** Gemma 4's three shapes, two of them in 4 bits too, made by `make-gemma4-fixtures.py`. */
export const GEMMA4_NAMES = ["gemma4-e", "gemma4", "gemma4-moe", "gemma4-e-w4", "gemma4-moe-w4"] as const;
/** Formats of quantised weights; `make-quantised.py` says what each holds. */
const QUANTISED_FORMATS = [
  ...(["fp8-block", "fp8-tensor", "fp8-modelopt", "ct-fp8-channel", "ct-int8"] as const),
  ...(["ct-w4", "ct-w4-asym", "awq", "gptq", "gptq-act-order", "gptq-v2-8bit"] as const),
] as const;
export type QuantisedFormat = (typeof QUANTISED_FORMATS)[number];
/** Models of one GGUF file each, made by `make-gguf-fixtures.py`. */
export const GGUF_NAMES = ["gguf-llama", "gguf-qwen3", "gguf-qwen2"] as const;
/** Models of other families' blocks, made by `make-family-fixtures.py`. */
export const FAMILY_NAMES = [
  ...(["gpt-neox", "phi3", "olmo2", "olmo3", "smollm3", "granite", "ministral3"] as const),
  ...(["gemma", "gemma2", "gemma3"] as const),
] as const;
export type FixtureName =
  | (typeof FAMILY_NAMES)[number]
  | (typeof FIXTURE_NAMES)[number]
  | (typeof EXPERT_NAMES)[number]
  | (typeof HYBRID_NAMES)[number]
  | (typeof GEMMA4_NAMES)[number]
  | `quantised-${QuantisedFormat}`
  | (typeof GGUF_NAMES)[number];

/** What the reference computed for one prompt, in float32. */
export interface FixtureCase {
  /** Source and length of the prompt: `random-17`, `story-100`. */
  readonly name: string;
  readonly prompt: readonly number[];
  /** Ascending prompt positions whose logits are kept; the first and the last position are among them. */
  readonly positions: readonly number[];
  /** `logits[i]`, [vocabSize], follows prompt token `positions[i]`. */
  readonly logits: readonly Float32Array[];
  /** The five likeliest tokens after the prompt. */
  readonly top: TopLogprobs;
  /** Greedy continuation that no token ends, kept for some prompts. */
  readonly greedy: GreedyReference | null;
}

/** A model and its reference results. `cases` is read from disk on first use. */
export interface Fixture {
  readonly name: FixtureName;
  /** Absolute path of the folder with config.json and the weights, or of the GGUF file. */
  readonly modelDir: string;
  readonly vocabSize: number;
  readonly cases: readonly FixtureCase[];
}

interface ReferenceFile {
  readonly vocabSize: number;
  readonly cases: readonly Omit<FixtureCase, "logits">[];
}

/** Models in floats. */
export const FIXTURES: readonly Fixture[] = FIXTURE_NAMES.map(lazyFixture);
export const EXPERT_FIXTURES: readonly Fixture[] = EXPERT_NAMES.map(lazyFixture);
/** Models of quantised weights. */
export const QUANTISED_FIXTURES: readonly (Fixture & { readonly format: QuantisedFormat })[] =
  QUANTISED_FORMATS.map((format) => Object.assign(lazyFixture(`quantised-${format}`), { format }));
export const FAMILY_FIXTURES: readonly Fixture[] = FAMILY_NAMES.map(lazyFixture);
export const HYBRID_FIXTURES: readonly Fixture[] = HYBRID_NAMES.map(lazyFixture);
export const GEMMA4_FIXTURES: readonly Fixture[] = GEMMA4_NAMES.map(lazyFixture);
export const GGUF_FIXTURES: readonly Fixture[] = GGUF_NAMES.map(lazyFixture);

/** The fixture of that name. */
export function fixture(name: FixtureName): Fixture {
  return [
    ...FIXTURES,
    ...EXPERT_FIXTURES,
    ...HYBRID_FIXTURES,
    ...GEMMA4_FIXTURES,
    ...QUANTISED_FIXTURES,
    ...GGUF_FIXTURES,
    ...FAMILY_FIXTURES,
  ].find((each) => each.name === name)!;
}

function lazyFixture(name: FixtureName): Fixture {
  const folder = join(import.meta.dir, "fixtures", name);
  const modelDir = name === "tiny-stories" ? join(import.meta.dir, "../../models", name) : modelIn(folder);
  let loaded: Pick<Fixture, "vocabSize" | "cases"> | undefined;
  const load = () => {
    loaded ??= readReference(folder);
    return loaded;
  };
  return {
    name,
    modelDir,
    get vocabSize() {
      return load().vocabSize;
    },
    get cases() {
      return load().cases;
    },
  };
}

function modelIn(folder: string): string {
  const gguf = join(folder, "model.gguf");
  return existsSync(gguf) ? gguf : folder;
}

function readReference(folder: string): Pick<Fixture, "vocabSize" | "cases"> {
  const { vocabSize, cases }: ReferenceFile = JSON.parse(
    readFileSync(join(folder, "reference.json"), "utf8"),
  );
  const tensors = readTensors(join(folder, "reference.safetensors"));
  return {
    vocabSize,
    cases: cases.map((entry) => {
      const values = tensors(`${entry.name}.logits`);
      if (values.length !== entry.positions.length * vocabSize)
        throw new Error(`${folder}: ${entry.name} has ${values.length} logits`);
      const logits = entry.positions.map((_, row) => values.subarray(row * vocabSize, (row + 1) * vocabSize));
      return { ...entry, logits };
    }),
  };
}

/** Reads a safetensors file of f32 tensors without the code under test. */
function readTensors(path: string): (name: string) => Float32Array {
  const file = readFileSync(path);
  const dataStart = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, dataStart));
  return (name) => {
    const { dtype, data_offsets } = header[name];
    if (dtype !== "F32") throw new Error(`${path}: ${name} is ${dtype}`);
    const [start, end] = data_offsets;
    return new Float32Array(new Uint8Array(file.subarray(dataStart + start, dataStart + end)).buffer);
  };
}
