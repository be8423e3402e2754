import { type AttentionShape, AttentionStep } from "../attention-step.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";
import { type Fixture, POISON } from "../fixture.ts";
import { batchTensors, extentsOf, type RaggedBatch, type RowShape, raggedBatch } from "../ragged-batch.ts";
import { slotTensors } from "../slot-table.ts";
import { stepAreas } from "../step-areas.ts";

const ALL_OF_A_GPU = "tokens for all of a GPU";

const BATCHES = {
  "one decode": [[1, 1]],
  "a decode past a block": [[17, 1]],
  "short decodes": [
    [16, 1],
    [17, 1],
    [40, 1],
  ],
  "long decodes": [
    [17, 1],
    [64, 1],
    [1000, 1],
  ],
  "one prefill": [[17, 17]],
  "many queries": [[130, 130]],
  "chunk with cached prefix": [
    [300, 13],
    [129, 4],
  ],
  "decode and chunk": [
    [5, 1],
    [33, 16],
  ],
  "decode, chunk and prompt": [
    [9, 1],
    [90, 75],
    [54, 54],
  ],
  mixed: [
    [5, 1],
    [130, 1],
    [33, 1],
    [74, 74],
    [90, 53],
  ],
  [ALL_OF_A_GPU]: [[9, 1], ...Array<RowShape>(155).fill([24, 24]), [90, 37]],
} satisfies Readonly<Record<string, readonly RowShape[]>>;
export type BatchName = keyof typeof BATCHES;

export function attendCases(addCase: Case): void {
  attentionCases(addCase);
  projectionCases(addCase);
  decodeCases(addCase);
  float8Cases(addCase);
}

/** What attention over the cache depends on: batches, blocks, windows, heads. */
function attentionCases(addCase: Case): void {
  let turn = 0;
  for (const name of [
    ...["one decode", "long decodes", "one prefill", "chunk with cached prefix", "mixed"],
  ] as BatchName[]) {
    for (const blockSize of [16, 64]) {
      for (const window of [0, 5, 100]) {
        const heads = { numHeads: 4, numKvHeads: 2, headDim: 64, rotaryDim: 64 };
        attendCase(addCase, name, { ...heads, blockSize, window, headNorm: turn++ % 2 === 1 });
      }
    }
  }
  for (const headDim of [64, 96, 128, 256]) {
    for (const [numHeads, numKvHeads] of [
      [4, 2],
      [8, 8],
      [8, 1],
      [7, 1],
    ] as const) {
      for (const name of ["long decodes", headDim === 96 ? "mixed" : "chunk with cached prefix"] as const) {
        const blockSize = turn % 2 === 0 ? 16 : 64;
        const window = [0, 100, 0, 5][turn++ % 4]!;
        const heads = { numHeads, numKvHeads, headDim, rotaryDim: headDim };
        attendCase(addCase, name, { ...heads, blockSize, window, headNorm: turn % 3 === 0 });
      }
    }
  }
}

/** What happens to the projections of each token: norm, rotation of all or part of a head, where they are stored. */
function projectionCases(addCase: Case): void {
  const heads = [
    [4, 2, 64],
    [8, 8, 128],
    [8, 1, 96],
    [7, 1, 256],
  ] as const;
  const batches = ["one decode", "short decodes", "decode and chunk", "decode, chunk and prompt"] as const;
  for (const [i, [numHeads, numKvHeads, headDim]] of heads.entries()) {
    for (const [j, name] of batches.entries()) {
      const blockSize = (i + j) % 2 === 0 ? 16 : 64;
      const rotaryDim = j === 2 ? headDim / 2 : headDim;
      const shape = { numHeads, numKvHeads, headDim, rotaryDim, blockSize, window: 0 };
      attendCase(addCase, name, { ...shape, headNorm: j !== 1 });
    }
  }
  // Pieces of a head that no vector covers, and those that are not rotated.
  for (const [name, numHeads, numKvHeads, headDim, rotaryDim] of [
    ["a decode past a block", 4, 4, 64, 64],
    ["many queries", 2, 1, 256, 256],
    ["decode and chunk", 5, 1, 128, 128],
    ["one prefill", 2, 2, 96, 32],
    ["short decodes", 2, 1, 96, 20],
    ["decode and chunk", 3, 1, 64, 2],
    // Heads that are no multiple of those that a thread takes.
    [ALL_OF_A_GPU, 7, 1, 128, 128],
    [ALL_OF_A_GPU, 3, 1, 96, 20],
  ] as const) {
    const shape = { numHeads, numKvHeads, headDim, rotaryDim, blockSize: 16, window: 0 };
    for (const headNorm of [false, true]) attendCase(addCase, name, { ...shape, headNorm });
  }
}

