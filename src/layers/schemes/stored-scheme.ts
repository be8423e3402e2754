import { MXFP4_GROUP, MXFP4_MOST_SCALE, SUPERBLOCK, type Weight } from "../../backend/weight.ts";
import { ConfigError, ModelDataError, UnsupportedModelError } from "../../base/errors.ts";
import type { ParameterSource } from "../../base/parameter-spec.ts";
import { lengthOf, MAX_RANKS, type Span } from "../../base/shard.ts";
import type { TensorDirectory } from "../../base/tensor-directory.ts";
import {
  denseScheme,
  LM_HEAD,
  type MatrixName,
  type MatrixPart,
  type MatrixSpec,
  type WeightScheme,
} from "../weight-scheme.ts";
import { type OnlineFloat8, onlineFloat8 } from "./online-float8.ts";
import {
  type Float8Sources,
  float8Weight,
  type GetParameter,
  groupedWeight,
  mxfp4Weight,
  superblockWeight,
} from "./quantised-weight.ts";
import { rowsThatFit } from "./rows-that-fit.ts";
import { isGroupedBlocks, storedBlocks } from "./stored-blocks.ts";
import { BLOCK, storedFloat8, storedInt8 } from "./stored-float8.ts";
import {
  type GptqZeros,
  GROUP_UNIT,
  type NeededTensors,
  storedGroups,
  storedPacked,
} from "./stored-integers.ts";
import {
  MatrixTensors,
  type StoredFloat8,
  type StoredIntegers,
  type StoredMatrix,
  type StoredMxfp4,
  type StoredSuperblocks,
} from "./stored-matrix.ts";
import { storedMxfp4 } from "./stored-mxfp4.ts";
import { isSuperblocks, stackSuperblocks, storedSuperblocks } from "./stored-superblocks.ts";

/** What the config says of all integers: zero points and orders of columns; default: those whose tensors are there. */
export interface StoredSchemeOptions extends NeededTensors {
  /** Default v1, as most files are. */
  readonly gptqZeros?: GptqZeros | undefined;
  /** Matrices of floats are quantised while they are loaded; the LM head stays as it is. */
  readonly online?: OnlineFloat8 | undefined;
  /** The LM head, in floats, is quantised while it is loaded, with a factor for each output. */
  readonly quantiseHead?: boolean;
  /** See `Backend.headCodes`. */
  readonly headCodes?: boolean | undefined;
}

/** Beside quantised matrices: what is read otherwise, and what products of 16-bit activations do not need. */
const COMPANIONS = [
  /\.(?:qzeros|g_idx|weight_g_idx|weight_shape|input_scale|input_scale_ub|input_zero_point|activation_scale)$/,
  /\.experts\.(?:gate_up|down)_proj_activation_scale$/,
];
/** The dtypes that are quantised while they are loaded. */
const FLOATS: ReadonlySet<string | undefined> = new Set(["F32", "F16", "BF16"]);
/** The names of tensors of codes, or of floats. */
const DATA = ["weight", "qweight", "weight_packed", "blocks"];

/** A matrix [n, k] with a part of each of the checkpoint's matrices that are stacked in it. */
interface Stacked<Stored extends StoredMatrix> {
  readonly matrix: MatrixSpec;
  /** The first part's, for messages. */
  readonly file: string;
  readonly shape: readonly [n: number, k: number];
  readonly parts: readonly (MatrixPart & { readonly stored: Stored })[];
}

/**
 * Weights as a checkpoint stores them. The form of each matrix is told by the tensors that are there, not by the config: float8 with
 * its factors, packed integers, or floats. What is looked up is kept, so the checkpoint may be closed once all matrices were asked for.
 */
export class StoredScheme implements WeightScheme {
  readonly #stored = new Map<string, StoredMatrix>();
  readonly #unused: RegExp[] = [...COMPANIONS];

  constructor(
    private readonly directory: TensorDirectory,
    private readonly options: StoredSchemeOptions = {},
  ) {}

  get ignored(): readonly RegExp[] {
    return this.#unused;
  }

