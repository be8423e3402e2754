import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { AttentionForm } from "../../../../src/backend/attention-spec.ts";
import type { ModelShape } from "../../../../src/backend/backend.ts";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER } from "../../../../src/backend/cuda/kernel-library.ts";
import { type KernelUnit, unitName } from "../../../../src/backend/cuda/kernel-source.ts";
import type { FloatDType } from "../../../../src/base/dtype.ts";
import { openNvrtc, thisMachine } from "../../../../src/cuda/open-cuda.ts";
import { available, describeWith } from "../../../requirements.ts";
import { KERNEL_FILES, SIGNATURES } from "./kernel-signatures.ts";
import {
  coveringUnits,
  integerExpertUnits,
  plainForm,
  unitsOf,
  valuesOf,
  wgmmaExpertUnits,
} from "./kernel-units.ts";

setDefaultTimeout(300_000);

/** Of those that differ: sm_86 compiles what sm_80 does. */
const ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"] as const;
/** Where all files are compiled in all widths. Code for the others is that of sm_80 but for instructions that no size changes. */
const SIZES_MATTER: ReadonlySet<string> = new Set(["sm_80", "sm_90a"]);
/** What a block may ask for of shared memory, where it is not as much as Hopper's. */
const SHARED_KIB: Readonly<Record<string, number>> = { sm_80: 163, sm_89: 99, sm_120: 99 };
const HEAD_DIMS = [64, 96, 128, 256, 512] as const;
const GROUPS = [1, 2, 4, 7, 8] as const;
const DTYPES = ["bfloat16", "float16"] as const satisfies FloatDType[];

/** Sizes that pass through every specialisation but those of attention: widths for vectors and not, narrow and wide. */
const WIDTHS = [
  { hiddenSize: 256, intermediateSize: 1024, vocabSize: 2048, softCap: 30 },
  { hiddenSize: 1024, intermediateSize: 3072, vocabSize: 2048 },
  { hiddenSize: 8192, intermediateSize: 28672, vocabSize: 151936 },
  { hiddenSize: 1001, intermediateSize: 1003, vocabSize: 2001 },
] as const;

/** Experts of the first models, in each form, of columns that warps' steps divide and of others. */
const EXPERTS: readonly Pick<ModelShape, "experts">[] = [
  { experts: { count: 40, intermediateSize: 2880, format: "mxfp4" } },
  { experts: { count: 128, intermediateSize: 72 } },
  { experts: { count: 8, intermediateSize: 80, format: "fp8" } },
];

/** Heads of a gated delta rule, for the first models: those of all published ones, and the narrowest and the most unequal. */
const RULES: readonly Pick<ModelShape, "deltaNet">[] = [
  { deltaNet: { numKeyHeads: 16, numValueHeads: 32, keyDim: 128, valueDim: 128, convWidth: 4 } },
  { deltaNet: { numKeyHeads: 2, numValueHeads: 4, keyDim: 16, valueDim: 16, convWidth: 4 } },
  { deltaNet: { numKeyHeads: 2, numValueHeads: 2, keyDim: 64, valueDim: 32, convWidth: 5 } },
];

const NVRTC = available(() => openNvrtc(thisMachine(), 13));

/**
 * The units to compile for the nth architecture. Each gets every head dimension and every group size, and both dtypes; over all
 * architectures together they make all combinations of the two sizes, and each size is there in both dtypes. Kernels are the same
 * text in either, of types of the same width: a third dimension of all combinations would take twice as long and show no more.
 */
