import { InvalidArgumentError } from "commander";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";

/** Parses the value of a numeric flag. */
export function numberValue(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value))
    throw new InvalidArgumentError(`"${text}" is not a number.`);
  return value;
}

/** Parses the value of a flag that takes an integer. */
export function integerValue(text: string): number {
  const value = numberValue(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError(`"${text}" is not an integer.`);
  return value;
}

const MULTIPLIERS: Readonly<Record<string, number>> = {
  ...{ k: 1e3, m: 1e6, g: 1e9, t: 1e12 },
  ...{ K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 },
};

/**
 * Parses a count of tokens or bytes as vLLM does: `4096`, `1k` (1,000), `1K` (1,024), and so on with m, g and t;
 * decimals with the decimal ones, as `25.6k`.
 */
export function quantityValue(text: string): number {
  const [, digits, unit] = text.trim().match(/^(\d+(?:\.\d+)?)([kKmMgGtT])$/) ?? [];
  if (digits === undefined) return integerValue(text);
  if (digits.includes(".") && unit! < "a")
    throw new InvalidArgumentError(`"${text}" is not an integer; ${unit!.toLowerCase()} takes decimals.`);
  return Math.trunc(Number((Number(digits) * MULTIPLIERS[unit!]!).toPrecision(15)));
}

/** Parses the value of a flag that counts something, from 1. */
export function countValue(text: string): number {
  const value = integerValue(text);
  if (value < 1) throw new InvalidArgumentError(`"${text}" is below 1.`);
  return value;
}

/** Parses a 64-bit seed. */
export function seedValue(text: string): bigint {
  if (!/^-?\d{1,20}$/.test(text)) throw new InvalidArgumentError(`"${text}" is not an integer.`);
  return BigInt(text);
}

/** Parses a repeatable flag into a list. */
export function listValue(text: string, previous: readonly string[] = []): readonly string[] {
  return [...previous, text];
}

/** Parses JSON. */
export function jsonValue(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new InvalidArgumentError(`${text} is not JSON.`);
  }
}

/** Parses a JSON object. */
export function objectValue(text: string): JsonObject {
  const value = jsonValue(text);
  if (!isJsonObject(value)) throw new InvalidArgumentError(`${text} is not a JSON object.`);
  return value;
}