  hasHeadCodes({ columns, ...table }: MatrixName): boolean {
    if (!this.options.headCodes) return false;
    return mayBeFloats({ stored: this.#find(table, columns) });
  }

  weight(matrix: MatrixSpec, get: GetParameter): Weight {
    const { parts, columnSpan } = matrix;
    const rows = parts.reduce((sum, { rowSpan }) => sum + lengthOf(rowSpan), 0);
    const stored = parts.map((part) => ({ ...part, stored: this.#find(part, matrix.columns) }));
    const file = parts.map((part) => this.#fileOf(part)).find((found) => found !== undefined) ?? matrix.name;
    const stacked = { matrix, file, shape: [rows, lengthOf(columnSpan)] as const };
    const stay = areGroups(stored, columnSpan) || areSuperblocks(stored, columnSpan);
    if (stored.some(mayBeFloats) && !stay) return denseScheme.weight(matrix, get);
    if (all(stored, isFloat8)) return stackFloat8({ ...stacked, parts: stored }, get);
    if (all(stored, isMxfp4)) return stackMxfp4({ ...stacked, parts: stored }, get);
    if (all(stored, isIntegers)) return stackIntegers({ ...stacked, parts: stored }, get);
    if (all(stored, isStoredSuperblocks)) {
      const { form, sources } = stackSuperblocks(stored, columnSpan);
      return superblockWeight(get, matrix.name, stacked.shape, form, sources);
    }
    const mixed = stored.find((part) => part.stored.form !== stored[0]!.stored.form);
    if (mixed !== undefined) {
      const absent = parts.find((part) => this.#fileOf(part) === undefined);
      if (absent === undefined) throw unequal(file, stored[0]!, mixed);
      throw new ModelDataError(file, `has none of the tensors ${DATA.join(", ")} of ${absent.source}`);
    }
    const { online, quantiseHead } = this.options;
    const form = matrix.name === LM_HEAD ? (quantiseHead ? "channel" : undefined) : online;
    const areFloats = parts.every((part) => FLOATS.has(this.#dtypeOf(part)));
    if (form !== undefined && areFloats && !matrix.exact)
      return onlineFloat8(matrix, stacked.shape, form, get);
    return denseScheme.weight(matrix, get);
  }

  #find({ source, rows }: Pick<MatrixPart, "source" | "rows">, columns: number): StoredMatrix {
    let stored = this.#stored.get(source);
    if (stored === undefined) {
      stored = this.#look(new MatrixTensors(this.directory, { source, rows, columns }));
      this.#stored.set(source, stored);
    }
    return stored;
  }

  #look(tensors: MatrixTensors): StoredMatrix {
    const dtype = tensors.find("weight")?.dtype;
    if (tensors.find("blocks") !== undefined) return storedMxfp4(tensors);
    if (dtype === "F8_E4M3") return storedFloat8(tensors);
    if (dtype?.startsWith("F8_"))
      throw tensors.unsupported(tensors.find("weight")!, `is ${dtype}; weights of 8-bit floats are F8_E4M3`);
    if (isGroupedBlocks(dtype)) return storedBlocks(tensors, dtype);
    if (isSuperblocks(dtype)) return storedSuperblocks(tensors, dtype);
    const isPacked = tensors.find("weight_packed") !== undefined;
    const isGrouped = tensors.find("qweight") !== undefined;
    if (dtype !== "I8" && !isPacked && !isGrouped) return { form: "floats" };
    this.#ignoreZeroBias(tensors);
    const { gptqZeros = "v1" } = this.options;
    if (isGrouped) return storedGroups(tensors, gptqZeros, this.options);
    return isPacked ? storedPacked(tensors, this.options) : storedInt8(tensors);
  }

  /** GPTQ's writers give every matrix a bias, of zeros where the model has none. */
  #ignoreZeroBias({ matrix }: MatrixTensors): void {
    const name = `${matrix.source}.bias`;
    if (this.directory.find(name) === undefined || !this.directory.isZero(name)) return;
    this.#unused.push(new RegExp(`^${name.replace(/[.\\+*?[^\]$(){}=!<>|:#/-]/g, "\\$&")}$`));
  }

  #dtypeOf({ source }: MatrixPart): string | undefined {
    return this.directory.find(`${source}.weight`)?.dtype;
  }

  /** The file with the codes of a matrix; undefined when there are none. */
  #fileOf({ source }: MatrixPart): string | undefined {
    return DATA.map((name) => this.directory.find(`${source}.${name}`)?.file).find(
      (file) => file !== undefined,
    );
  }
}

type Part<Stored extends StoredMatrix> = Stacked<Stored>["parts"][number];

function unequal(file: string, first: Part<StoredMatrix>, other: Part<StoredMatrix>): UnsupportedModelError {
  const message = `${first.source} is stored as ${first.stored.form}, ${other.source} as ${other.stored.form}; they are one product and need one form`;
  return new UnsupportedModelError(file, message);
}

function isFloat8<P extends { readonly stored: StoredMatrix }>(
  part: P,
): part is P & { readonly stored: StoredFloat8 } {
  return part.stored.form === "float8";
}

function isMxfp4<P extends { readonly stored: StoredMatrix }>(
  part: P,
): part is P & { readonly stored: StoredMxfp4 } {
  return part.stored.form === "mxfp4";
}

function isIntegers<P extends { readonly stored: StoredMatrix }>(
  part: P,
): part is P & { readonly stored: StoredIntegers } {
  return part.stored.form === "integers";
}

function isStoredSuperblocks<P extends { readonly stored: StoredMatrix }>(
  part: P,
): part is P & { readonly stored: StoredSuperblocks } {
  return part.stored.form === "superblocks";
}

function mayBeFloats({ stored }: { readonly stored: StoredMatrix }): boolean {
  return "orFloats" in stored && stored.orFloats === true;
}

/** True if all parts of a product are in superblocks, of which the columns are whole ones. */
function areSuperblocks(parts: readonly { readonly stored: StoredMatrix }[], { start, end }: Span): boolean {
  return all(parts, isStoredSuperblocks) && start % SUPERBLOCK === 0 && end % SUPERBLOCK === 0;
}

/** True if all parts of a product are in groups of the same kind, and the columns are whole groups. */
function areGroups(parts: readonly { readonly stored: StoredMatrix }[], { start, end }: Span): boolean {
  if (!all(parts, isIntegers)) return false;
  const { bits, groupSize } = parts[0]!.stored;
  const isWhole = start % groupSize === 0 && end % groupSize === 0;
  return isWhole && parts.every(({ stored }) => stored.bits === bits && stored.groupSize === groupSize);
}

function all<T, U extends T>(items: readonly T[], test: (item: T) => item is U): items is readonly U[] {
  return items.every(test);
}

function stackFloat8({ matrix, file, shape, parts }: Stacked<StoredFloat8>, get: GetParameter): Weight {
  const { columns, columnSpan, name } = matrix;
  const isBlock = same(file, parts, "granularity", ({ stored }) => stored.granularity) === "block";
  if (isBlock) checkCut(parts[0]!, columns, columnSpan, BLOCK, "blocks");
  // Where a part begins within a block's rows, the block is given in fewer rows.
  const blockRows = isBlock ? rowsThatFit(parts.map(({ rowSpan }) => rowSpan)) : 1;
  const blockColumns = isBlock ? BLOCK : shape[1];
  const blocks = isBlock
    ? { start: columnSpan.start / BLOCK, end: Math.ceil(columnSpan.end / BLOCK) }
    : { start: 0, end: 1 };
  const sources: Float8Sources = {
    codes: parts.map(({ rowSpan, stored }) => ({
      ...stored.codes,
      reading: { kind: "bytes", stored: "F8_E4M3", rows: rowSpan, columns: columnSpan },
    })),
    scales: parts.map(({ rowSpan, stored }) => ({
      ...stored.scales,
      reading: {
        ...{ kind: "scales", repeat: stored.rowsOfScale / blockRows, columns: blocks },
        rows: { start: rowSpan.start / blockRows, end: Math.ceil(rowSpan.end / blockRows) },
      },
    })),
  };
  return float8Weight(get, name, { shape, blockRows, blockColumns }, sources);
}

function stackMxfp4({ matrix, shape, parts }: Stacked<StoredMxfp4>, get: GetParameter): Weight {
  const { columns, columnSpan, name } = matrix;
  checkCut(parts[0]!, columns, columnSpan, MXFP4_GROUP, "blocks");
  const read = (part: "codes" | "scales", columnsOfByte: number, most?: number) =>
    parts.map(({ rowSpan, stored }): ParameterSource => {
      const bytes = { start: columnSpan.start / columnsOfByte, end: columnSpan.end / columnsOfByte };
      const reading = { kind: "bytes", stored: "U8", rows: rowSpan, columns: bytes } as const;
      return { ...stored[part], reading: most === undefined ? reading : { ...reading, most } };
    });
  return mxfp4Weight(get, name, shape, {
    codes: read("codes", 2),
    scales: read("scales", MXFP4_GROUP, MXFP4_MOST_SCALE),
  });
}

function stackIntegers({ matrix, file, shape, parts }: Stacked<StoredIntegers>, get: GetParameter): Weight {
  const { columns, columnSpan, name } = matrix;
  const bits = same(file, parts, "bits", ({ stored }) => stored.bits);
  const groupSize = same(file, parts, "group sizes", ({ stored }) => stored.groupSize);
  const scaleDtype = same(file, parts, "dtypes of scales", ({ stored }) => stored.scaleDtype);
  same(file, parts, "orders of columns (g_idx)", ({ stored }) => stored.permutation?.values.join());
  const isCut = lengthOf(columnSpan) < columns;
  const { permutation } = parts[0]!.stored;
  if (isCut && permutation !== undefined)
    throw new ConfigError(
      "tensorParallelSize",
      `${permutation.source.name} orders columns (GPTQ's desc_act), which ranks cannot divide; tensorParallelSize 1 would work`,
    );
  // One group as long as a row is one for each rank, too.
  const isWhole = groupSize === columns;
  checkCut(parts[0]!, columns, columnSpan, isWhole ? GROUP_UNIT : groupSize, "groups");
  const groups = isWhole
    ? { start: 0, end: 1 }
    : { start: columnSpan.start / groupSize, end: columnSpan.end / groupSize };
  const symmetric = parts.every(({ stored }) => stored.symmetric);
  const sourcesOf = (read: (part: Part<StoredIntegers>) => ParameterSource) => parts.map(read);
  return groupedWeight(
    get,
    name,
    { shape, bits, groupSize: isWhole ? shape[1] : groupSize, scaleDtype },
    {
      codes: sourcesOf(({ stored, rowSpan }) => stored.codes(rowSpan, columnSpan)),
      scales: sourcesOf(({ stored, rowSpan }) => stored.scales(rowSpan, groups)),
      zeros: symmetric ? undefined : sourcesOf((part) => zerosOf(file, part, groups)),
      permutation: permutation && {
        ...permutation.source,
        reading: { kind: "given", stored: "I32", values: permutation.values },
      },
    },
  );
}

function zerosOf(
  file: string,
  { stored, rowSpan, source }: Part<StoredIntegers>,
  groups: Span,
): ParameterSource {
  if (stored.zeros !== undefined) return stored.zeros(rowSpan, groups);
  throw new UnsupportedModelError(
    file,
    `${source} has no zero points, but matrices of the same product have`,
  );
}

/** What all parts of a product have in common. @throws UnsupportedModelError when they do not */
function same<Stored extends StoredMatrix, T>(
  file: string,
  parts: readonly Part<Stored>[],
  what: string,
  of: (part: Part<Stored>) => T,
): T {
  const first = parts[0]!;
  const other = parts.find((part) => of(part) !== of(first));
  if (other !== undefined)
    throw new UnsupportedModelError(
      file,
      `${first.source} and ${other.source} are one product, but have different ${what}`,
    );
  return of(first);
}

/** @throws ConfigError when ranks would cut a block or group of columns, naming numbers of ranks that would not */
function checkCut({ source }: MatrixPart, columns: number, span: Span, size: number, what: string): void {
  if (lengthOf(span) === columns) return;
  if (span.start % size === 0 && span.end % size === 0) return;
  const ranks = Array.from({ length: MAX_RANKS }, (_, i) => i + 1).filter(
    (count) => count === 1 || columns % (count * size) === 0,
  );
  const facts = `the ranks would cut ${what} of ${size} columns of ${source}, which has ${columns}`;
  const message = `${facts}; of tensorParallelSize 1 to ${MAX_RANKS}, where it divides the model, these would not: ${ranks.join(", ")}`;
  throw new ConfigError("tensorParallelSize", message);
}
