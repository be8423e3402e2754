import {
  type BatchTensors,
  JOIN_WORDS,
  type LinearFusion,
  LOGIT_EDIT_WORDS,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
  type StepBatch,
} from "../../src/backend/backend.ts";
import { rowWords } from "../../src/backend/row-words.ts";
import { denseWeight } from "../../src/backend/weight.ts";
import type { FloatDType } from "../../src/base/dtype.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../src/base/sampling-params.ts";
import type { Extents, Operands, Refusals, Scalars } from "./refusals.ts";

/** The operands that are matrices. */
const MATRICES: Readonly<Record<string, readonly string[]>> = {
  embedding: ["table"],
  linear: ["weight"],
  experts: ["gateUp", "down"],
  gateRows: ["gate"],
  drawTokens: ["weight"],
};

/** The refusals of a backend that computes in `float`, and takes matrices of the other dtypes too. */
export function refusals(float: FloatDType, matrixDtypes: readonly FloatDType[] = []): Refusals[] {
  return tables(float).map((table) => {
    const matrices = (MATRICES[table.op] ?? []).map((name) => [name, matrixDtypes] as const);
    return { ...table, dtypes: { ...table.dtypes, ...Object.fromEntries(matrices) } };
  });
}

function tables(float: FloatDType): Refusals[] {
  const rows: Readonly<Record<string, Extents>> = {
    tokenIds: ["int32", 3],
    positions: ["int32", 3],
    cuSeqlensQ: ["int32", 3],
    contextLens: ["int32", 2],
    rowSlots: ["int32", 2],
  };
  const batch = { ...rows, slotMapping: ["int32", 3] } as const;
  const progress: Readonly<Record<string, Extents>> = {
    tokens: ["int32", 4, 9],
    lengths: ["int32", 4],
    numComputedTokens: ["int32", 4],
  };
  const sampled: Readonly<Record<string, Extents>> = {
    logits: ["float32", 2, 40],
    sampleSlots: ["int32", 2],
    samplePositions: ["int32", 2],
    ...progress,
    params: ["uint32", 4, SLOT_WORDS],
    counts: ["uint32", 4, 40],
  };
  const edited: Readonly<Record<string, Extents>> = {
    edits: ["uint32", 4, MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS],
    badWords: ["uint32", 4, MAX_BAD_WORD_TOKENS],
    allowed: ["uint32", 4, 2],
  };
  return [
    {
      op: "rotaryTable",
      operands: { out: ["float32", 3, 8], frequencies: ["float32", 4] },
      free: { out: [0] },
      apart: { out: ["frequencies"] },
      run: (backend, { out, frequencies }) => backend.rotaryTable(out!, frequencies!, 1),
    },
    {
      op: "embedding",
      operands: { out: [float, 3, 8], table: [float, 5, 8], ids: ["int32", 3] },
      free: { table: [0] },
      apart: { out: ["table", "ids"] },
      run: (backend, { out, table, ids }) => backend.embedding(out!, table!, ids!),
    },
    {
      op: "gatherRows",
      operands: { out: [float, 3, 8], x: [float, 5, 8], rows: ["int32", 3] },
      free: { x: [0] },
      apart: { out: ["x", "rows"] },
      run: (backend, { out, x, rows }) => backend.gatherRows(out!, x!, rows!),
    },
    ...linearTables(float),
    ...expertTables(float),
    {
      op: "rmsNorm",
      operands: {
        ...{ out: [float, 3, 8], x: [float, 3, 8], weight: [float, 8], addTo: [float, 3, 8] },
        scale: ["float32", 1],
      },
      scalars: { adds: 1 },
      apart: { out: ["x", "weight", "addTo"] },
      // What is multiplied is a sum.
      wrong: [{ adds: 0 }],
      run: (backend, { out, x, weight, addTo, scale }, { adds }) =>
        backend.rmsNorm(out!, x!, weight!, 1e-6, adds ? addTo : undefined, scale),
    },
    {
      op: "capLogits",
      operands: { logits: ["float32", 3, 8] },
      free: { logits: [0, 1] },
      scalars: { cap: 30 },
      wrong: [{ cap: 0 }, { cap: Number.NaN }, { cap: Infinity }],
      run: (backend, { logits }, scalars) => backend.capLogits(logits!, scalars["cap"]!),
    },
    {
      op: "layerNorm",
      operands: { out: [float, 3, 8], x: [float, 3, 8], weight: [float, 8], bias: [float, 8] },
      apart: { out: ["x", "weight", "bias"] },
      run: (backend, { out, x, weight, bias }) => backend.layerNorm(out!, x!, weight!, bias, 1e-6),
    },
    {
      op: "activation",
      operands: { out: [float, 3, 8], x: [float, 3, 8] },
      apart: { out: ["x"] },
      run: (backend, { out, x }) => backend.activation(out!, x!, "gelu"),
    },
    {
      op: "multiplyColumns",
      operands: { x: [float, 3, 8], factors: [float, 3, 24] },
      free: { factors: [1] },
      scalars: { start: 16 },
      apart: { x: ["factors"] },
      wrong: [{ start: -8 }, { start: 17 }, { start: Number.NaN }, { factors: [float, 3, 23] }],
      run: (backend, { x, factors }, { start }) => backend.multiplyColumns(x!, factors!, start!),
    },
    attendTable(float, batch),
    readerTable(float, batch),
    {
      op: "joinSlots",
      operands: {
        ...{ ...progress, ...edited, joins: ["int32", 2, JOIN_WORDS] },
        ...{ params: ["uint32", 4, SLOT_WORDS], counts: ["uint32", 4, 40] },
      },
      contents: { joins: [0, 1, 1, 0, 1, 1, 1, 0] },
      unchecked: Object.keys(edited),
      free: { joins: [0], tokens: [1], counts: [1] },
      run: (backend, { joins, ...operands }) => backend.joinSlots(slotsOf(operands), joins!),
    },
    {
      op: "prepareBatch",
      operands: {
        ...{ ...rows, ...progress, slotMappings: ["int32", 2, 4], blockTables: ["int32", 2, 4, 7] },
        ...{ steps: ["uint32", 1], areas: ["int32", 2, 2 * rowWords(2)] },
        ...{ sampleSlots: ["int32", 2], samplePositions: ["int32", 2], tokenIndices: ["int32", 2] },
      },
      // The same step after any number of others.
      contents: { areas: Array(4).fill([0, 1, 0, -1, 0, 0, 1, 2, 1, -1, 0, 0]).flat() },
      free: { tokens: [1], slotMappings: [1], blockTables: [2], areas: [1] },
      wrong: [
        { sampleSlots: ["int32", 3], samplePositions: ["int32", 3], tokenIndices: ["int32", 3] },
        { areas: ["int32", 2, 2 * rowWords(2) - 1] },
        { areas: ["int32", 0, 2 * rowWords(2)] },
        { slotMappings: ["int32", 2, 2] },
        { slotMappings: ["int32", 0, 4], blockTables: ["int32", 0, 4, 7] },
      ],
      run: (backend, operands) => {
        const { steps, areas } = operands;
        const inbox = { steps: steps!, areas: areas! };
        backend.prepareBatch(stepBatchOf(operands), samplesOf(operands), inbox, slotsOf(operands));
      },
    },
    {
      op: "post",
      operands: { areas: ["int32", 2, 5], results: ["int32", 4], steps: ["uint32", 1] },
      free: { areas: [1], results: [0] },
      dtypes: { results: ["uint32", "float32"] },
      apart: { areas: ["results"] },
      wrong: [{ results: ["int32", 6] }, { areas: ["int32", 2, 3] }, { areas: ["int32", 0, 5] }],
      run: (backend, { areas, results, steps }) => backend.post({ steps: steps!, areas: areas! }, results!),
    },
    {
      op: "scatter",
      operands: { target: ["int32", 4, 7], indices: ["int32", 2], values: ["int32", 2] },
      free: { target: [0, 1, 2] },
      dtypes: { target: ["uint32", "float32"], values: ["uint32", "float32"] },
      apart: { target: ["indices", "values"] },
      run: (backend, { target, indices, values }) => backend.scatter(target!, indices!, values!),
    },
    {
      op: "processLogits",
      operands: { ...sampled, ...edited, out: ["float32", 2, 40] },
      free: { tokens: [1] },
      apart: { out: ["logits"] },
      run: (backend, { out, logits, ...operands }) =>
        backend.processLogits(out!, logits!, samplesOf(operands), slotsOf(operands)),
    },
    {
      op: "sample",
      operands: { ...sampled, ...edited, processed: ["float32", 2, 40], out: ["int32", 2] },
      unchecked: Object.keys(edited),
      free: { tokens: [1] },
      apart: { out: ["logits", "processed", "sampleSlots", "samplePositions"] },
      run: (backend, { out, logits, processed, ...operands }) =>
        backend.sample(out!, logits!, processed!, samplesOf(operands), slotsOf(operands)),
    },
    {
      op: "drawTokens",
      operands: {
        ...{ ...sampled, ...edited, hidden: [float, 2, 8], weight: [float, 40, 8], norm: [float, 8] },
        out: ["int32", 2],
      },
      unchecked: Object.keys(edited),
      free: { tokens: [1] },
      apart: {
        logits: ["hidden", "weight", "norm"],
        out: ["hidden", "weight", "norm", "logits", "sampleSlots", "samplePositions"],
      },
      run: (backend, { out, hidden, weight, norm, logits, ...operands }) => {
        const head = { weight: denseWeight(weight!), norm: { weight: norm!, eps: 1e-6 } };
        backend.drawTokens(out!, hidden!, head, logits!, samplesOf(operands), slotsOf(operands));
      },
    },
    {
      op: "logprobs",
      title: "of rows",
      operands: {
        ...{ logits: ["float32", 3, 5], tokens: ["int32", 3], rows: ["int32", 2], chosen: ["float32", 2] },
        ...{ ranks: ["int32", 2], topIds: ["int32", 2, 3], topLogprobs: ["float32", 2, 3] },
      },
      free: { logits: [1] },
      apart: {
        ...{ chosen: ["logits", "tokens", "rows"], ranks: ["logits", "tokens", "rows"] },
        ...{ topIds: ["logits", "tokens", "rows"], topLogprobs: ["logits", "tokens", "rows"] },
      },
      run: (backend, { logits, tokens, rows, chosen, ranks, topIds, topLogprobs }) => {
        const out = { chosen: chosen!, ranks: ranks!, topIds: topIds!, topLogprobs: topLogprobs! };
        backend.logprobs(out, logits!, tokens!, rows!);
      },
    },
    {
      op: "logprobs",
      operands: {
        ...{ logits: ["float32", 2, 5], tokens: ["int32", 2], chosen: ["float32", 2], ranks: ["int32", 2] },
        ...{ topIds: ["int32", 2, 3], topLogprobs: ["float32", 2, 3] },
      },
      free: { logits: [1] },
      apart: {
        ...{ chosen: ["logits", "tokens"], ranks: ["logits", "tokens"] },
        ...{ topIds: ["logits", "tokens"], topLogprobs: ["logits", "tokens"] },
      },
      wrong: [{ topIds: ["int32", 2, 6], topLogprobs: ["float32", 2, 6] }],
      run: (backend, { logits, tokens, chosen, ranks, topIds, topLogprobs }) => {
        const out = { chosen: chosen!, ranks: ranks!, topIds: topIds!, topLogprobs: topLogprobs! };
        backend.logprobs(out, logits!, tokens!);
      },
    },
  ];
}

