import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { KERNEL_FOLDER } from "../../../../src/backend/cuda/kernel-library.ts";
import { type KernelUnit, type Macros, readKernelUnit } from "../../../../src/backend/cuda/kernel-source.ts";
import { NvrtcError } from "../../../../src/cuda/errors.ts";
import { openNvrtc, thisMachine } from "../../../../src/cuda/open-cuda.ts";
import { available, describeWith } from "../../../requirements.ts";
import { KERNEL_FILES } from "./kernel-signatures.ts";
import { plainForm, unitsOf } from "./kernel-units.ts";

setDefaultTimeout(300_000);

/** What is refused is refused before there is code, and whether code is optimised says nothing of its constants. */
const OPTIONS = [
  ...["--gpu-architecture=sm_90a", "--std=c++17", "--device-as-default-execution-space"],
  ...["--minimal", "--Ofast-compile=max"],
];
const REPOSITORY = join(import.meta.dir, "../../../..");

/** `#error "MACROS come from FILE"`. */
const DEMAND = /^#error "(.*) comes? from (\S+)"$/gm;

const WIDTHS = { vocabSize: 151936, hiddenSize: 1024, intermediateSize: 3072 };
const HEADS = { numHeads: 16, numKvHeads: 8, headDim: 128 };
/** For which there is a kernel more. */
const WIDE_HEADS = { ...HEADS, headDim: 512 };

/** One unit of each file. */
const UNITS: ReadonlyMap<string, KernelUnit> = new Map(
  // Of experts, kernels for weights in floats and for codes; what both have is that of codes.
  (["dense", "mxfp4"] as const)
    .flatMap((format) => [false, true].map((hopper) => ({ format, hopper })))
    .flatMap(({ format, hopper }) => [
      ...unitsOf("bfloat16", hopper, {
        ...{ ...WIDTHS, ...WIDE_HEADS, blockSize: 16 },
        attentionForms: [plainForm(64)],
      }),
      ...unitsOf("bfloat16", hopper, {
        ...{ ...WIDTHS, ...HEADS, blockSize: 16 },
        attentionForms: [plainForm(64)],
        softCap: 30,
        experts: { count: 40, intermediateSize: 768, format },
        deltaNet: { numKeyHeads: 16, numValueHeads: 32, keyDim: 128, valueDim: 128, convWidth: 4 },
      }),
    ])
    .map((unit) => [unit.file, unit]),
);

const macrosOf = ({ constants, defines }: KernelUnit): string[] =>
  Object.keys({ ...constants, ...defines }).filter((macro) => !macro.startsWith("DTYPE_"));

/** Macros that state a limit or a size, which a `static_assert` holds the kernel to; nothing else need use them. */
const ASSERTED = [
  ...[
    "MAX_HEAD_DIM",
    "MAX_GROUP_SIZE",
    "MAX_ACCESSES",
    "MAX_EXPERTS",
    "MAX_PER_TOKEN",
    "STATIC_SHARED_BYTES",
  ],
  ...[
    "TILE_STATS_BYTES",
    "TILE_SUM_BYTES",
    "LOGIT_EDIT_WORDS",
    "PREFILL_CONTROL_BYTES",
    ...["LINEAR_SHARED_BYTES", "LARGE_CONTROL_BYTES", "DRAW_SHARED_BYTES"],
    ...["PREPARE_BYTES", "ADVANCE_BYTES"],
    ...["LAYERS_SHARED_BYTES", "LAYER_POINTERS", "LAYER_THREADS"],
  ],
];