function variants(n: number): KernelUnit[] {
  const models = GROUPS.flatMap((group, i) => {
    const dtype = DTYPES[(Math.floor(n / 2) + i + 1) % DTYPES.length]!;
    const headDim = HEAD_DIMS[(n + i) % HEAD_DIMS.length]!;
    const heads = {
      numHeads: 4 * group,
      numKvHeads: 4,
      headDim,
      attentionForms: [plainForm(i === 0 ? headDim / 2 : headDim)],
    };
    const hopper = ARCHITECTURES[n] === "sm_90a";
    const model = {
      ...WIDTHS[i % WIDTHS.length]!,
      ...heads,
      ...EXPERTS[i],
      ...RULES[i],
      blockSize: i === 0 ? 256 : 16,
    };
    const sharedBytes = (SHARED_KIB[ARCHITECTURES[n]!] ?? 227) * 1024;
    const units = [
      ...unitsOf(dtype, hopper, model, sharedBytes),
      ...unitsOf(dtype, hopper, { ...model, kvDtype: "float8_e4m3" }, sharedBytes),
    ];
    if (SIZES_MATTER.has(ARCHITECTURES[n]!) || i === n) return units;
    return units.filter(({ file }) => /attention/.test(file));
  });
  // Forms of attention on two architectures, whose kernels for prompts differ.
  const form = FORMS[ARCHITECTURES[n]!];
  const heads = { numHeads: 8, numKvHeads: 4, headDim: 256, blockSize: 16 };
  const formed = form ? unitsOf("bfloat16", n > 0, { ...WIDTHS[0], ...heads, attentionForms: [form] }) : [];
  const ofHopper =
    ARCHITECTURES[n] === "sm_90a"
      ? [...wholeLayers(), ...quantised(), ...integerExpertUnits(), ...wgmmaExpertUnits()]
      : [];
  const units = [...models, ...formed, ...ofHopper];
  return [...new Map(units.map((unit) => [unitName(unit), unit])).values()];
}

const FORMS: Readonly<Record<string, AttentionForm>> = {
  sm_80: { ...plainForm(0), hasQueryScales: true, hasSoftCap: true, hasSinks: true, readsOnly: true },
  sm_90a: { ...plainForm(64), hasQueryScales: true, hasSoftCap: true, hasSinks: true, normsValues: true },
};

/** Whole layers in one launch, of sizes that it takes, with caches in 16 bits and in eight. */
function wholeLayers(): KernelUnit[] {
  const heads = { numHeads: 16, numKvHeads: 8, headDim: 128, attentionForms: [plainForm(128)] };
  const model = { ...WIDTHS[1], ...heads, blockSize: 16 };
  return [
    ...unitsOf("bfloat16", true, model),
    ...unitsOf("float16", true, { ...model, kvDtype: "float8_e4m3" }),
  ].filter(({ file }) => file === "decode_layers.cu");
}

/** Products by quantised weights: codes become elements of each dtype by other instructions. */
function quantised(): KernelUnit[] {
  const heads = { numHeads: 16, numKvHeads: 8, headDim: 128, attentionForms: [plainForm(128)] };
  return DTYPES.flatMap((dtype) => unitsOf(dtype, true, { ...WIDTHS[1], ...heads, blockSize: 16 })).filter(
    ({ file }) => /quantis|float8/.test(file),
  );
}

test("the wrappers compile every file there is, and every kernel is in one", () => {
  const compiled = new Set(ARCHITECTURES.flatMap((_, n) => variants(n).map(({ file }) => file)));
  expect([...compiled].sort()).toEqual([...KERNEL_FILES]);
  expect(new Set([...SIGNATURES.values()].map(({ file }) => file))).toEqual(compiled);
});

test.each([
  ["16", false],
  ["eight", true],
] as const)(
  "with caches in %s bits all head dimensions meet all group sizes, each in both dtypes",
  (_, float8) => {
    const combinations = ARCHITECTURES.flatMap((_, n) => variants(n))
      .filter(
        ({ file, defines }) => file === "attention_decode.cu" && Boolean(defines!["CACHE_FLOAT8"]) === float8,
      )
      .map(({ defines }) => defines!);
    const distinct = (...macros: readonly string[]) =>
      new Set(combinations.map((defines) => macros.map((macro) => defines[macro]).join("/"))).size;
    expect(distinct("HEAD_DIM", "GROUP_SIZE")).toBe(HEAD_DIMS.length * GROUPS.length);
    expect(distinct("HEAD_DIM", "DTYPE_BF16")).toBe(HEAD_DIMS.length * DTYPES.length);
    expect(distinct("GROUP_SIZE", "DTYPE_BF16")).toBe(GROUPS.length * DTYPES.length);
  },
);