/** Products with each thing that may surround them, and with none. */
function linearTables(float: FloatDType): Refusals[] {
  const table = (
    title: string,
    surroundings: Refusals["operands"],
    fusion: (operands: Operands, scalars: Scalars) => LinearFusion,
    more: Partial<Refusals> = {},
  ): Refusals => ({
    ...{ op: "linear", title },
    operands: { out: [float, 3, 4], x: [float, 3, 8], weight: [float, 4, 8], ...surroundings },
    scalars: { outputs: 4 },
    apart: { out: ["x", "weight", ...Object.keys(surroundings).filter((name) => name !== "out")] },
    ...more,
    run: (backend, { out, x, weight, ...operands }, scalars) => {
      const shape = [scalars["outputs"]!, weight!.dim(1)] as const;
      backend.linear(out!, x!, { format: "dense", shape, data: weight! }, fusion(operands, scalars));
    },
  });
  const plain = { kind: "silu", gated: false } as const;
  const gated = { kind: "silu", gated: true } as const;
  return [
    table("alone", {}, () => ({}), { dtypes: { out: ["float32"] } }),
    table("after a norm", { norm: [float, 8] }, ({ norm }) => ({ norm: { weight: norm!, eps: 1e-6 } }), {
      dtypes: { out: ["float32"] },
    }),
    table("with a bias", { bias: [float, 4] }, ({ bias }) => ({ bias })),
    table(
      "with a sum",
      { addTo: [float, 3, 4] },
      ({ addTo }, { activate }) => {
        return activate ? { addTo, activation: plain } : { addTo };
      },
      { wrong: [{ activate: 1 }] },
    ),
    table("with an activation", {}, () => ({ activation: plain })),
    table("with a gated activation", { out: [float, 3, 2] }, () => ({ activation: gated }), {
      wrong: [{ weight: [float, 5, 8], outputs: 5 }],
    }),
  ];
}

