import type {
  BlockTableUpdate,
  RowMask,
  ScheduledBatch,
  ScheduledRow,
  SlotJoin,
  SlotSampling,
} from "./types.ts";

/** Bits of a row's flags, and of a sampling's: which optional fields it has. */
const RowFlag = {
  ...{ sample: 1, logits: 2, drafts: 4, logprobs: 8, promptLogprobs: 16, masked: 32, states: 64 },
} as const;
const NO_LIST = -1;
const NO_SNAPSHOT = -1;

/** A batch in words, for the ranks of other threads. */
export function encodeBatch({
  joins,
  blockTableUpdates,
  rows,
  snapshots = [],
  decodeRows,
  numTokens,
}: ScheduledBatch): Int32Array {
  const words = new WordWriter();
  words.put(decodeRows, numTokens, joins.length, blockTableUpdates.length, rows.length, snapshots.length);
  for (const join of joins) writeJoin(words, join);
  for (const { slot, group, index, block } of blockTableUpdates) words.put(slot, group, index, block);
  for (const row of rows) writeRow(words, row);
  for (const { slot, snapshot } of snapshots) words.put(slot, snapshot);
  return words.take();
}

/** The batch that `encodeBatch` was given. */
export function decodeBatch(encoded: Int32Array): ScheduledBatch {
  const words = new WordReader(encoded);
  const [decodeRows, numTokens, joins] = [words.int(), words.int(), words.int()];
  const [updates, rows, snapshots] = [words.int(), words.int(), words.int()];
  return {
    ...{ decodeRows, numTokens },
    joins: Array.from({ length: joins }, () => readJoin(words)),
    blockTableUpdates: Array.from({ length: updates }, () => readUpdate(words)),
    rows: Array.from({ length: rows }, () => readRow(words)),
    ...(snapshots > 0 && {
      snapshots: Array.from({ length: snapshots }, () => ({ slot: words.int(), snapshot: words.int() })),
    }),
  };
}

/** The masks of a step's rows in words, likewise. */
export function encodeMasks(masks: readonly RowMask[]): Int32Array {
  const words = new WordWriter();
  words.put(masks.length);
  for (const { row, mask } of masks) {
    words.put(row);
    words.list(new Int32Array(mask.buffer, mask.byteOffset, mask.length));
  }
  return words.take();
}

/** The masks that `encodeMasks` was given. */
export function decodeMasks(encoded: Int32Array): readonly RowMask[] {
  const words = new WordReader(encoded);
  return Array.from({ length: words.int() }, () => ({
    row: words.int(),
    mask: new Uint32Array(words.list()!.buffer),
  }));
}

function writeJoin(
  words: WordWriter,
  { slot, tokens, promptLength, numComputedTokens, snapshot, sampling }: SlotJoin,
): void {
  words.put(slot, promptLength, numComputedTokens, snapshot ?? NO_SNAPSHOT);
  words.list(tokens);
  writeSampling(words, sampling);
}

function readJoin(words: WordReader): SlotJoin {
  const [slot, promptLength, numComputedTokens] = [words.int(), words.int(), words.int()];
  const [snapshot, tokens, sampling] = [words.int(), words.list()!, readSampling(words)];
  return {
    ...{ slot, promptLength, numComputedTokens, tokens, sampling },
    ...(snapshot !== NO_SNAPSHOT && { snapshot }),
  };
}

function writeSampling(words: WordWriter, sampling: SlotSampling): void {
  const { temperature, topP, topK, minP, seed, logitBias, allowedTokenIds, badWords } = sampling;
  const { repetitionPenalty, presencePenalty, frequencyPenalty, bannedTokens, bannedUntil } = sampling;
  words.doubles(temperature, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty);
  words.put(topK, bannedUntil, Number(BigInt.asIntN(32, seed)), Number(BigInt.asIntN(32, seed >> 32n)));
  words.put(logitBias.length);
  for (const [token, bias] of logitBias) {
    words.put(token);
    words.doubles(bias);
  }
  words.list(bannedTokens);
  words.list(allowedTokenIds);
  words.put(Number(sampling.masked === true));
  words.put(badWords.length);
  for (const tokens of badWords) words.list(tokens);
}

