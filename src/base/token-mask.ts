/**
 * Tokens as bits: bit t % 32 of word t / 32 is token t's.
 * @param tokenIds below `vocabSize`. Default: all that are.
 */
export function tokenMask(vocabSize: number, tokenIds?: Iterable<number>): Uint32Array<ArrayBuffer> {
  const mask = new Uint32Array(Math.ceil(vocabSize / 32));
  if (tokenIds !== undefined) {
    for (const id of tokenIds) mask[id >>> 5]! |= 1 << (id & 31);
    return mask;
  }
  mask.fill(0xffffffff);
  const rest = vocabSize % 32;
  if (rest > 0) mask[mask.length - 1] = (1 << rest) - 1;
  return mask;
}
