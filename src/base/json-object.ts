export type JsonObject = Readonly<Record<string, unknown>>;

/** True for a value out of `JSON.parse` that is an object, and not a list or null. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
