import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER } from "../../../../src/backend/cuda/kernel-library.ts";
import { type KernelUnit, unitName } from "../../../../src/backend/cuda/kernel-source.ts";
import type { FloatDType } from "../../../../src/base/dtype.ts";
import { openNvrtc, thisMachine } from "../../../../src/cuda/open-cuda.ts";
import { available, describeWith } from "../../../requirements.ts";
import { KERNEL_FILES, SIGNATURES } from "./kernel-signatures.ts";
import { unitsOf } from "./kernel-units.ts";

setDefaultTimeout(300_000);

/** Of those that differ: sm_86 compiles what sm_80 does. */
const ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"] as const;
const HEAD_DIMS = [64, 96, 128, 256] as const;
const GROUPS = [1, 2, 4, 7, 8] as const;
const DTYPES = ["bfloat16", "float16"] as const satisfies FloatDType[];

/** Sizes that pass through every specialisation but those of attention: widths for vectors and not, narrow and wide. */
const WIDTHS = [
  { hiddenSize: 256, intermediateSize: 1024, vocabSize: 2048 },
  { hiddenSize: 1024, intermediateSize: 3072, vocabSize: 2048 },
  { hiddenSize: 8192, intermediateSize: 28672, vocabSize: 151936 },
  { hiddenSize: 1001, intermediateSize: 1003, vocabSize: 2001 },
] as const;

const NVRTC = available(() => openNvrtc(thisMachine(), 13));

/**
 * The units to compile for the nth architecture. Each gets every head dimension and every group size in both dtypes; over
 * all architectures together they make all combinations, as many as compile in the time that a test may take.
 */
function variants(n: number): KernelUnit[] {
  const models = DTYPES.flatMap((dtype, d) =>
    GROUPS.flatMap((group, i) => {
      const headDim = HEAD_DIMS[(n + d + i) % HEAD_DIMS.length]!;
      const widths = WIDTHS[i % WIDTHS.length]!;
      const heads = {
        numHeads: 4 * group,
        numKvHeads: 4,
        headDim,
        attentionForms: [
          {
            rotaryDim: i === 0 ? headDim / 2 : headDim,
            hasQueryScales: false,
            hasSoftCap: false,
            hasSinks: false,
          },
        ],
      };
      const hopper = ARCHITECTURES[n] === "sm_90a";
      const model = { ...widths, ...heads, blockSize: i === 0 ? 256 : 16 };
      // A cache in eight bits with one dtype of activations, as it makes no difference to the products, and on as many
      // architectures as make all combinations: the last ones compile what sm_89 does.
      const float8 = d === 0 && n < HEAD_DIMS.length;
      return [
        ...unitsOf(dtype, hopper, model),
        ...(float8 ? unitsOf(dtype, hopper, { ...model, kvDtype: "float8_e4m3" }) : []),
      ];
    }),
  );
  return [...new Map(models.map((unit) => [unitName(unit), unit])).values()];
}

test("the wrappers compile every file there is, and every kernel is in one", () => {
  const compiled = new Set(ARCHITECTURES.flatMap((_, n) => variants(n).map(({ file }) => file)));
  expect([...compiled].sort()).toEqual([...KERNEL_FILES]);
  expect(new Set([...SIGNATURES.values()].map(({ file }) => file))).toEqual(compiled);
});

test("all head dimensions meet all group sizes in both dtypes", () => {
  const attention = ARCHITECTURES.flatMap((_, n) => variants(n)).filter(({ file }) =>
    file.includes("decode"),
  );
  const combinations = attention.map(({ defines }) => {
    const { HEAD_DIM, GROUP_SIZE, DTYPE_BF16, CACHE_FLOAT8 } = defines!;
    return `${HEAD_DIM}/${GROUP_SIZE}/${DTYPE_BF16 ? "bf16" : "f16"}/${CACHE_FLOAT8 ? "eight bits" : "16"}`;
  });
  const of16 = combinations.filter((combination) => combination.endsWith("/16"));
  expect(new Set(of16).size).toBe(HEAD_DIMS.length * GROUPS.length * DTYPES.length);
  const of8 = combinations.filter((combination) => combination.endsWith("bits"));
  const shapes = of8.map((combination) => combination.replace(/b?f16/, ""));
  expect(new Set(shapes).size).toBe(HEAD_DIMS.length * GROUPS.length);
});

describeWith("OCTAVO_REQUIRE_NVRTC", NVRTC, "NVRTC compiles without a warning", ({ nvrtc, files }) => {
  const folder = mkdtempSync(join(tmpdir(), "octavo-compile-"));
  afterAll(() => rmSync(folder, { recursive: true }));

  test.each(ARCHITECTURES.map((arch, n) => [arch, n] as const))("for %s", async (arch, n) => {
    const warnings: string[] = [];
    const compiler = new Compiler(nvrtc, {
      ...{ sourceFolder: KERNEL_FOLDER, cacheFolder: folder, arch, nvrtcFiles: files },
      warn: (message) => warnings.push(message),
    });
    const wanted = variants(n);
    const cubins = await compiler.compileAll(wanted);
    expect(warnings).toEqual([]);
    for (const [i, cubin] of cubins.entries()) {
      const entries = [...SIGNATURES].filter(([, { file }]) => file === wanted[i]!.file);
      const image = Buffer.from(cubin);
      expect(entries.filter(([entry]) => !image.includes(`.text.${entry}`)).map(([entry]) => entry)).toEqual(
        [],
      );
    }
  });
});