test("each architecture compiles what has tensor cores in both dtypes", () => {
  for (const [n, arch] of ARCHITECTURES.entries()) {
    // On Hopper the widest heads alone have the prefill of other architectures.
    const own =
      arch === "sm_90a" ? /attention_decode|hopper|wgmma|linear|draw/ : /attention_(decode|prefill)/;
    const units = variants(n).filter(({ file }) => own.test(file));
    const filesIn = (bf16: boolean) => [
      ...new Set(
        units.flatMap(({ file, defines }) => (Boolean(defines!["DTYPE_BF16"]) === bf16 ? [file] : [])),
      ),
    ];
    expect(filesIn(true).sort()).toEqual(filesIn(false).sort());
  }
});

/** Files whose code depends on sizes on an architecture otherwise than on sm_80, where all have all of them. */
const isSized = (arch: string, file: string) => {
  if (arch === "sm_80") return true;
  return (arch === "sm_90a" ? /attention|hopper|wgmma|linear|layers|draw/ : /attention/).test(file);
};

/** The variants that are compiled quickly. */
const fewOf = (n: number) => coveringUnits(variants(n), (file) => isSized(ARCHITECTURES[n]!, file));

test("what is compiled quickly has every file in every dtype, and every value of every macro that matters", () => {
  for (const [n, arch] of ARCHITECTURES.entries()) {
    const values = (units: readonly KernelUnit[]) =>
      [...new Set(units.flatMap((unit) => valuesOf(unit, isSized(arch, unit.file))))].sort();
    const [all, kept] = [variants(n), fewOf(n)];
    expect(values(kept), arch).toEqual(values(all));
    expect(kept.length).toBeLessThan(0.7 * all.length);
  }
});

/** All variants as users get them, as the CI asks for in a step of its own. */
const OPTIMISED = process.env["OCTAVO_OPTIMISE_KERNELS"] === "1";

/** Compiled in half the time: each instruction is assembled for its architecture, and code is not optimised. */
const QUICK = ["--Ofast-compile=max", "--minimal"];

/**
 * Only the optimiser knows whether the products of Hopper's warp groups run one after another, and whether registers can move from
 * one group to another: without it, they are said to be too slow. Optimised code must be free of this, too.
 */
const UNKNOWN_UNOPTIMISED =
  /^(\S+: )?ptxas info +: \(C75(04|19)\) Potential Performance Loss: ('setmaxnreg' ignored|wgmma\.mma_async instructions are serialized)/;

describeWith("OCTAVO_REQUIRE_NVRTC", NVRTC, "NVRTC compiles without a warning", ({ nvrtc, files }) => {
  const folder = mkdtempSync(join(tmpdir(), "octavo-compile-"));
  afterAll(() => rmSync(folder, { recursive: true }));

  test.each(ARCHITECTURES.map((arch, n) => [arch, n] as const))("for %s", async (arch, n) => {
    const warnings: string[] = [];
    const compiler = new Compiler(nvrtc, {
      ...{ sourceFolder: KERNEL_FOLDER, cacheFolder: folder, arch, nvrtcFiles: files },
      extraOptions: OPTIMISED ? [] : QUICK,
      warn: (message) => warnings.push(...message.split("\n")),
    });
    const units = OPTIMISED ? variants(n) : fewOf(n);
    const cubins = await compiler.compileAll(units);
    for (const [i, cubin] of cubins.entries()) {
      const entries = [...SIGNATURES].filter(([, { file }]) => file === units[i]!.file);
      const image = Buffer.from(cubin);
      const missing = entries.filter(([entry]) => !image.includes(`.text.${entry}`));
      expect(missing.map(([entry]) => entry)).toEqual([]);
    }
    expect(warnings.filter((line) => OPTIMISED || !UNKNOWN_UNOPTIMISED.test(line))).toEqual([]);
  });
});