/** What one kernel for decode rows depends on: how their contexts are cut and dealt out, what ran before it, graphs. */
function decodeCases(addCase: Case): void {
  const small = { numHeads: 4, numKvHeads: 2, headDim: 32, rotaryDim: 32, blockSize: 16 } as const;
  const ragged = (count: number, longest: number): RowShape[] =>
    Array.from({ length: count }, (_, i) => [1 + ((i * 37) % longest), 1]);
  for (const [name, rows, shape] of [
    ["more rows than blocks", ragged(300, 150), small],
    ["rows for more than one launch", ragged(1100, 20), { ...small, numHeads: 1, numKvHeads: 1 }],
    ["a row in many splits", [[5000, 1]], small],
    ["long rows among short ones", [[3000, 1], ...ragged(40, 70), [2500, 1]], { ...small, numHeads: 2 }],
    [
      "16 queries a key",
      [
        [17, 1],
        [300, 1],
        [64, 1],
      ],
      { ...small, numHeads: 16, numKvHeads: 1, headDim: 128 },
    ], // prettier-ignore
    [
      "16 wide queries a key",
      [
        [17, 1],
        [300, 1],
      ],
      { ...small, numHeads: 16, numKvHeads: 1, headDim: 256 },
    ],
    [
      "blocks of one token",
      [
        [1, 1],
        [40, 1],
        [77, 1],
      ],
      { ...small, blockSize: 1 },
    ],
    [
      "blocks of 8",
      [
        [1, 1],
        [40, 1],
        [77, 1],
      ],
      { ...small, blockSize: 8, headDim: 128 },
    ],
    [
      "blocks of 256",
      [
        [1, 1],
        [40, 1],
        [777, 1],
      ],
      { ...small, blockSize: 256, headDim: 64 },
    ],
  ] as const satisfies readonly (readonly [string, readonly RowShape[], Partial<AttentionShape>])[]) {
    for (const window of [0, 70]) {
      const full = { ...shape, window, headNorm: window > 0 };
      addCase("attend", `decodes: ${name}, window ${window}`, (fixture) => {
        const batch = raggedBatch(fixture, rows, full.blockSize);
        const step = new AttentionStep(fixture, batch, full);
        fixture.backend.attend(
          step.out,
          step.qkv.tensor,
          step.cache,
          batchTensors(fixture, batch),
          step.spec,
        );
        step.check();
      });
    }
  }
  const shape = { ...small, headDim: 64, rotaryDim: 64, window: 0, headNorm: true };

  addCase("attend", "directly after the kernels that write its metadata", (fixture) => {
    const { backend } = fixture;
    const batch = raggedBatch(
      fixture,
      [
        [33, 1],
        [700, 1],
        [16, 1],
        [90, 57],
      ],
      shape.blockSize,
    ); // prettier-ignore
    const step = new AttentionStep(fixture, batch, shape);
    const { tensors, prepare } = preparation(fixture, batch);
    prepare();
    backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec);
    step.check();
  });

  addCase("attend", "directly after an attend that stored the token before", (fixture) => {
    const { backend } = fixture;
    const lengths = [33, 700, 16, 90];
    const batch = raggedBatch(
      fixture,
      lengths.map((length) => [length, 1]),
      shape.blockSize,
    ); // prettier-ignore
    const step = new AttentionStep(fixture, batch, shape);
    const tensors = batchTensors(fixture, batch);
    // The token before has the same projections, one position earlier.
    const before = {
      ...tensors,
      positions: fixture.ints(batch.positions.map((position) => position - 1)),
      contextLens: fixture.ints(lengths.map((length) => length - 1)),
      slotMapping: fixture.ints(batch.rowSlots.map((slot, row) => slotAt(batch, slot, lengths[row]! - 2))),
    };
    const [first, second] = [step.out, fixture.output(fixture.dtype, [...step.out.shape])];
    const copy = fixture.state(step.qkv.values, [...step.qkv.tensor.shape]);
    const again = fixture.state(step.qkv.values, [...step.qkv.tensor.shape]);
    backend.attend(first, step.qkv.tensor, step.cache, before, step.spec);
    backend.attend(second, copy.tensor, step.cache, tensors, step.spec);
    const overlapped = fixture.readFloats(second);
    // What the first stored is in place for certain now.
    backend.attend(second, again.tensor, step.cache, tensors, step.spec);
    expectEqual("out", overlapped, fixture.readFloats(second));
  });

  addCase("attend", "a captured graph gives what the ops give, each time", (fixture) => {
    const { backend } = fixture;
    if (backend.capture === undefined) return;
    const batch = raggedBatch(
      fixture,
      [
        [33, 1],
        [2000, 1],
        [16, 1],
        [64, 1],
      ],
      shape.blockSize,
    ); // prettier-ignore
    const step = new AttentionStep(fixture, batch, shape);
    const tensors = batchTensors(fixture, batch);
    const run = () => backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec);
    const projections = backend.download(step.qkv.tensor);
    run();
    const eager = fixture.readFloats(step.out);
    step.check();
    const graph = backend.capture(run);
    for (let i = 0; i < 3; i++) {
      backend.upload(step.qkv.tensor, projections);
      backend.fill(step.out, POISON);
      graph.launch();
      expectEqual("out", fixture.readFloats(step.out), eager);
    }
    graph.dispose();
  });
}

