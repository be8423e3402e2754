import { join } from "node:path";
import { ModelDataError } from "../base/errors.ts";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";
import { readModelJson } from "../base/model-file.ts";

const MAX_BYTES = 16 * 1024 * 1024;
const MAX_TOKEN_IDS = 512;

/** Checked access to the fields of a JSON object. A field that is null counts as absent. */
export class JsonFields {
  private constructor(
    /** The file, for messages. */
    readonly file: string,
    private readonly fields: Readonly<Record<string, unknown>>,
    private readonly path: string,
    /** Fields' names in messages, by path, where those are not their own. */
    private readonly names: Readonly<Record<string, string>> = {},
  ) {}

  /**
   * @returns undefined when there is no such file
   * @throws ModelDataError when it may not be read, or is not a JSON object
   */
  static read(folder: string, name: string): JsonFields | undefined {
    const fields = readModelJson(folder, name, MAX_BYTES);
    return fields && new JsonFields(join(folder, name), fields, "");
  }

  /**
   * Fields that a file of another format stands for.
   * @param names what they are called there, for messages
   */
  static of(file: string, fields: JsonObject, names: Readonly<Record<string, string>>): JsonFields {
    return new JsonFields(file, fields, "", names);
  }

  /**
   * The same fields, with others for those that are absent: null is not absent.
   * @param aliases names that fields go by in this file, by their own
   */
  withDefaults(defaults: JsonObject, aliases: Readonly<Record<string, string>> = {}): JsonFields {
    const renamed = Object.entries(aliases).filter(([, alias]) => Object.hasOwn(this.fields, alias));
    const values = Object.fromEntries(renamed.map(([name, alias]) => [name, this.fields[alias]]));
    const fields = { ...defaults, ...values, ...this.fields };
    return new JsonFields(this.file, fields, this.path, { ...this.names, ...Object.fromEntries(renamed) });
  }

  /** The same fields, but for these. */
  replacing(fields: JsonObject): JsonFields {
    return new JsonFields(this.file, { ...this.fields, ...fields }, this.path, this.names);
  }

  get keys(): readonly string[] {
    return Object.keys(this.fields);
  }

  get isEmpty(): boolean {
    return this.keys.length === 0;
  }

  /** The field's value, unchecked; undefined when absent. */
  get(name: string): unknown {
    return Object.hasOwn(this.fields, name) ? (this.fields[name] ?? undefined) : undefined;
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  /** True for a field that is null, not absent: what would take a default then has none. */
  isNull(name: string): boolean {
    return Object.hasOwn(this.fields, name) && this.fields[name] === null;
  }

  /** An integer in `[min, max]`; `fallback` when absent, an error when none is given. */
  integer(name: string, min: number, max: number): number;
  integer<F extends number | undefined>(name: string, min: number, max: number, fallback: F): number | F;
  integer(name: string, min: number, max: number, ...fallback: (number | undefined)[]): number | undefined {
    const value = this.get(name);
    if (value === undefined && fallback.length > 0) return fallback[0];
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max)
      throw this.invalid(name, `an integer from ${min} to ${max}`);
    return value;
  }

  /** A finite number in `[min, max]`, with the same fallback. */
  number(name: string, min: number, max: number): number;
  number<F extends number | undefined>(name: string, min: number, max: number, fallback: F): number | F;
  number(name: string, min: number, max: number, ...fallback: (number | undefined)[]): number | undefined {
    const value = this.get(name);
    if (value === undefined && fallback.length > 0) return fallback[0];
    if (typeof value !== "number" || !(value >= min && value <= max))
      throw this.invalid(name, `a number from ${min} to ${max}`);
    return value;
  }

  boolean<F extends boolean | undefined>(name: string, fallback: F): boolean | F {
    const value = this.get(name);
    if (value === undefined) return fallback;
    if (typeof value !== "boolean") throw this.invalid(name, "true or false");
    return value;
  }

  string(name: string, fallback?: string): string {
    const value = this.get(name) ?? fallback;
    if (typeof value !== "string") throw this.invalid(name, "a string");
    return value;
  }

  strings(name: string): readonly string[] | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || value.some((item) => typeof item !== "string"))
      throw this.invalid(name, "a list of strings");
    return value as string[];
  }

  /** One token id or a list of up to 512, each in `[0, vocabSize)`. */
  tokenIds(name: string, vocabSize: number): readonly number[] | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    const ids: unknown[] = Array.isArray(value) ? value : [value];
    const known = (id: unknown) =>
      Number.isSafeInteger(id) && 0 <= (id as number) && (id as number) < vocabSize;
    if (ids.length > MAX_TOKEN_IDS || !ids.every(known))
      throw this.invalid(name, `at most ${MAX_TOKEN_IDS} token ids below the vocabulary size ${vocabSize}`);
    return [...new Set(ids as number[])];
  }

  object(name: string): JsonFields | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    if (!isJsonObject(value)) throw this.invalid(name, "an object");
    return new JsonFields(this.file, value, `${this.path}${name}.`, this.names);
  }

  /** The file's name for a field. */
  nameOf(name: string): string {
    const path = `${this.path}${name}`;
    return this.names[path] ?? path;
  }

  /** The error for a field that is not what it must be. */
  invalid(name: string, expected: string): ModelDataError {
    const value = this.get(name);
    // JSON has no number that is infinite or NaN; files of other formats have.
    const text = typeof value === "number" ? String(value) : JSON.stringify(value);
    const found = value === undefined ? "it is missing" : `not ${text.slice(0, 80)}`;
    return new ModelDataError(this.file, `${this.nameOf(name)} must be ${expected}, ${found}`);
  }
}