function expertTables(float: FloatDType): Refusals[] {
  // 3 tokens of 16 dimensions, 2 experts of 8.
  const biases = {
    routerBias: ["float32", 2],
    gateUpBias: [float, 32],
    downBias: [float, 32],
    expertScales: ["float32", 2],
  } as const;
  return [
    {
      op: "experts",
      operands: {
        ...{ out: [float, 3, 16], x: [float, 3, 16], logits: ["float32", 3, 2] },
        ...{
          gateUp: [float, 32, 16],
          down: [float, 32, 8],
          norm: [float, 16],
          addTo: [float, 3, 16],
          ...biases,
        },
      },
      scalars: { count: 2, perToken: 1 },
      apart: { out: ["x", "logits", "gateUp", "down", "norm", "addTo", ...Object.keys(biases)] },
      wrong: [{ perToken: 0 }, { perToken: 3 }, { count: 3 }],
      run: (backend, { out, x, logits, gateUp, down, norm, addTo, ...given }, { count, perToken }) =>
        backend.experts(
          ...([out!, x!, logits!] as const),
          { count: count!, gateUp: denseWeight(gateUp!), down: denseWeight(down!), ...given },
          { perToken: perToken!, softmaxOver: "all", activation: { kind: "silu" } },
          { norm: { weight: norm!, eps: 1e-6 }, addTo },
        ),
    },
    {
      op: "gateRows",
      operands: { y: [float, 3, 4], x: [float, 3, 16], gate: [float, 1, 16], norm: [float, 16] },
      free: { y: [1] },
      apart: { y: ["x", "gate", "norm"] },
      run: (backend, { y, x, gate, norm }) =>
        backend.gateRows(y!, x!, denseWeight(gate!), { weight: norm!, eps: 1e-6 }),
    },
  ];
}