/** Where the cache has a slot's position. */
function slotAt({ blockTables, maxBlocks, blockSize }: RaggedBatch, slot: number, position: number): number {
  const block = blockTables[slot * maxBlocks + Math.floor(position / blockSize)]!;
  return block * blockSize + (position % blockSize);
}

/** An entry that no kernel may follow. */
const NO_BLOCK = 0x7fffffff;

/** Tensors that ops fill with a batch's metadata: `prepare` writes most of the block tables by `scatter`, the rest by `prepareBatch`. */
function preparation(fixture: Fixture, batch: RaggedBatch) {
  const { backend } = fixture;
  const { numSlots, maxBlocks, numTokens, rows, rowSlots } = batch;
  const output = (size: number) => fixture.output("int32", [size]);
  const computed = new Int32Array(numSlots);
  const lengths = new Int32Array(numSlots);
  for (const [i, [contextLen, queryLen]] of rows.entries()) {
    computed[rowSlots[i]!] = contextLen - queryLen;
    lengths[rowSlots[i]!] = contextLen;
  }
  const tables = fixture.output("int32", [numSlots, maxBlocks]);
  const slots = {
    ...slotTensors(fixture, Array(numSlots).fill({}), { vocab: 1 }),
    tokens: fixture.ints(new Int32Array(numSlots * maxBlocks * batch.blockSize), [
      numSlots,
      maxBlocks * batch.blockSize,
    ]),
    lengths: fixture.ints(lengths),
    numComputedTokens: fixture.stateOf("int32", computed, [numSlots]),
    blockTables: tables.reshape(1, numSlots, maxBlocks),
  };
  const samples = { slots: output(0), positions: output(0), tokenIndices: output(0) };
  const tensors = {
    ...extentsOf(batch),
    ...{ tokenIds: output(numTokens), positions: output(numTokens), slotMapping: output(numTokens) },
    ...{
      cuSeqlensQ: output(rows.length + 1),
      contextLens: output(rows.length),
      rowSlots: output(rows.length),
    },
    blockTables: tables,
  };
  // A row's last block comes with the row, the others before it.
  const given = batch.blockTables.slice();
  const records = rows.flatMap(([contextLen, queryLen], i) => {
    const last = Math.ceil(contextLen / batch.blockSize) - 1;
    const at = rowSlots[i]! * maxBlocks + last;
    given[at] = NO_BLOCK;
    return [rowSlots[i]!, queryLen, -1, last, batch.blockTables[at]!];
  });
  const inbox = stepAreas(fixture, { step: 0, depth: 2, words: records.length });
  inbox.area(0).set(records);
  const indices = fixture.ints(Int32Array.from(given.keys()));
  const entries = fixture.stateOf("uint32", Uint32Array.from(given), [given.length]);
  const prepare = () => {
    backend.scatter(tables.reshape(numSlots * maxBlocks), indices, entries);
    const slotMappings = tensors.slotMapping.reshape(1, numTokens);
    backend.prepareBatch({ ...tensors, slotMappings }, samples, inbox, slots);
  };
  return { tensors, prepare };
}

