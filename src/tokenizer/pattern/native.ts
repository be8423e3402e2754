import { type Anchor, type Pattern, WORD_SET } from "./syntax.ts";

const ANCHORS: Readonly<Record<Anchor, string>> = {
  textStart: "(?<![^])",
  textEnd: "(?![^])",
  lineStart: "(?<![^\\n])",
  lineEnd: "(?![^\\n])",
  lastLineEnd: "(?=\\n?(?![^]))",
  word: `(?:(?<=${WORD_SET})(?!${WORD_SET})|(?<!${WORD_SET})(?=${WORD_SET}))`,
  noWord: `(?:(?<=${WORD_SET})(?=${WORD_SET})|(?<!${WORD_SET})(?!${WORD_SET}))`,
};

/** The pattern for JavaScript's own engine, which takes whatever time backtracking takes it. */
export function nativeExpression(pattern: Pattern): RegExp {
  let groups = 0;
  const atomic = (source: string) => {
    groups++;
    return `(?:(?=(${source}))\\${groups})`;
  };
  const write = (part: Pattern): string => {
    switch (part.kind) {
      case "set":
        return part.source;
      case "sequence":
        return part.items
          .map((item) => (item.kind === "choice" ? `(?:${write(item)})` : write(item)))
          .join("");
      case "choice":
        return part.items.map(write).join("|");
      case "atomic":
        return atomic(write(part.item));
      case "look":
        return `(?${part.ahead ? "" : "<"}${part.negative ? "!" : "="}${write(part.item)})`;
      case "anchor":
        return ANCHORS[part.at];
      case "repeat": {
        const { min, max } = part;
        const times = max === Number.POSITIVE_INFINITY ? `{${min},}` : `{${min},${max}}`;
        const sign =
          min === 0 && max === 1
            ? "?"
            : max < Number.POSITIVE_INFINITY || min > 1
              ? times
              : min === 0
                ? "*"
                : "+";
        const source = `${part.item.kind === "set" ? part.item.source : `(?:${write(part.item)})`}${sign}`;
        return part.mode === "possessive" ? atomic(source) : source + (part.mode === "lazy" ? "?" : "");
      }
    }
  };
  return new RegExp(write(pattern), "gv");
}