function attendTable(float: FloatDType, batch: Refusals["operands"]): Refusals {
  const { tokenIds: _, ...metadata } = batch;
  const pool = (...shape: number[]): Record<"keys" | "values", Extents> => ({
    keys: [float, ...shape],
    values: [float, ...shape],
  });
  return {
    op: "attend",
    operands: {
      ...{ out: [float, 3, 128], qkv: [float, 3, 256], ...pool(5, 2, 16, 32) },
      ...{ ...metadata, blockTables: ["int32", 4, 7], cosSin: ["float32", 9, 16] },
      ...{ queryNorm: [float, 32], keyNorm: [float, 32] },
      ...{ queryScales: ["float32", 9], sinks: ["float32", 4] },
    },
    scalars: { numHeads: 4, numKvHeads: 2, numTokens: 3, decodeRows: 1, window: 0, softCap: 1 },
    free: { blockTables: [0, 1], cosSin: [0], queryScales: [0] },
    apart: {
      out: ["qkv", "keys", "values", "sinks"],
      qkv: ["keys", "values", "cosSin", "queryScales", "sinks", "queryNorm", "keyNorm"],
    },
    wrong: [
      ...[pool(5, 3, 16, 32), pool(5, 2, 8, 32), pool(5, 2, 16, 64)],
      { numKvHeads: 0, qkv: [float, 3, 128], ...pool(5, 0, 16, 32) },
      { numHeads: 5, out: [float, 3, 160], qkv: [float, 3, 288] },
      ...[{ numTokens: 2 }, { decodeRows: 3 }, { window: -1 }, { window: Number.NaN }],
      ...[{ softCap: 0 }, { softCap: Infinity }, { softCap: Number.NaN }],
      { cosSin: ["float32", 9, 64] },
    ],
    run: (backend, operands, scalars) => {
      const { out, qkv, keys, values, cosSin, queryNorm, keyNorm, queryScales, sinks, ...rest } = operands;
      const { numHeads, numKvHeads, window, softCap } = scalars;
      backend.attend(out!, qkv!, { keys: keys!, values: values! }, batchOf(rest, scalars), {
        ...{ numHeads: numHeads!, numKvHeads: numKvHeads!, headDim: 32, scale: 1, window: window! },
        ...{ queryScales, sinks, softCap },
        ...{ cosSin: cosSin!, headNorm: { query: queryNorm!, key: keyNorm!, eps: 1e-6 } },
      });
    },
  };
}

