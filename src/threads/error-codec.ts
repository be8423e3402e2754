import * as baseErrors from "../base/errors.ts";
import { OctavoError } from "../base/errors.ts";
import * as cudaErrors from "../cuda/errors.ts";

/** An error as it travels between threads, which would otherwise strip it of its class and fields. */
export interface EncodedError {
  readonly name: string;
  readonly message: string;
  readonly stack: string | undefined;
  /** Own fields that hold plain values. */
  readonly fields: Readonly<Record<string, unknown>>;
  readonly cause: EncodedError | undefined;
}

const CLASSES: ReadonlyMap<string, { readonly prototype: OctavoError }> = new Map(
  Object.entries({ ...baseErrors, ...cudaErrors }).flatMap(([name, value]) =>
    typeof value === "function" && value.prototype instanceof OctavoError
      ? [[name, value as { prototype: OctavoError }]]
      : [],
  ),
);

const MAX_CAUSES = 8;

/** Takes anything thrown. Of a chain of causes the first eight go along. */
export function encodeError(error: unknown, depth = 0): EncodedError {
  if (!(error instanceof Error))
    return { name: "Error", message: String(error), stack: undefined, fields: {}, cause: undefined };
  const { name, message, stack, cause } = error;
  const fields = Object.fromEntries(Object.entries(error).filter(([, value]) => isPlain(value)));
  const hasCause = cause !== undefined && depth < MAX_CAUSES;
  return { name, message, stack, fields, cause: hasCause ? encodeError(cause, depth + 1) : undefined };
}

/** An error of the same class, where it is one of Octavo's; else an `Error` of the same name. */
export function decodeError({ name, message, stack, fields, cause }: EncodedError): Error {
  const error = new Error(message, cause && { cause: decodeError(cause) });
  const original = CLASSES.get(name);
  if (original) Object.setPrototypeOf(error, original.prototype);
  return Object.assign(error, { name, ...fields, ...(stack !== undefined && { stack }) });
}

function isPlain(value: unknown): boolean {
  return value === null || (typeof value !== "object" && typeof value !== "function");
}
