import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { quoted } from "../base/quoted.ts";

/** −1 as an unsigned number. */
const NO_TOKEN = 2 ** 32 - 1;

/** Integers that no number holds exactly are bigints. */
export type GgufValue = number | bigint | boolean | string | GgufList;

/** A list of the metadata. Its items stay where they are in the header until they are asked for. */
export interface GgufList {
  /** `string`, or a type of number such as `f32`, or `bool`. */
  readonly itemType: string;
  readonly length: number;
  /** @throws ModelDataError unless the items are UTF-8 strings */
  strings(): string[];
  /** @throws ModelDataError unless the items are numbers that a number holds exactly */
  numbers(): number[];
  /** The positions of those items that are one of `texts`, in order. */
  positionsOf(texts: ReadonlySet<string>): number[];
}

/** The entries of a GGUF file's header by key, with checked access to them. */
export class GgufMetadata {
  constructor(
    /** The file, for messages. */
    readonly path: string,
    private readonly values: ReadonlyMap<string, GgufValue>,
  ) {}

  get(key: string): GgufValue | undefined {
    return this.values.get(key);
  }

  /** A number; undefined when absent. @throws ModelDataError for another type */
  number(key: string): number | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === "number") return value;
    throw this.invalid(key, "a number");
  }

  boolean(key: string): boolean | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === "boolean") return value;
    throw this.invalid(key, "true or false");
  }

  string(key: string): string | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === "string") return value;
    throw this.invalid(key, "a string");
  }

  /** The id of a token; undefined when absent, or when the file says that there is none. @throws ModelDataError */
  tokenId(key: string): number | undefined {
    const id = this.number(key);
    if (id === undefined || id === NO_TOKEN || id === -1) return undefined;
    if (Number.isSafeInteger(id) && id >= 0) return id;
    throw this.invalid(key, "the id of a token");
  }

  list(key: string): GgufList | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === "object") return value;
    throw this.invalid(key, "a list");
  }

  /** The error for an entry that is not what it must be. */
  invalid(key: string, expected: string): ModelDataError {
    const found = this.get(key) === undefined ? "it is missing" : `not ${this.#shown(key)}`;
    return new ModelDataError(this.path, `${key} must be ${expected}, ${found}`);
  }

  /** The error for an entry that is right, but describes what Octavo cannot do. */
  unsupported(key: string, instead = ""): UnsupportedModelError {
    return new UnsupportedModelError(this.path, `${key} = ${this.#shown(key)} is not supported${instead}`);
  }

  #shown(key: string): string {
    const value = this.get(key);
    if (typeof value === "object") return `a list of ${value.length} items of type ${value.itemType}`;
    return typeof value === "string" ? quoted(value) : String(value);
  }
}
