import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { JOIN_WORDS } from "../../../../src/backend/backend.ts";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { rowWords } from "../../../../src/backend/row-words.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import type { DType } from "../../../../src/base/dtype.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeOperands } from "./fake-operands.ts";
import { SIGNATURES } from "./kernel-signatures.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { machine, backend, launches } = recorder;
const operands = new FakeOperands();
const { bf16, f32, i32, batch, slotTables, sampleRows, layerCache } = operands;
const [VOCAB, WIDTH, UNITS] = [1280, 1024, 2048];
const SILU = { kind: "silu", gated: true } as const;

/** Calls every op, for a step of so many decode rows and a prompt of so many tokens, if any, with so many samples. */
function callAll(backend: CudaBackend, decodeRows: number, prompt: number, count: number): void {
  const step = batch({ decodeRows, prefill: prompt === 0 ? [] : [prompt] });
  const { numTokens: tokens, numRows } = step;
  const [slots, samples] = [slotTables(VOCAB), sampleRows(count)];
  const norm = { weight: bf16(WIDTH), eps: 1e-6 };
  const weight = (n: number, k: number) => denseWeight(bf16(n, k));
  const [x, logits, out] = [bf16(tokens, WIDTH), f32(count, VOCAB), i32(count)];

  backend.rotaryTable(f32(tokens, 64), f32(32), 1);
  backend.embedding(x, bf16(VOCAB, WIDTH), i32(tokens));
  backend.gatherRows(bf16(count, WIDTH), x, i32(count));
  backend.rmsNorm(bf16(tokens, WIDTH), x, norm.weight, norm.eps);
  backend.embedding(x, bf16(VOCAB, WIDTH), i32(tokens), 0, 2);
  backend.rmsNorm(x, bf16(tokens, WIDTH), norm.weight, norm.eps, x);
  backend.layerNorm(bf16(tokens, WIDTH), x, norm.weight, undefined, norm.eps);
  backend.activation(x, x, "silu");
  backend.multiplyColumns(x, bf16(tokens, 2 * WIDTH), WIDTH);
  backend.normProjections(bf16(tokens, 512), { query: bf16(256), key: bf16(128), eps: norm.eps });
  // A layer; then products that are of none, the last of a width that is left to parts.
  const [qkv, attended, activated] = [bf16(tokens, 1024), bf16(tokens, 512), bf16(tokens, UNITS)];
  const heads = { numHeads: 8, numKvHeads: 4, headDim: 64, scale: 0.125, window: 0, cosSin: f32(2048, 64) };
  backend.linear(qkv, x, weight(1024, WIDTH), { norm });
  backend.attend(attended, qkv, layerCache(4, 64), step, heads);
  backend.linear(x, attended, weight(WIDTH, 512), { addTo: x });
  backend.linear(activated, x, weight(2 * UNITS, WIDTH), { norm, activation: SILU });
  backend.linear(x, activated, weight(WIDTH, UNITS), { addTo: x });
  backend.linear(bf16(tokens, UNITS), x, weight(2 * UNITS, WIDTH), { norm, activation: SILU });
  backend.linear(bf16(tokens, 24), x, weight(48, WIDTH), { norm, activation: SILU });

  const experts = { count: 16, gateUp: weight(16 * 2 * 64, WIDTH), down: weight(16 * WIDTH, 64) };
  const spec = { perToken: 4, softmaxOver: "all", activation: { kind: "silu" } } as const;
  backend.experts(x, x, f32(tokens, 16), experts, spec, { norm, addTo: x });
  backend.gateRows(bf16(tokens, UNITS), x, weight(1, WIDTH), norm);

  const rule = { numKeyHeads: 2, numValueHeads: 4, keyDim: 32, valueDim: 64, convWidth: 4 };
  const [states, channels] = [300, 384];
  backend.deltaNet(
    ...([bf16(tokens, 256), bf16(tokens, channels + 256), f32(tokens, 8)] as const),
    { tails: bf16(states, 3, 4, channels), states: f32(states, 3, 4, 32, 64), layer: 1 },
    step,
    {
      ...{ ...rule, convolution: bf16(channels, 4), decayLog: f32(4), timeBias: f32(4) },
      norm: { weight: bf16(64), eps: norm.eps },
    },
  );
  backend.gateElements(x, bf16(tokens, WIDTH));
  const wide = { numHeads: 2, numKvHeads: 1, headDim: 512, scale: 1, window: 0 };
  backend.attend(bf16(tokens, 1024), bf16(tokens, 2048), layerCache(1, 512), step, wide);

  // By codes: in an order of their own, permuted, and of a width that has no order.
  const float8 = (n: number, k: number) =>
    backend.prepareWeight({
      ...{ format: "fp8", shape: [n, k], blockRows: 1, blockColumns: k },
      ...{ data: backend.empty("float8_e4m3", [n, k]), scales: f32(n, 1) },
    });
  const empty = (dtype: DType, columns: number) => backend.empty(dtype, [WIDTH, columns]);
  const permuted = backend.prepareWeight({
    ...{ format: "grouped", shape: [WIDTH, UNITS], bits: 4, groupSize: 128 },
    ...{ data: empty("uint8", UNITS / 2), scales: empty("float16", UNITS / 128) },
    ...{ zeros: empty("uint8", UNITS / 128), permutation: i32(UNITS) },
  });
  backend.linear(bf16(tokens, 512), x, float8(512, WIDTH), { norm });
  backend.linear(x, activated, permuted, { addTo: x });
  backend.linear(bf16(tokens, 50), x, float8(50, WIDTH));

  const inbox = { steps: operands.of("uint32", 1), areas: i32(2, rowWords(1) * Math.max(numRows, count)) };
  backend.prepareBatch(operands.stepBatch(step), sampleRows(numRows), inbox, slots);
  backend.post(inbox, out);
  backend.scatter(slots.blockTables, i32(count), i32(count));
  backend.joinSlots(slots, i32(count, JOIN_WORDS));
  backend.capLogits(logits, 30);
  backend.processLogits(logits, logits, samples, slots);
  backend.sample(out, logits, logits, samples, slots);
  backend.logprobs(
    { chosen: f32(count), ranks: i32(count), topIds: i32(count, 1), topLogprobs: f32(count, 1) },
    logits,
    out,
  );
  backend.drawTokens(out, bf16(count, WIDTH), { weight: weight(VOCAB, WIDTH), norm }, logits, samples, slots);
  backend.synchronize();
}

