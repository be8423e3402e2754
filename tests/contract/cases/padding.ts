import type { AttentionSpec } from "../../../src/backend/attention-spec.ts";
import type { SampleRows, StepBatch } from "../../../src/backend/backend.ts";
import { rowWords } from "../../../src/backend/row-words.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import { batchTensors, type RowShape, raggedBatch } from "../ragged-batch.ts";
import { slotTensors } from "../slot-table.ts";
import { stepAreas } from "../step-areas.ts";

/** Tokens of a batch that no row has. */
const PADDING = 21;

/** Decode rows and a prompt, and a prompt alone. */
const BATCHES: readonly (readonly RowShape[])[] = [
  [
    [40, 1],
    [7, 1],
    [53, 30],
  ],
  [[11, 11]],
];

export function paddingCases(addCase: Case): void {
  addCase("prepareBatch", "tokens past those of the rows are padding", (fixture) => {
    const slots = slotTensors(fixture, [{ tokens: [5, 6, 7, 8] }, { tokens: [9] }], { vocab: 10 });
    const blockTables = fixture.ints([3, 2, 7, 8], [2, 2, 1]);
    const output = (size: number) => fixture.output("int32", [size]);
    const tokens = 3 + PADDING;
    const batch: StepBatch = {
      ...{ numTokens: tokens, numRows: 2, decodeRows: 1, maxQueryLen: 2 + PADDING, blockSize: 16 },
      ...{ tokenIds: output(tokens), positions: output(tokens) },
      slotMappings: fixture.output("int32", [2, tokens]),
      ...{ cuSeqlensQ: output(3), contextLens: output(2), rowSlots: output(2) },
    };
    const samples: SampleRows = { slots: output(1), positions: output(1), tokenIndices: output(1) };
    fixture.backend.upload(slots.numComputedTokens, Int32Array.of(2, 0));
    const inbox = stepAreas(fixture, { step: 0, depth: 2, words: 2 * rowWords(2) });
    inbox.area(0).set([1, 1, -1, -1, 0, 0, 0, 2, 0, -1, 0, 0]);
    fixture.backend.prepareBatch(batch, samples, inbox, { ...slots, blockTables });
    const none = (value: number) => Array<number>(PADDING).fill(value);
    expectEqual("tokenIds", fixture.readInts(batch.tokenIds), [9, 7, 8, ...none(0)]);
    expectEqual("positions", fixture.readInts(batch.positions), [0, 2, 3, ...none(0)]);
    const mappings = [32, 50, 51, ...none(-1), 128, 114, 115, ...none(-1)];
    expectEqual("slotMappings", fixture.readInts(batch.slotMappings), mappings);
    expectEqual("cuSeqlensQ", fixture.readInts(batch.cuSeqlensQ), [0, 1, 3]);
    expectEqual("tokenIndices", fixture.readInts(samples.tokenIndices), [2]);
  });

  for (const rows of BATCHES)
    addCase("attend", `padding after rows ${JSON.stringify(rows)} changes nothing`, (fixture) => {
      const [plain, padded] = [attendTo(fixture, rows, 0), attendTo(fixture, rows, PADDING)];
      expectEqual("out", padded.out, plain.out);
      expectEqual("keys", padded.keys, plain.keys);
      expectEqual("values", padded.values, plain.values);
    });
}

/** Attends to the same random batch each time; the words of the rows' outputs, and of the cache. */
function attendTo(fixture: Fixture, rows: readonly RowShape[], padding: number) {
  const { backend } = fixture;
  fixture.restart();
  const [numHeads, numKvHeads, headDim] = [4, 2, 64];
  const batch = raggedBatch(fixture, rows, 16);
  const tokens = batch.numTokens;
  const width = (numHeads + 2 * numKvHeads) * headDim;
  const size = batch.numBlocks * numKvHeads * 16 * headDim;
  const [keys, values] = [0, 1].map(() =>
    fixture.state(fixture.random.normals(size, 1, 0), [batch.numBlocks, numKvHeads, 16, headDim]),
  );
  const cosSin = fixture.input(fixture.random.normals(200 * headDim, 1, 0), [200, headDim], "float32").tensor;
  const projections = fixture.random.normals((tokens + padding) * width, 1, 0);
  const qkv = fixture.state(projections, [tokens + padding, width]).tensor;
  const spec: AttentionSpec = { numHeads, numKvHeads, headDim, cosSin, scale: 0.125, window: 0 };
  const device = batchTensors(fixture, batch);
  const longer = (values: readonly number[], value: number) =>
    fixture.ints([...values, ...Array<number>(padding).fill(value)]);
  const out = fixture.output(backend.activationDtype, [tokens + padding, numHeads * headDim]);
  backend.attend(
    out,
    qkv,
    { keys: keys!.tensor, values: values!.tensor },
    {
      ...device,
      numTokens: tokens + padding,
      maxQueryLen: device.maxQueryLen + padding,
      positions: longer(batch.positions, 0),
      slotMapping: longer(batch.slotMapping, -1),
    },
    spec,
  );
  const bytes = (name: "keys" | "values") => [
    ...backend.download((name === "keys" ? keys! : values!).tensor),
  ];
  return { out: [...backend.download(out.rows(0, tokens))], keys: bytes("keys"), values: bytes("values") };
}
