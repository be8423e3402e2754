import { InvalidRequestError } from "../base/errors.ts";

/** Largest number in a quantifier `{m,n}`. */
const MAX_REPEAT = 256;
/** Parentheses within each other: xgrammar's parser is recursive. */
const MAX_DEPTH = 100;
const TOKEN = new RegExp(
  [
    /(?<space>[ \t\r]+|#[^\n]*)/,
    /(?<line>\n)/,
    /(?<define>::=)/,
    /(?<name>[A-Za-z_][\w.-]*)/,
    /(?<text>"(?:[^"\\\n]|\\[^\n])*")/,
    /(?<set>\[(?:[^\]\\\n]|\\[^\n])*\])/,
    /(?<range>\{\s*(?<min>\d+)\s*(?<more>,\s*(?<max>\d+)?\s*)?\})/,
    /(?<ahead>\(=)/,
    /(?<open>\()/,
    /(?<close>\))/,
    /(?<or>\|)/,
    /(?<repeat>[*+?])/,
  ]
    .map(({ source }) => source)
    .join("|"),
  "y",
);

/**
 * Checks the syntax of a grammar that a request brings: what xgrammar would abort on, or read as something else.
 * @throws InvalidRequestError `invalid_grammar`, naming the line.
 */
export function checkGrammar(grammar: string, param: string): void {
  let line = 1;
  const fail = (reason: string): InvalidRequestError =>
    new InvalidRequestError(param, `the grammar, line ${line}: ${reason}`, "invalid_grammar");
  const defined = new Set<string>();
  const used = new Map<string, number>();
  let previous: { readonly kind: string; readonly text: string } = { kind: "start", text: "" };
  let [depth, isInRule] = [0, false];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < grammar.length) {
    const at = TOKEN.lastIndex;
    const found = TOKEN.exec(grammar);
    if (!found) throw fail(`cannot read ${JSON.stringify(grammar.slice(at, at + 20))}`);
    const groups = found.groups!;
    const kind = Object.keys(groups).find((name) => groups[name] !== undefined)!;
    if (kind === "space") continue;
    if (kind === "line") {
      line++;
      continue;
    }
    if (kind === "define") {
      if (previous.kind !== "name" || depth > 0) throw fail("::= without the name of a rule");
      if (used.get(previous.text) === 1) used.delete(previous.text);
      else used.set(previous.text, used.get(previous.text)! - 1);
      if (defined.has(previous.text)) throw fail(`the rule ${previous.text} is defined twice`);
      defined.add(previous.text);
      isInRule = true;
    } else if (kind === "name") used.set(found[0], (used.get(found[0]) ?? 0) + 1);
    else if (!isInRule) throw fail("a rule begins with its name and ::=");
    else if (kind === "open" || kind === "ahead") {
      if (++depth > MAX_DEPTH) throw fail(`parentheses within more than ${MAX_DEPTH} others`);
    } else if (kind === "close" && --depth < 0) throw fail("a ) without its (");
    else if (kind === "repeat" || kind === "range") {
      if (!["name", "text", "set", "close"].includes(previous.kind)) throw fail(`nothing before ${found[0]}`);
      const { min, max } = groups;
      if (
        Math.max(Number(min ?? 0), Number(max ?? 0)) > MAX_REPEAT ||
        Number(max ?? Infinity) < Number(min ?? 0)
      )
        throw fail(`the quantifier ${found[0]}: at most ${MAX_REPEAT} is allowed`);
    } else if (kind === "set" && !isAscii(found[0])) {
      throw fail(`${found[0]}: characters beyond ASCII are supported in texts, not in classes`);
    }
    previous = { kind, text: found[0] };
  }
  if (depth > 0) throw fail("a ( without its )");
  if (!defined.has("root")) throw fail("there is no rule root");
  for (const name of used.keys()) if (!defined.has(name)) throw fail(`there is no rule ${name}`);
}

/** The same rules under names that begin with `prefix`, of a grammar that has been checked. */
export function withPrefix(grammar: string, prefix: string): string {
  const tokens = new RegExp(TOKEN.source, "g");
  return grammar.replace(tokens, (token, ...rest) => {
    const { name } = rest.at(-1) as Record<string, string | undefined>;
    return name === undefined ? token : prefix + token;
  });
}

/** A class of ASCII characters, however they are escaped. A negated one of them has all others beside. */
function isAscii(set: string): boolean {
  if (/[^\0-\x7f]/.test(set)) return false;
  const escapes = set.matchAll(/\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[^xuU])/g);
  return Array.from(escapes, ([, x, u, U]) => Number.parseInt(x ?? u ?? U ?? "0", 16)).every(
    (code) => code < 128,
  );
}
