import { UnsupportedModelError } from "../base/errors.ts";
import { fromAlphabet } from "./byte-alphabet.ts";

/** A vocabulary's spelling of bytes, read from the `decoder` of tokenizer.json. */
export interface TokenBytes {
  /** The bytes that `token` stands for. `added` tokens of a byte-level vocabulary are spelled literally. */
  of(token: string, added: boolean): Uint8Array<ArrayBuffer>;
  /** Spaces that are dropped from the very start of a decoded text. */
  readonly leadingSpaces: number;
}

interface DecoderConfig {
  readonly type?: unknown;
  readonly [field: string]: unknown;
}

const encoder = new TextEncoder();
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;

/**
 * Byte-level vocabularies (GPT-2, Llama 3, Qwen) and SentencePiece ones ("▁" for a space, `<0xNN>` for a byte).
 * @throws UnsupportedModelError naming `file` for any other decoder
 */
export function tokenBytes(decoder: unknown, file: string): TokenBytes {
  const steps = flatten(decoder);
  const unsupported = (step: DecoderConfig): never => {
    throw new UnsupportedModelError(file, `decoder ${JSON.stringify(step)} is not supported`);
  };
  if (steps.length === 0)
    throw new UnsupportedModelError(file, "a tokenizer without a decoder is not supported");
  if (steps.some((step) => step.type === "ByteLevel")) {
    const other = steps.find(
      ({ type }) => type !== "ByteLevel" && type !== "ByteFallback" && type !== "Fuse",
    );
    if (other !== undefined) unsupported(other);
    const fallback = steps.some((step) => step.type === "ByteFallback");
    return {
      // A token with a character outside the alphabet is spelled literally.
      of: (token, added) =>
        (fallback ? byteOf(token) : undefined) ??
        (added ? undefined : fromAlphabet(token)) ??
        encoder.encode(token),
      leadingSpaces: 0,
    };
  }

  const replacements: [string, string][] = [];
  let byteFallback = false;
  let leadingSpaces = 0;
  for (const step of steps) {
    if (step.type === "Replace") {
      const pattern = (step["pattern"] as { String?: unknown } | undefined)?.String;
      if (typeof pattern !== "string" || typeof step["content"] !== "string") unsupported(step);
      replacements.push([pattern as string, step["content"] as string]);
    } else if (step.type === "Strip") {
      const { content, start, stop } = step;
      if (content !== " " || !Number.isSafeInteger(start) || (start as number) < 0 || stop !== 0)
        unsupported(step);
      leadingSpaces = start as number;
    } else if (step.type === "Metaspace") {
      replacements.push([typeof step["replacement"] === "string" ? step["replacement"] : "▁", " "]);
      const never = step["prepend_scheme"] === "never" || step["add_prefix_space"] === false;
      leadingSpaces = never ? 0 : 1;
    } else if (step.type === "ByteFallback") byteFallback = true;
    else if (step.type !== "Fuse") unsupported(step);
  }
  return {
    of(token) {
      const byte = byteFallback ? byteOf(token) : undefined;
      if (byte !== undefined) return byte;
      return encoder.encode(replacements.reduce((text, [from, to]) => text.replaceAll(from, to), token));
    },
    leadingSpaces,
  };
}

/** The byte of a token `<0xNN>`. */
function byteOf(token: string): Uint8Array<ArrayBuffer> | undefined {
  const digits = BYTE_TOKEN.exec(token)?.[1];
  return digits === undefined ? undefined : Uint8Array.of(Number.parseInt(digits, 16));
}

function flatten(decoder: unknown): DecoderConfig[] {
  if (typeof decoder !== "object" || decoder === null) return [];
  const { type, decoders } = decoder as { type?: unknown; decoders?: unknown };
  return type === "Sequence" && Array.isArray(decoders) ? decoders.flatMap(flatten) : [{ ...decoder }];
}
