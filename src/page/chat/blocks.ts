import { Lexer, type Token } from "marked";

/** Characters that are read as Markdown at once. Inline rules take time that grows with the square of a text's length. */
const PIECE = 2 ** 14;
/** Elements within elements, beyond which a text is shown as it is written. */
export const MAX_DEPTH = 40;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;

/** A text's top-level blocks, whose `raw` are the text, in pieces that are read one by one. */
export interface Blocks {
  readonly text: string;
  readonly blocks: readonly Token[];
}

/**
 * The blocks of Markdown that a model writes: of any text, in bounded time and stack. A text that begins with that of `before`
 * costs what was added to it and its last two blocks.
 */
export function readBlocks(text: string, before?: Blocks): Blocks {
  // The last block may go on, and a line below it can change what the one above it is.
  const kept = before && text.startsWith(before.text) ? before.blocks.slice(0, -2) : [];
  const start = kept.reduce((sum, { raw }) => sum + raw.length, 0);
  const read = piecesOf(text.slice(start)).flatMap(lexed);
  return { text, blocks: [...kept, ...read] };
}

function lexed(piece: string): readonly Token[] {
  try {
    const tokens = new Lexer({ gfm: true, breaks: true }).lex(piece);
    // Tabs and line ends may be written otherwise in `raw`: then the piece is one block, so that lengths add up.
    if (tokens.reduce((sum, { raw }) => sum + raw.length, 0) === piece.length) return tokens;
    return [{ type: "piece", raw: piece, tokens }];
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return [{ type: "paragraph", raw: piece, tokens: [{ type: "plain", raw: piece }] }];
  }
}

/** Cuts at ends of lines that are in no fenced code, and within a line where it is longer than a piece. */
function piecesOf(text: string): readonly string[] {
  if (text.length <= PIECE) return [text];
  const pieces: string[] = [];
  let [start, fence] = [0, ""];
  for (let at = 0; at < text.length; ) {
    const newline = text.indexOf("\n", at);
    const end = newline < 0 ? text.length : newline + 1;
    const mark = FENCE.exec(text.slice(at, Math.min(end, at + 80)))?.[1] ?? "";
    if (fence === "" && end - start > PIECE && at > start) {
      pieces.push(text.slice(start, at));
      start = at;
    }
    if (fence === "") fence = mark;
    else if (mark.startsWith(fence)) fence = "";
    if (fence === "" && at === start)
      for (; end - start > PIECE; start += PIECE) pieces.push(text.slice(start, start + PIECE));
    at = end;
  }
  if (start < text.length) pieces.push(text.slice(start));
  return pieces;
}