/** A unit's text without comments and without the demands for its macros. */
function codeOf(unit: KernelUnit): string {
  const { source, headers } = readKernelUnit(unit, KERNEL_FOLDER, []);
  return [source, ...Object.values(headers)]
    .join("\n")
    .replace(/\/\/.*/g, "")
    .replace(/^#if !defined.*$|^#error.*$/gm, "");
}

const withoutAssertions = (code: string) => code.replace(/static_assert\([^;]*;/g, "");

describe("a constant has one source:", () => {
  test.each(KERNEL_FILES)("%s uses every macro that it is given, and defines none of them", (file) => {
    const unit = UNITS.get(file)!;
    const [code, asserted] = [withoutAssertions(codeOf(unit)), codeOf(unit)];
    const macros = macrosOf(unit);
    const unused = macros.filter((macro) => {
      const text = ASSERTED.includes(macro) ? asserted : code;
      return !new RegExp(`\\b${macro}\\b`).test(text);
    });
    expect(unused).toEqual([]);
    const defined = macros.filter((macro) =>
      new RegExp(`\\bconstexpr\\s+\\w+\\s+${macro}\\b|#\\s*define\\s+${macro}\\b`).test(code),
    );
    expect(defined).toEqual([]);
  });

  test.each(KERNEL_FILES)("%s has no number that is one of its constants", (file) => {
    const unit = UNITS.get(file)!;
    // Smaller ones are too common to say anything.
    const constants = Object.values(unit.constants!).filter((value) => Number(value) >= 512);
    const literals = withoutAssertions(codeOf(unit)).match(/\b\d+\b/g)!;
    expect(literals.filter((literal) => constants.includes(Number(literal)))).toEqual([]);
  });

  test.each(KERNEL_FILES)("%s bounds its blocks by names", (file) => {
    expect(codeOf(UNITS.get(file)!)).not.toMatch(/__launch_bounds__\(\s*\d/);
  });

  test("the sources name the file that a macro comes from", () => {
    const demands = [KERNEL_FOLDER, join(KERNEL_FOLDER, "include")].flatMap((folder) =>
      readdirSync(folder)
        .filter((name) => /\.cuh?$/.test(name))
        .flatMap((name) => [...readFileSync(join(folder, name), "utf8").matchAll(DEMAND)]),
    );
    expect(demands.length).toBeGreaterThan(KERNEL_FILES.length);
    for (const [, macros, origin] of demands) {
      const text = readFileSync(join(REPOSITORY, origin!), "utf8");
      const missing = macros!.match(/\b[A-Z][A-Z0-9_]+\b(?!…)/g)!.filter((macro) => !text.includes(macro));
      expect({ origin, missing }).toEqual({ origin, missing: [] });
    }
  });
});

describeWith(
  "OCTAVO_REQUIRE_NVRTC",
  available(() => openNvrtc(thisMachine(), 13)),
  "NVRTC",
  ({ nvrtc }) => {
    /** Compiles a file under changed macros; those that are undefined are not passed. */
    const compile = (file: string, changes: Readonly<Record<string, number | undefined>>) => {
      const { constants, defines } = UNITS.get(file)!;
      const macros = Object.entries({ ...constants, ...defines, ...changes }).filter(
        ([, value]) => value !== undefined,
      );
      return nvrtc.compile(
        readKernelUnit({ file, defines: Object.fromEntries(macros) as Macros }, KERNEL_FOLDER, OPTIONS),
      );
    };
    const logOf = (run: () => unknown): string => {
      try {
        run();
      } catch (error) {
        if (error instanceof NvrtcError) return error.log;
        throw error;
      }
      return "compiled";
    };

    test.each(KERNEL_FILES)("refuses %s without any one of its macros", (file) => {
      for (const macro of macrosOf(UNITS.get(file)!)) {
        const log = logOf(() => compile(file, { [macro]: undefined }));
        expect({ macro, log }).toEqual({ macro, log: expect.stringMatching(/comes? from src|undefined/) });
      }
    });

    test.each<[file: string, macro: string, value: number, why: string]>([
      ["norm.cu", "WARP", 16, "WARP must be 32"],
      ["norm.cu", "VECTOR_BYTES", 8, "VECTOR_BYTES must be"],
      ["norm.cu", "MAX_THREADS", 1000, "MAX_THREADS must be whole warps"],
      ["norm.cu", "MAX_THREADS", 2048, "MAX_THREADS must be whole warps"],
      ["norm.cu", "ACCESS", 4, "ACCESS is"],
      ["norm.cu", "ACCESSES", 64, "ACCESSES must be"],
      ["activation.cu", "ACCESS", 4, "ACCESS is"],
      ["activation.cu", "ACTIVATION_GELU", 0, "activations must have codes of their own"],
      ["embedding.cu", "COPY_BYTES", 8, "COPY_BYTES must be"],
      ["rotary.cu", "HEAD_PAIRS", 16, "HEAD_PAIRS must be a power of two, at most a vector"],
      ["rotary.cu", "ROTARY_DIM", 72, "HEAD_PAIRS must divide"],
      ["rotary.cu", "ROTARY_DIM", 130, "a head has HEAD_DIM dimensions"],
      ["rotary.cu", "ROTARY_DIM", 63, "pairs of dimensions"],
      ["rotary.cu", "HEAD_LANES", 12, "HEAD_LANES must be a power of two"],
      ["rotary.cu", "HEAD_LANES", 64, "HEAD_LANES must be a power of two, at most a warp"],
      ["attention_decode.cu", "DECODE_TILE", 24, "DECODE_TILE must be a multiple of 16"],
      ["attention_decode.cu", "DECODE_TILE", 32, "registers hold 16 tokens"],
      ["decode_layers.cu", "DECODE_TILE", 32, "registers hold 16 tokens"],
      ["attention_decode.cu", "DECODE_WARPS", 64, "must fit static shared memory"],
      ["attention_decode.cu", "DECODE_SLICES", 3, "DECODE_SLICES must leave"],
      ["attention_decode.cu", "DECODE_SLICES", 2, "the warps of a block have each a tile, or all the same"],
      ["attention_merge.cu", "DECODE_WARPS", 3, "DECODE_WARPS must be whole tiles"],
      ["attention_merge.cu", "MERGE_PAIRS", 48, "MERGE_PAIRS must divide"],
      ["attention_decode.cu", "HEAD_DIM", 544, "HEAD_DIM must be"],
      ["attention_decode.cu", "HEAD_DIM", 80, "HEAD_DIM must be"],
      ["attention_decode.cu", "GROUP_SIZE", 17, "GROUP_SIZE must be"],
      ["attention_decode.cu", "BLOCK_SIZE", 24, "BLOCK_SIZE must be"],
      ["attention_prefill.cu", "PREFILL_WARPS", 3, "PREFILL_ROWS must be"],
      ["attention_prefill.cu", "PREFILL_ROWS", 96, "PREFILL_ROWS must be"],
      ["attention_prefill.cu", "PREFILL_KEYS", 40, "PREFILL_KEYS must be"],
      ["attention_prefill.cu", "PREFILL_KEYS", 48, "every thread copies"],
      ["attention_prefill.cu", "PREFILL_COLUMNS", 3, "PREFILL_WARPS must be whole rows"],
      ["attention_prefill_hopper.cu", "PREFILL_CLUSTER", 4, "a CTA exchanges scores with one other"],
      ["batch.cu", "COUNT_IN_PROMPT", 1, "COUNT_IN_PROMPT must be"],
      ["batch.cu", "SLOT_FLAG_EDITS", 1, "slot flags must be"],
      ["sampling.cu", "LOGIT_TILE", 500, "LOGIT_TILE must be a whole number"],
      ["sampling.cu", "LOGIT_TILE", 2048, "LOGIT_TILE must give a lane at most 32"],
      ["sampling.cu", "TILE_THREADS", 100, "TILE_THREADS must be whole warps"],
      ["sampling.cu", "ROW_THREADS", 2048, "ROW_THREADS must be whole warps"],
      ["sampling.cu", "TILE_STATS_BYTES", 8, "TILE_STATS_BYTES must be"],
      ["process_logits.cu", "LOGIT_EDIT_WORDS", 4, "LOGIT_EDIT_WORDS must be"],
      ["logprobs.cu", "TILE_SUM_BYTES", 16, "TILE_SUM_BYTES must be"],
    ])("refuses %s with %s %d", (file, macro, value, why) => {
      expect(logOf(() => compile(file, { [macro]: value }))).toContain(why);
    });

    test.each<[file: string, changes: Readonly<Record<string, number>>]>([
      ["norm.cu", { MAX_THREADS: 1024, MAX_ACCESSES: 16 }],
      ["activation.cu", { ACTIVATION_SILU: 2, ACTIVATION_GELU: 0, ACTIVATION_GELU_TANH: 1 }],
      ["rotary.cu", { HEAD_PAIRS: 2, HEAD_LANES: 8 }],
      ["attention_decode.cu", { DECODE_WARPS: 2 }],
      ["attention_prefill.cu", { PREFILL_WARPS: 8, PREFILL_KEYS: 128, PREFILL_COLUMNS: 2 }],
      ["batch.cu", { SLOT_WORDS: 32, SLOT_WORD_FLAGS: 20, ROW_WORD_BLOCK: 8, ROW_WORD_COUNT: 5 }],
      ["logprobs.cu", { LOGIT_TILE: 256, TILE_THREADS: 512, ROW_THREADS: 1024 }],
      ["sampling.cu", { LOGIT_TILE: 256, TILE_THREADS: 128, ROW_THREADS: 256 }],
    ])("compiles %s with %p", (file, changes) => {
      expect(compile(file, changes).log).toBe("");
    });
  },
);
