import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM, ModelDataError } from "octavo";
import { Random } from "../contract/random.ts";
import { temporaryFolder } from "../support.ts";
import { safetensors, type TensorData } from "../unit/loader/support.ts";
import { QUANTISED_FIXTURES } from "./fixtures.ts";

setDefaultTimeout(300_000);

const ROUNDS = 60;
/** Dtypes by the bytes of an element. */
const DTYPES: Readonly<Record<number, readonly string[]>> = {
  1: ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"],
  2: ["BF16", "F16", "I16"],
  4: ["F32", "I32", "U32"],
  8: ["I64", "F64"],
};

type Tensors = Record<string, TensorData>;

function readTensors(path: string): Tensors {
  const file = readFileSync(path);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, start));
  return Object.fromEntries(
    Object.entries<{ dtype: string; shape: number[]; data_offsets: [number, number] }>(header)
      .filter(([name]) => name !== "__metadata__")
      .map(
        ([
          name,
          {
            dtype,
            shape,
            data_offsets: [from, to],
          },
        ]) => [name, { dtype, shape, data: new Uint8Array(file.subarray(start + from, start + to)) }],
      ),
  );
}

const MUTATIONS: readonly ((tensors: Tensors, name: string, random: Random) => void)[] = [
  (tensors, name) => void delete tensors[name],
  (tensors, name, random) => {
    const others = Object.keys(tensors);
    tensors[name] = tensors[others[random.int(others.length)]!]!;
  },
  (tensors, name) => {
    const { shape, ...rest } = tensors[name]!;
    tensors[name] = { ...rest, shape: shape.toReversed() };
  },
  (tensors, name, random) => {
    const { shape, ...rest } = tensors[name]!;
    tensors[name] = {
      ...rest,
      shape: random.int(2) === 0 ? [1, ...shape] : [shape.reduce((a, b) => a * b, 1)],
    };
  },
  (tensors, name, random) => {
    const { dtype, shape, data } = tensors[name]!;
    const size = data.byteLength / shape.reduce((product, extent) => product * extent, 1);
    const others = DTYPES[size]!.filter((each) => each !== dtype);
    tensors[name] = { dtype: others[random.int(others.length)]!, shape, data };
  },
  (tensors, name) => {
    const [rows = 1, ...rest] = tensors[name]!.shape;
    const { dtype, data } = tensors[name]!;
    const bytes = new Uint8Array(data.buffer);
    if (rows < 2) return;
    tensors[name] = {
      dtype,
      shape: [rows - 1, ...rest],
      data: bytes.slice(0, (bytes.length / rows) * (rows - 1)),
    };
  },
  (tensors, name, random) => {
    const { dtype, shape, data } = tensors[name]!;
    const bytes = new Uint8Array(data.buffer).slice();
    for (let i = 0; i < 8; i++) bytes[random.int(bytes.length)] = random.int(256);
    tensors[name] = { dtype, shape, data: bytes };
  },
  (tensors, name, random) => {
    const suffixes = [
      "weight",
      "qweight",
      "weight_packed",
      "weight_scale",
      "g_idx",
      "bias",
      "weight_zero_point",
    ];
    tensors[name.replace(/\w+$/, suffixes[random.int(suffixes.length)]!)] = tensors[name]!;
  },
];

test.each(QUANTISED_FIXTURES.map(({ format, modelDir }) => [format, modelDir] as const))(
  "%s: a tensor that is not as it was is refused by a typed error, or loads",
  async (_, modelDir) => {
    const random = new Random(11);
    using folder = temporaryFolder();
    for (const name of ["config.json", "hf_quant_config.json"]) {
      const file = Bun.file(join(modelDir, name));
      if (await file.exists()) writeFileSync(folder.file(name), await file.text());
    }
    const original = readTensors(join(modelDir, "model.safetensors"));
    const names = Object.keys(original).filter((name) => name.includes("_proj."));
    let refused = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const tensors = { ...original };
      const name = names[random.int(names.length)]!;
      MUTATIONS[round % MUTATIONS.length]!(tensors, name, random);
      writeFileSync(folder.file("model.safetensors"), safetensors(tensors));
      try {
        await using llm = await LLM.create(folder.path, {
          device: "cpu",
          skipTokenizerInit: true,
          maxModelLen: 32,
        });
        expect(llm.weights.bytes).toBeGreaterThan(0);
      } catch (error) {
        if (!(error instanceof ModelDataError))
          throw new Error(`${name}, mutation ${round}`, { cause: error });
        expect(error.message).toContain(folder.path);
        expect(error.message).not.toContain("\n");
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(ROUNDS / 3);
  },
);

/** An infinity in each dtype of scales. */
const INFINITY: Readonly<Record<string, readonly number[]>> = {
  F16: [0x00, 0x7c],
  BF16: [0x80, 0x7f],
  F32: [0x00, 0x00, 0x80, 0x7f],
};

test.each(QUANTISED_FIXTURES.map(({ format, modelDir }) => [format, modelDir] as const))(
  "%s: a scale that is not finite is refused",
  async (_, modelDir) => {
    using folder = temporaryFolder();
    for (const name of ["config.json", "hf_quant_config.json"]) {
      const file = Bun.file(join(modelDir, name));
      if (await file.exists()) writeFileSync(folder.file(name), await file.text());
    }
    const tensors = readTensors(join(modelDir, "model.safetensors"));
    const name = Object.keys(tensors).findLast((each) =>
      /_proj\.(?:weight_scale(?:_inv)?|scales)$/.test(each),
    )!;
    const { dtype, shape, data } = tensors[name]!;
    const bytes = new Uint8Array(data.buffer).slice();
    bytes.set(INFINITY[dtype]!, bytes.length - INFINITY[dtype]!.length);
    writeFileSync(
      folder.file("model.safetensors"),
      safetensors({ ...tensors, [name]: { dtype, shape, data: bytes } }),
    );
    const refused = LLM.create(folder.path, { device: "cpu", skipTokenizerInit: true });
    await expect(refused).rejects.toThrow(`tensor "${name}" has a scale that is no finite number`);
  },
);