function readSampling(words: WordReader): SlotSampling {
  const [temperature, topP, minP] = [words.double(), words.double(), words.double()];
  const [repetitionPenalty, presencePenalty, frequencyPenalty] = [
    words.double(),
    words.double(),
    words.double(),
  ];
  const [topK, bannedUntil] = [words.int(), words.int()];
  const [seedLow, seedHigh] = [words.int(), words.int()];
  const seed = BigInt.asUintN(64, (BigInt(seedHigh) << 32n) | BigInt(seedLow >>> 0));
  const logitBias = Array.from({ length: words.int() }, () => [words.int(), words.double()] as const);
  const bannedTokens = [...words.list()!];
  const allowed = words.list();
  const masked = words.int() === 1;
  return {
    ...{ temperature, topP, topK, minP, repetitionPenalty, presencePenalty, frequencyPenalty, seed },
    ...{ logitBias, bannedTokens, bannedUntil, allowedTokenIds: allowed && [...allowed] },
    badWords: Array.from({ length: words.int() }, () => [...words.list()!]),
    ...(masked && { masked }),
  };
}

function readUpdate(words: WordReader): BlockTableUpdate {
  return { slot: words.int(), group: words.int(), index: words.int(), block: words.int() };
}

function writeRow(words: WordWriter, row: ScheduledRow): void {
  const { slot, count, sample, drafts, logprobs, promptLogprobs, logits, masked, states } = row;
  const optional = { drafts, logprobs, promptLogprobs };
  let flags = (sample ? RowFlag.sample : 0) | (logits ? RowFlag.logits : 0) | (masked ? RowFlag.masked : 0);
  if (states) flags |= RowFlag.states;
  for (const name of ["drafts", "logprobs", "promptLogprobs"] as const)
    if (optional[name] !== undefined) flags |= RowFlag[name];
  words.put(slot, count, flags, drafts ?? 0, logprobs ?? 0, promptLogprobs ?? 0);
}

function readRow(words: WordReader): ScheduledRow {
  const [slot, count, flags] = [words.int(), words.int(), words.int()];
  const [drafts, logprobs, promptLogprobs] = [words.int(), words.int(), words.int()];
  return {
    ...{ slot, count, sample: (flags & RowFlag.sample) !== 0 },
    ...(flags & RowFlag.drafts && { drafts }),
    ...(flags & RowFlag.logprobs && { logprobs }),
    ...(flags & RowFlag.promptLogprobs && { promptLogprobs }),
    ...(flags & RowFlag.logits && { logits: true }),
    ...(flags & RowFlag.masked && { masked: true }),
    ...(flags & RowFlag.states && { states: true }),
  };
}

class WordWriter {
  #words = new Int32Array(1024);
  #length = 0;

  put(...values: readonly number[]): void {
    this.#grow(values.length);
    for (const value of values) this.#words[this.#length++] = value;
  }

  /** Float64, in two words each. */
  doubles(...values: readonly number[]): void {
    this.put(...new Int32Array(Float64Array.from(values).buffer));
  }

  /** Length-prefixed. */
  list(values: Int32Array | readonly number[] | undefined): void {
    this.put(values?.length ?? NO_LIST);
    if (values === undefined) return;
    this.#grow(values.length);
    this.#words.set(values, this.#length);
    this.#length += values.length;
  }

  take(): Int32Array {
    return this.#words.subarray(0, this.#length);
  }

  #grow(count: number): void {
    if (this.#length + count <= this.#words.length) return;
    const grown = new Int32Array(2 * (this.#length + count));
    grown.set(this.#words.subarray(0, this.#length));
    this.#words = grown;
  }
}

class WordReader {
  #at = 0;

  constructor(private readonly words: Int32Array) {}

  int(): number {
    return this.words[this.#at++]!;
  }

  double(): number {
    return new Float64Array(Int32Array.of(this.int(), this.int()).buffer)[0]!;
  }

  list(): Int32Array | undefined {
    const length = this.int();
    if (length === NO_LIST) return undefined;
    this.#at += length;
    return this.words.slice(this.#at - length, this.#at);
  }
}
