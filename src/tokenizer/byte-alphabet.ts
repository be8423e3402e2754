const encoder = new TextEncoder();

/** GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on. By byte. */
export const ALPHABET: readonly string[] = (() => {
  let stand = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
    return String.fromCharCode(printable ? byte : stand++);
  });
})();
const BYTES: ReadonlyMap<string, number> = new Map(ALPHABET.map((character, byte) => [character, byte]));

/** The text's UTF-8 bytes in the alphabet. */
export function toAlphabet(text: string): string {
  let spelled = "";
  for (const byte of encoder.encode(text)) spelled += ALPHABET[byte];
  return spelled;
}

/** The bytes that are spelled so; undefined if a character is outside the alphabet. */
export function fromAlphabet(spelled: string): Uint8Array<ArrayBuffer> | undefined {
  const bytes = new Uint8Array(spelled.length);
  for (let i = 0; i < spelled.length; i++) {
    const byte = BYTES.get(spelled[i]!);
    if (byte === undefined) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}