test("every kernel of the sources is launched by some op", () => {
  using older = new FakeMachine({ computeCapability: [8, 9] });
  callAll(older.backend(), 3, 20, 4);
  const all = [
    ...older.cuda.launches,
    ...launches(() => {
      callAll(backend, 1, 0, 1);
      callAll(backend, 3, 0, 3);
      callAll(backend, 0, 40, 40);
      callAll(backend, 0, 4096, 1);
      callAll(machine.backend("bfloat16", { quantiseActivations: true }), 0, 40, 1);
    }),
  ];
  const launched = new Set(all.map(({ entry }) => entry));
  // Those that need other ranks are launched in communicator.test.ts.
  const ofRanks = ["candidates.cu", "gather_words.cu", "reduce_add.cu"];
  const alone = [...SIGNATURES]
    .filter(([entry, { file }]) => !ofRanks.includes(file) && entry !== "sum_projections")
    .map(([entry]) => entry);
  expect([...launched].sort()).toEqual(alone.sort());
});

test("nothing is launched for no rows", () => {
  const slots = slotTables(100);
  const samples = sampleRows(0);
  const before = machine.cublas.matmuls.length;
  const none = launches(() => {
    backend.rotaryTable(f32(0, 8), f32(4), 1);
    backend.embedding(bf16(0, 64), bf16(5, 64), i32(0));
    backend.rmsNorm(bf16(0, 64), bf16(0, 64), bf16(64), 1e-6);
    backend.activation(bf16(0, 64), bf16(0, 64), "silu");
    const weight = denseWeight(bf16(128, 32));
    const activation = { kind: "silu", gated: true } as const;
    backend.linear(bf16(0, 64), bf16(0, 32), weight, { norm: { weight: bf16(32), eps: 1e-6 }, activation });
    backend.scatter(slots.blockTables, i32(0), i32(0));
    backend.joinSlots(slots, i32(0, JOIN_WORDS));
    backend.processLogits(f32(0, 100), f32(0, 100), samples, slots);
    backend.sample(i32(0), f32(0, 100), f32(0, 100), samples, slots);
    backend.drawTokens(
      i32(0),
      bf16(0, 256),
      { weight: denseWeight(bf16(100, 256)) },
      f32(0, 100),
      samples,
      slots,
    );
  });
  expect(none).toEqual([]);
  expect(machine.cublas.matmuls.length).toBe(before);
});
