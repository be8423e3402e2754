/** No UTF-8 has this byte. */
const LEAD = 0xff;
/** Digits of an id, in base 36: enough for a vocabulary of a million. */
const DIGITS = 4;

/** The bytes that no text has from here on: tokens that hold one have no text in a grammar. */
export const FIRST_UNUSED = 0xf8;

/**
 * The bytes that a marker's token has in a grammar's vocabulary in place of its own, so that a grammar can ask for the token: what
 * it is spelled with can be written by other tokens, which mean nothing to whoever reads markers.
 */
export function markerBytes(id: number): readonly number[] {
  return [LEAD, ...Buffer.from(id.toString(36).padStart(DIGITS, "0"))];
}
