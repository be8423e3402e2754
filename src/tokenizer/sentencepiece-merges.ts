/** Code points of a piece, at most: longer ones are not split. Real ones have up to 100. */
const MAX_LENGTH = 256;
/** Bounds on work and memory for a vocabulary made to exceed them. Of 250,000 real pieces there are 600,000 merges. */
const MAX_SPLITS = 2 ** 23;
const MAX_MERGES = 2 ** 21;

interface Merge {
  readonly pair: readonly [left: string, right: string];
  readonly score: number;
  /** In code points. */
  readonly leftLength: number;
  readonly rightLength: number;
}

/**
 * The merges of a SentencePiece BPE vocabulary, which stores none: each way to make a piece of two others, the
 * best-scored pieces first, as transformers' converter derives them for tokenizer.json.
 * @param pieces all pieces, with the score of each that merges may make
 * @throws RangeError for vocabularies that would take too much work
 */
export function mergesOf(
  ids: ReadonlyMap<string, number>,
  pieces: Iterable<readonly [piece: string, score: number]>,
): (readonly [string, string])[] {
  const merges: Merge[] = [];
  let splits = 0;
  for (const [piece, score] of pieces) {
    const points = Array.from(piece);
    if (points.length > MAX_LENGTH) continue;
    splits += points.length;
    if (splits > MAX_SPLITS) throw new RangeError(`pieces of more than ${MAX_SPLITS} characters in all`);
    const found: Merge[] = [];
    for (let at = 1, unit = points[0]?.length ?? 0; at < points.length; unit += points[at++]!.length) {
      const [left, right] = [piece.slice(0, unit), piece.slice(unit)];
      if (!ids.has(left) || !ids.has(right)) continue;
      found.push({ pair: [left, right], score, leftLength: at, rightLength: points.length - at });
    }
    // Of one piece those first whose parts have the lowest ids, unless the order below says otherwise.
    found.sort(
      (a, b) => ids.get(a.pair[0])! - ids.get(b.pair[0])! || ids.get(a.pair[1])! - ids.get(b.pair[1])!,
    );
    merges.push(...found);
    if (merges.length > MAX_MERGES) throw new RangeError(`more than ${MAX_MERGES} ways to merge pieces`);
  }
  merges.sort((a, b) => b.score - a.score || b.leftLength - a.leftLength || b.rightLength - a.rightLength);
  return merges.map(({ pair }) => pair);
}