/** The same of a cache in eight bits: all heads, with scales of every size. */
function float8Cases(addCase: Case): void {
  const scales = [
    { keyScale: 1, valueScale: 1 },
    { keyScale: 0.037, valueScale: 0.21 },
    // What is stored saturates.
    { keyScale: 0.003, valueScale: 0.004 },
    // What is stored has few bits left.
    { keyScale: 60, valueScale: 37 },
  ];
  let turn = 0;
  const next = () => ({
    blockSize: turn % 2 === 0 ? 16 : 64,
    window: [0, 0, 100, 5, 0][turn % 5]!,
    headNorm: turn % 3 === 0,
    scales: scales[turn++ % scales.length]!,
  });
  const names = (Object.keys(BATCHES) as BatchName[]).filter((name) => name !== ALL_OF_A_GPU);
  attendCase(addCase, ALL_OF_A_GPU, { numHeads: 7, numKvHeads: 1, headDim: 128, rotaryDim: 128, ...next() });
  for (const headDim of [32, 64, 96, 128, 160, 192, 256]) {
    for (const [numHeads, numKvHeads] of [
      [4, 2],
      [8, 8],
      [8, 1],
      [7, 1],
    ] as const) {
      for (const name of [names[turn % names.length]!, "decode, chunk and prompt"] as const) {
        const rotaryDim = turn % 7 === 0 ? headDim / 2 : headDim;
        attendCase(addCase, name, { numHeads, numKvHeads, headDim, rotaryDim, ...next() });
      }
    }
  }
  for (const blockSize of [1, 256])
    for (const name of names)
      attendCase(addCase, name, {
        ...{ numHeads: 32, numKvHeads: 2, headDim: 128, rotaryDim: 128 },
        ...next(),
        blockSize,
      });
  for (const rotaryDim of [20, 2])
    attendCase(addCase, "decode and chunk", {
      numHeads: 2,
      numKvHeads: 1,
      headDim: 96,
      rotaryDim,
      ...next(),
    });

  const inSplits = (fixture: Fixture) => {
    const { backend } = fixture;
    const shape = { numHeads: 16, numKvHeads: 8, headDim: 128, rotaryDim: 128, blockSize: 16, window: 0 };
    const rows: RowShape[] = [5000, 31, 32, 33, 1, 64].map((length) => [length, 1]);
    const batch = raggedBatch(fixture, rows, shape.blockSize);
    const step = new AttentionStep(fixture, batch, { ...shape, headNorm: true, scales: scales[1]! });
    const tensors = batchTensors(fixture, batch);
    const run = () => backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec);
    run();
    step.check();
    if (backend.capture === undefined) return;
    const eager = fixture.readFloats(step.out);
    const graph = backend.capture(run);
    backend.fill(step.out, POISON);
    graph.launch();
    expectEqual("out", fixture.readFloats(step.out), eager);
    graph.dispose();
  };
  addCase("attend", "of eight bits: rows in many splits, and a captured graph", inSplits, "grid");

  addCase("attend", "of eight bits: a token is attended to as it is cached", (fixture) => {
    const { backend } = fixture;
    const shape = { numHeads: 4, numKvHeads: 2, headDim: 128, rotaryDim: 128, blockSize: 16, window: 0 };
    const batch = raggedBatch(fixture, [[90, 1]], shape.blockSize);
    const step = new AttentionStep(fixture, batch, { ...shape, headNorm: false, scales: scales[1]! });
    const tensors = batchTensors(fixture, batch);
    const attend = (stores: boolean) => {
      const qkv = fixture.state(step.qkv.values, [...step.qkv.tensor.shape]).tensor;
      const out = fixture.output(fixture.dtype, [...step.out.shape]);
      const slotMapping = stores ? tensors.slotMapping : fixture.ints([-1]);
      backend.attend(out, qkv, step.cache, { ...tensors, slotMapping }, step.spec);
      return fixture.readFloats(out);
    };
    // The second time its place in the cache holds it already, and is not written.
    expectEqual("out", attend(true), attend(false));
  });
}

/** Adds the case of a batch and heads. */
export function attendCase(addCase: Case, name: BatchName, shape: AttentionShape): void {
  const { numHeads, numKvHeads, headDim, rotaryDim, blockSize, window, scales } = shape;
  const heads = `${numHeads}/${numKvHeads} heads of ${headDim} (${rotaryDim} rotated${shape.headNorm ? ", normed" : ""})`;
  const cached = scales ? `, eight bits by ${scales.keyScale} and ${scales.valueScale}` : "";
  const form = [
    shape.queryScales && "scaled queries",
    shape.softCap && `scores capped at ${shape.softCap}`,
    shape.sinks && "sinks",
    shape.scale && `scale ${shape.scale}`,
    shape.normsValues && "normed values",
    shape.readsOnly && "of a cache that is only read",
  ].filter((part) => part !== undefined && part !== false);
  const title = [name, heads, `blocks of ${blockSize}`, `window ${window}${cached}`, ...form].join(", ");
  const body = (fixture: Fixture) => {
    const batch = raggedBatch(fixture, BATCHES[name], blockSize);
    const step = new AttentionStep(fixture, batch, shape);
    fixture.backend.attend(step.out, step.qkv.tensor, step.cache, batchTensors(fixture, batch), step.spec);
    step.check();
  };
  addCase("attend", title, body, name === ALL_OF_A_GPU ? "grid" : undefined);
}