/** Of a layer that has queries alone. */
function readerTable(float: FloatDType, batch: Refusals["operands"]): Refusals {
  const { tokenIds: _, ...metadata } = batch;
  return {
    ...{ op: "attend", title: "of a cache that is only read" },
    operands: {
      ...{ out: [float, 3, 128], qkv: [float, 3, 128], keys: [float, 5, 2, 16, 32] },
      ...{ values: [float, 5, 2, 16, 32], ...metadata, blockTables: ["int32", 4, 7] },
      queryNorm: [float, 32],
    },
    scalars: { readsOnly: 1 },
    free: { blockTables: [0, 1] },
    apart: { out: ["qkv", "keys", "values"], qkv: ["keys", "values", "queryNorm"] },
    // A layer with keys of its own has a norm of them beside that of queries.
    wrong: [{ readsOnly: 0 }, { readsOnly: 0, qkv: [float, 3, 256] }],
    run: (backend, { out, qkv, keys, values, queryNorm, ...rest }, { readsOnly }) =>
      backend.attend(out!, qkv!, { keys: keys!, values: values! }, batchOf(rest), {
        ...{ numHeads: 4, numKvHeads: 2, headDim: 32, scale: 1, window: 0, readsOnly: readsOnly === 1 },
        headNorm: { query: queryNorm!, eps: 1e-6 },
      }),
  };
}

/** A batch of two rows and three tokens on these tensors; those that an op does not look at may be missing. */
function batchOf(tensors: Operands, { numTokens = 3, decodeRows = 1 }: Scalars = {}): BatchTensors {
  const extents = { numTokens, numRows: 2, decodeRows, maxQueryLen: 2, blockSize: 16 };
  return { ...extents, ...tensors } as unknown as BatchTensors;
}

function stepBatchOf(tensors: Operands): StepBatch {
  return { ...batchOf(tensors), slotMappings: tensors["slotMappings"]! };
}

function slotsOf(tensors: Operands): SlotTensors {
  return tensors as unknown as SlotTensors;
}

function samplesOf({ sampleSlots, samplePositions, tokenIndices }: Operands): SampleRows {
  return { slots: sampleSlots!, positions: samplePositions!, tokenIndices: tokenIndices! };
}
