/**
 * Changes from one list of words to another of the same length, as runs of equal words: how many words stay before the run, its
 * length, its word. Numbers are of 7 bits a byte, lowest first, with the eighth bit where more follow (LEB128). Most blocks of a
 * KV cache stay as they are for many steps, and those of a sequence mostly follow each other.
 */

/** @param previous without it all words count as changed. Default none. */
export function encodeRuns(words: Uint32Array, previous: Uint32Array | undefined): Uint8Array<ArrayBuffer> {
  const bytes: number[] = [];
  const write = (value: number) => {
    for (; value > 127; value = value >>> 7) bytes.push((value & 127) | 128);
    bytes.push(value);
  };
  let end = 0;
  for (let at = 0; at < words.length; ) {
    const word = words[at]!;
    if (previous && word === previous[at]) {
      at++;
      continue;
    }
    const start = at++;
    while (at < words.length && words[at] === word && word !== previous?.[at]) at++;
    write(start - end);
    write(at - start);
    write(word);
    end = at;
  }
  return Uint8Array.from(bytes);
}

/** Makes the changes to `words`. @throws RangeError for runs beyond its end. */
export function applyRuns(words: Uint32Array, bytes: Uint8Array): void {
  let at = 0;
  let next = 0;
  const read = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[next++]!;
      value |= (byte & 127) << shift;
      if (byte < 128) return value >>> 0;
    }
  };
  while (next < bytes.length) {
    at += read();
    const length = read();
    if (at + length > words.length) throw new RangeError("a run goes beyond the words");
    words.fill(read(), at, at + length);
    at += length;
  }
}
